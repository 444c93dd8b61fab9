"""The result of an audit, ``audit.json`` in a run's folder: an empirical lower bound on epsilon."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .files import read_json
from .shape import is_number, unprintable

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
    if audit.get("format") != AUDIT_FORMAT:
        raise ConfigError(f"{file}: format={audit.get('format')!r}, and {AUDIT_FORMAT} is expected")
    if not isinstance(audit.get("method"), str) or not audit["method"]:
        raise ConfigError(f"{file}: method={audit.get('method')!r} does not say how the bound was found")
    for name, fits, range_ in (
        ("epsilon_lower_bound", lambda v: v >= 0, "0 or more"),
        ("confidence", lambda v: 0 < v < 1, "in (0, 1)"),
    ):
        value = audit.get(name)
        if not (is_number(value) and fits(value)):
            raise ConfigError(f"{file}: {name}={value!r} is not a number {range_}")
    reason = unprintable(audit)  # whatever else it says goes into the statement
    if reason is not None:
        raise ConfigError(f"{file} holds {reason}: make it again")
    return audit
