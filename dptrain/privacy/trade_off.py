"""Which error rates a mechanism leaves to whoever tests for one unit: its trade-off function.

If training is (epsilon, delta)-private for several pairs, an event of chance x on one of two neighbouring datasets has
chance at most min(delta + e^epsilon x) on the other. The curve of that bound is 1 minus the trade-off function f of
f-differential privacy (Dong, Roth and Su 2022, proposition 2.12); pairs that are true make it a true bound, whichever
they are, and more pairs make it tighter.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from dp_accounting.rdp import rdp_privacy_accountant as rdp

from .pld import Steps, compose_losses, interval_for
from .rdp import quiet

FALSE_POSITIVE_RATES = {"1 in 1000": 1e-3, "1 in 100": 1e-2}  # at which a statement names the best true-positive rate
_POINTS = 300  # pairs of (epsilon, delta)
_INTERVAL = 2e-3  # of the losses: coarser than for epsilon, which costs the fourth digit of a rate, on the safe side
_NEVER = 1e-12  # no pair beyond this delta; also what the sums of a loss distribution may be wrong by
_MOST_EPSILON = 100.0


@dataclass(frozen=True, eq=False)
class TradeOff:
    """A bound on error rates from pairs of epsilon and delta, for adding and for removing one unit alike.

    Attributes:
        epsilons: 0 or more, shape (k,).
        deltas: One for each, shape (k,): the mechanism is (epsilon, delta)-private for every pair.
    """

    epsilons: np.ndarray
    deltas: np.ndarray

    @functools.cached_property
    def _lines(self) -> tuple[np.ndarray, np.ndarray]:
        """Slopes and offsets: an event of chance y on one dataset has at least chance slope y + offset on the other.

        From y <= delta + e^epsilon x, and from the same of the opposite event: 1 - x <= delta + e^epsilon (1 - y).
        """
        grow = np.exp(self.epsilons)
        return np.concatenate((1.0 / grow, grow)), np.concatenate((-self.deltas / grow, 1.0 - self.deltas - grow))

    def least(self, chance: float) -> float:
        """Return the least chance, on one dataset, of an event that has this chance on its neighbour."""
        slopes, offsets = self._lines
        return max(0.0, float((slopes * chance + offsets).max()))

    def most(self, chance: float) -> float:
        """Return the largest chance, on one dataset, of an event that has this chance on its neighbour.

        With the chance of a false alarm, that is the best true-positive rate of any test for one given unit.
        """
        grow = np.exp(self.epsilons)
        outright = (self.deltas + grow * chance).min()
        opposite = (1.0 - (1.0 - chance - self.deltas) / grow).min()
        return float(np.clip(min(outright, opposite), chance, 1.0))

    def most_after(self, units: int, chance: float) -> float:
        """Return the largest chance of an event on a dataset that differs in so many units (Dong et al., theorem 2.14).

        Each unit is one neighbour further: so what the first can make of the chance, the next can make more of.
        """
        for _ in range(units):
            if chance >= 1.0:
                break
            chance = self.most(chance)
        return chance


@functools.lru_cache(maxsize=256)
def trade_off_of_steps(steps: Steps) -> TradeOff:
    """Return the bound for Poisson-sampled Gaussian steps, by their privacy loss distribution."""
    interval = max((_INTERVAL, *(interval_for(noise_multiplier) for _, noise_multiplier, _ in steps)))
    losses = compose_losses(steps, interval)
    most = min(_MOST_EPSILON, float(losses.get_epsilon_for_delta(_NEVER)))
    epsilons = np.linspace(0.0, most, _POINTS)
    deltas = [float(losses.get_delta_for_epsilon(float(epsilon))) for epsilon in epsilons]  # all at once is slower
    return TradeOff(epsilons, np.array(deltas) + _NEVER)


def trade_off_of_curve(curve: Mapping[float, float]) -> TradeOff:
    """Return the bound for anything of this Rényi divergence at every order, such as the best of several runs."""
    orders, bounds = list(curve), list(curve.values())
    with quiet():
        most = min(_MOST_EPSILON, float(rdp.compute_epsilon(orders, bounds, _NEVER)[0]))
        epsilons = np.linspace(0.0, most, _POINTS)
        deltas = [min(1.0, float(rdp.compute_delta(orders, bounds, epsilon)[0])) for epsilon in epsilons]
    return TradeOff(epsilons, np.array(deltas))
