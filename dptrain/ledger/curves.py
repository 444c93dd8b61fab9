"""The RDP curves of steps, which are charged by their number.

A curve holds one Rényi divergence bound an order, for one step. What was charged is kept as whole numbers of steps of
each kind, so a total is the same whatever the order of the charges, and it comes back to exactly what it was when a
reservation is taken back. Divergences are summed only to be compared or shown. All terms are 0 or more and the sum is
rounded once (``math.fsum``), so its relative error is below 2^-51 however many terms there are; ``ROUNDING`` is 2,000
times that, and is added before anything is read off.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache

from ..errors import BudgetError
from ..privacy import conversion
from .events import event_from_json

MOST = 1e100  # a divergence from here up is none: every sum of what is below is a finite number

# Room for the rounding of floating-point sums, in dp-accounting's as in ours: what is shown is never the lower one.
ROUNDING = 1e-12

Curve = tuple[float, ...]
Parts = Sequence[tuple[int, Curve]]  # steps, above 0, and the curve of one of them


@lru_cache(maxsize=4096)
def step_curve(event_json: str, orders: tuple[float, ...]) -> Curve:
    """Return the curve of a recorded event, by dp-accounting's RDP for adding or removing one unit.

    Raises:
        BudgetError: RDP has no bound for this event under this relation.
    """
    from ..privacy.rdp import rdp_at

    event = event_from_json(event_json)
    try:
        bounds = rdp_at(event, orders).tolist()
    except Exception as error:  # dp-accounting names the kind of event and why in errors of many types
        reason = " ".join(str(error).split())
        raise BudgetError(f"{type(event).__name__} has no RDP bound, so it cannot be charged ({reason})") from error
    return to_curve(bounds)


def to_curve(values: Sequence[float]) -> Curve:
    """Return divergences at growing orders as a curve.

    What is not a finite number is no bound, and so is what is too large to be told from none once it is added up.
    """
    return tuple(max(float(value), 0.0) if math.isfinite(value) and value < MOST else math.inf for value in values)


def encode(curve: Curve) -> str:
    """Write a curve as text, to the last digit."""
    return ",".join(map(repr, curve))


@lru_cache(maxsize=4096)
def decode(text: str) -> Curve:
    """Read :func:`encode`'s text."""
    return tuple(map(float, text.split(",")))


def total(parts: Parts, orders: Sequence[float]) -> Curve:
    """Return the curve of steps together: at each order the sum, infinity where any of them has no bound."""
    columns = zip(*([steps * value for value in curve] for steps, curve in parts), strict=True)
    return tuple(map(math.fsum, columns)) if parts else (0.0,) * len(orders)


def divergence(parts: Parts, index: int) -> float:
    """Return a bound on the divergence of steps together at one order.

    Where a step has no bound there, that of the next order which has one bounds it too: Rényi divergence grows with the
    order. A filter, whose order is fixed before anyone knows what runs will come, goes by it.
    """
    return math.fsum(steps * next(filter(math.isfinite, curve[index:]), math.inf) for steps, curve in parts)


def largest(curves: Iterable[Curve]) -> Curve:
    """Return the largest divergence at every order: what disjoint parts cost together (parallel composition)."""
    return tuple(map(max, zip(*curves, strict=True)))


def epsilon(curve: Sequence[float], orders: Sequence[float], delta: float) -> float:
    """Return the RDP epsilon of a total at its best order; infinity where none holds.

    Never below what dp-accounting says of the same events.
    """
    return best_order(curve, orders, delta)[0]


def best_order(curve: Sequence[float], orders: Sequence[float], delta: float) -> tuple[float, float]:
    """Return the RDP epsilon and the order it is found at."""
    if not any(curve):
        return 0.0, orders[0]
    found, order = conversion.best_order(orders, [value * (1.0 + ROUNDING) for value in curve], delta)
    return found * (1.0 + ROUNDING), order
