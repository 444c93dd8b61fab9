"""The privacy filter: whether one more run fits a budget when runs are chosen after seeing the results of others.

Theorem (the Rényi filter of Feldman and Zrnic 2021): fix an order alpha and a bound B in advance. Let every mechanism,
and its divergence rho_alpha, be chosen with knowledge of all earlier outputs. If each is let through only while the sum
of rho_alpha, its own included, is at most B, then everything released together is (alpha, B)-Rényi differentially
private. The order is fixed here from the budget and the plan of the first run ever charged to the dataset, which was
made before anything of it was seen; B is the largest divergence that converts to (epsilon, delta) at this order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from ..errors import BudgetError, ConfigError
from ..privacy.conversion import divergence_for
from .curves import ROUNDING, Curve, Parts, best_order, divergence
from .events import gaussian_step

MOST_COPIES = 2**40


@dataclass(frozen=True)
class Filter:
    """A budget's filter.

    Attributes:
        index: Place of its order among the ledger's orders.
        order: The one order alpha that admission looks at.
        capacity: The bound B, a divergence.
    """

    index: int
    order: float
    capacity: float

    @classmethod
    def fix(cls, first: Curve, orders: Sequence[float], epsilon: float, delta: float) -> Filter:
        """Choose the order for a budget whose first run has the curve ``first``.

        With m the largest number of such runs that composed RDP lets into the budget, it is the best order of m runs:
        m equal runs fit, exactly as composed RDP says. An order without a bound is never the best.

        Raises:
            BudgetError: No order has a bound.
        """
        copies = most(lambda m: best_order([m * value for value in first], orders, delta)[0] <= _limit(epsilon))
        spent, order = best_order([max(1, copies) * value for value in first], orders, delta)
        if not math.isfinite(spent):
            raise BudgetError("the first run has no RDP bound at any order, so no budget can be kept of it: add noise")
        return cls.at(order, orders, epsilon, delta)

    @classmethod
    def at(cls, order: float, orders: Sequence[float], epsilon: float, delta: float) -> Filter:
        """Return the filter of a budget at a known order."""
        capacity = divergence_for(_limit(epsilon) / (1.0 + ROUNDING), delta, order) / (1.0 + ROUNDING)
        return cls(list(orders).index(order), order, capacity)

    def spent(self, blocks: Iterable[Parts]) -> float:
        """The divergence at its order of the block that has the most, of what was charged to each."""
        return max((divergence(parts, self.index) for parts in blocks), default=0.0)

    def admits(self, blocks: Iterable[Parts]) -> bool:
        """Whether what is charged to each block, with everything in it, is within the budget."""
        return self.spent(blocks) <= self.capacity

    def room(self, blocks: Iterable[Parts]) -> float:
        """What is left at the filter's order; negative where the budget is overdrawn."""
        return self.capacity - self.spent(blocks)

    def used(self, blocks: Iterable[Parts]) -> float:
        """The part of the capacity that is spent; 1 is all of it."""
        return self.spent(blocks) / self.capacity if self.capacity > 0 else math.inf


def reading_at(found: Filter, spent: float, delta: float) -> float:
    """Return the epsilon that a divergence has at the filter's order, which holds at every stopping time.

    exp((order - 1) (loss - divergence so far)) is a supermartingale in the steps, at one order fixed before the first
    of them. So its mean is at most 1 wherever one stops, and by Markov's inequality the loss passes divergence +
    log(1 / delta) / (order - 1) with a probability of at most delta.
    """
    return (spent * (1.0 + ROUNDING) + math.log(1.0 / delta) / (found.order - 1.0)) * (1.0 + ROUNDING)


def reads_within(total: Curve, orders: Sequence[float], epsilon: float, delta: float) -> bool:
    """Whether what is *shown* of a total, composed RDP at its best order, is within the limit too.

    It mostly follows from the filter. It does not where dp-accounting has no bound at the filter's order: the filter
    goes on with the next order's, and the reading leaves the order out.
    """
    return best_order(total, orders, delta)[0] <= _limit(epsilon)


def more_noise(noise: float, passes: Callable[[float], bool]) -> float | None:
    """Return the first of a few noise multipliers from ``noise`` up that passes, or ``None``."""
    for extra in (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0):
        scale = 10.0 ** (3 - math.floor(math.log10(noise * (1 + extra))))
        candidate = noise if extra == 0.0 else math.ceil(noise * (1 + extra) * scale) / scale
        if passes(candidate):
            return candidate
    return None


def _limit(epsilon: float) -> float:
    return epsilon * (1.0 + 4 * ROUNDING)  # a run of exactly the budget's epsilon fits, whatever the rounding


def most(holds: Callable[[int], bool], largest: int = MOST_COPIES) -> int:
    """Return the largest number up to ``largest`` for which ``holds``, which is monotone; 0 where 1 does not."""
    low, high = 0, 1
    while high <= largest and holds(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


@dataclass(frozen=True)
class Offer:
    """What would fit instead of a refused run; ``None`` where nothing does, or where the event has no such knob."""

    noise_multiplier: float | None
    steps: int | None


def offer_within(room: float, order: float, step: object, one: float, steps: int) -> Offer:
    """Return what fits into the room that a filter has left: fewer steps, or more noise at the same steps.

    ``one`` is the divergence of one step at the filter's order.
    """
    from ..privacy import calibration

    if room <= 0:
        return Offer(None, None)
    fewer = min(room // one, steps) if one else 0
    noise: float | None = None
    if (parts := gaussian_step(step)) is not None:
        with suppress(ConfigError):
            noise = calibration.calibrate_to_divergence(room, order, parts[0], steps)
    return Offer(noise, int(fewer) if fewer >= 1 else None)


def offer_afresh(epsilon: float, delta: float, step: object, steps: int) -> Offer:
    """Return what fits a budget of which nothing is spent, where the first run's plan still chooses the order."""
    from ..privacy import calibration

    parts = gaussian_step(step)
    if parts is None:
        return Offer(None, None)
    noise: float | None = None
    fewer: int | None = None
    with suppress(ConfigError):
        noise = calibration.calibrate_noise(epsilon, delta, parts[0], steps)
    with suppress(ConfigError):
        fewer = calibration.calibrate_steps(epsilon, delta, parts[0], parts[1])
    return Offer(noise, fewer)
