"""How an epsilon is written: never below what it is; a lower bound on one, never above."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal

_ALL_DIGITS = Context(prec=400)  # the largest number has 309 before the point


def shown(epsilon: float) -> str:
    """Return an epsilon with three decimals, rounded up."""
    if not math.isfinite(epsilon):
        return "infinity"
    return str(Decimal(epsilon).quantize(Decimal("0.001"), ROUND_CEILING, _ALL_DIGITS))


def round_up(value: float, digits: int = 4) -> str:
    """Return a number to some significant digits, rounded up."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    exponent = digits - 1 - math.floor(math.log10(abs(value)))
    nearest = f"{value:.{digits}g}"
    return nearest if float(nearest) >= value else f"{float(nearest) + 10.0**-exponent:.{digits}g}"


def shown_below(bound: float) -> str:
    """Return a lower bound on an epsilon with three decimals, rounded down."""
    return (
        str(Decimal(bound).quantize(Decimal("0.001"), ROUND_FLOOR, _ALL_DIGITS)) if math.isfinite(bound) else "infinity"
    )


def counted(number: int, what: str) -> str:
    """A number of things: ``1 box``, ``2 boxes``, ``2 copies``."""
    if number == 1:
        return f"1 {what}"
    return f"{number} {what[:-1]}ies" if what.endswith("y") else f"{number} {what}{'es' if what.endswith('x') else 's'}"
