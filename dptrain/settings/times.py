"""``time``: how long a run may take, as Ultralytics has it in hours, or with its unit."""

from __future__ import annotations

import math
import re
from typing import Any

from ..errors import ConfigError

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SHORTEST, _LONGEST = 10, 365 * 86400


def seconds_of(value: Any) -> float:
    """Return the seconds of ``30m``, ``1.5h``, ``90s``, ``2d``, or of a number, which is of hours.

    Raises:
        ConfigError: It is none of these, or not between ten seconds and a year.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([smhd]?)\s*", str(value).lower())
    if isinstance(value, bool) or not found:
        raise ConfigError(f"time={value} is not a time: give 30m, 1.5h, 2d, or a number of hours")
    seconds = float(found[1]) * _UNITS[found[2] or "h"]
    if not (math.isfinite(seconds) and _SHORTEST <= seconds <= _LONGEST):
        raise ConfigError(f"time={value} is not between {_SHORTEST}s and {_LONGEST // _UNITS['d']}d")
    return seconds
