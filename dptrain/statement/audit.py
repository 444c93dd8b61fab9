"""The result of an audit, ``audit.json`` in a run's folder: an empirical lower bound on epsilon."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .fields import read_as
from .files import read_json
from .shape import Audit

FILE = "audit.json"
AUDIT_FORMAT = 1


def read_audit(folder: Path) -> dict[str, Any] | None:
    """Return the audit of a run, None where there was none.

    The least that the file holds: ``format`` (1), ``method`` (words), ``epsilon_lower_bound`` (0 or more) and
    ``confidence`` (in (0, 1)). Whatever else it says is kept.

    Raises:
        ConfigError: It cannot be read, or one of these is missing or out of range.
    """
    file = folder / FILE
    if not file.exists():
        return None
    audit = read_json(file, "the result of an audit")
    try:
        read_as(Audit, audit, file)
    except ValueError as error:
        raise ConfigError(f"{error}: make it again") from error
    return audit
