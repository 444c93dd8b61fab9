"""What made public start weights, written beside them; and what may not make any."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import PrivacyError
from ..sealing.weights import is_weights, weights_hash
from ..support.files import file_hash, read_json, write_json
from ..support.released import made_from

RECORD = "pretraining.json"
RECORD_FORMAT = 1


def write_record(weights: Path, record: Mapping[str, Any]) -> Path:
    """Write the record of some weights beside them, with their hash."""
    file = weights.parent / RECORD
    write_json(file, {"format": RECORD_FORMAT, "weights": {weights.name: file_hash(weights)}, **record})
    return file


def declared_start(start: str | Path) -> str | None:
    """Return what public data made some start weights, in words: a release of Ultralytics, or those beside a record.

    A release is known by its content, under any name. A record of other weights, or one that cannot be read, counts as
    none: it declares nothing about these.
    """
    file = Path(start)
    record = file.parent / RECORD
    if not is_weights(file) or not file.is_file():
        return None
    released = made_from(weights_hash(file))
    if released is not None or not record.is_file():
        return released
    try:
        found = read_json(record)
        known, words = found["weights"], found["public_data"]
        return str(words) if isinstance(words, str) and weights_hash(file) in known.values() else None  # under any name
    except (OSError, ValueError, LookupError, AttributeError):
        return None


def refuse_private_start(start: Path) -> None:
    """Refuse weights of a private run: whatever is made of them is not public data's alone.

    Raises:
        PrivacyError: A statement lies beside them.
    """
    if start.suffix == ".pt" and (start.parent / "statement.json").is_file():
        raise PrivacyError(
            f"model={start} comes from a private run (statement.json is beside it), so its result would not be a "
            "public start: continue with dptrain train, or start from public weights"
        )
