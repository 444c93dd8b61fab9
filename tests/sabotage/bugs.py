"""All planted bugs, by name."""

from __future__ import annotations

from .audit_bugs import AUDIT_BUGS
from .banded_bugs import BANDED_BUGS
from .claim_bugs import CLAIM_BUGS
from .edits import Bug
from .federated_bugs import FEDERATED_BUGS
from .gradient_bugs import GRADIENT_BUGS
from .identity_bugs import IDENTITY_BUGS
from .lease_bugs import LEASE_BUGS
from .noise_bugs import NOISE_BUGS
from .phase_bugs import PHASE_BUGS
from .process_bugs import PROCESS_BUGS
from .published_bugs import PUBLISHED_BUGS
from .reading_bugs import READING_BUGS
from .record_bugs import RECORD_BUGS
from .shape_bugs import SHAPE_BUGS
from .unit_bugs import UNIT_BUGS
from .validation_bugs import VALIDATION_BUGS

BUGS: dict[str, Bug] = {
    bug.name: bug
    for bugs in (
        GRADIENT_BUGS,
        IDENTITY_BUGS,
        LEASE_BUGS,
        NOISE_BUGS,
        PHASE_BUGS,
        PROCESS_BUGS,
        PUBLISHED_BUGS,
        READING_BUGS,
        RECORD_BUGS,
        UNIT_BUGS,
        VALIDATION_BUGS,
        CLAIM_BUGS,
        AUDIT_BUGS,
        BANDED_BUGS,
        FEDERATED_BUGS,
        SHAPE_BUGS,
    )
    for bug in bugs
}

# Those that the normal suite plants: a few seconds each, one of every room.
QUICK = (
    "batch loss",
    "second use of a layer not seen",
    "one noise for all tensors",
    "stale sum after an error",
    "wrong rate accounted",
    "refund",
)
