"""The lower bound on epsilon from the whole trade-off curve (Mahloujifar, Melis and Chaudhuri 2024, algorithm 3).

A pair (epsilon, delta) says the same of every guess. A trade-off curve says more of rare events, so that it allows
fewer right guesses among the most suspicious canaries, and the same guesses refute more.

Let P_k be the chance of k right guesses or more, of r guesses for m canaries. Turn one canary's coin: with the same
output a right guess becomes a wrong one. So the chance that it is guessed rightly and k + 1 or more are right, and the
chance that it is guessed wrongly and k or more are right, are those of one event on neighbouring datasets. With g(y),
the least chance on one of an event of chance y on the other (convex), and the mean over all canaries and coins:

    (1/m) sum over j >= k of (r - j) p_j  >=  g((1/m) sum over j > k of j p_j).

With D_k = P_{k+1} + P_{k+2} + ..., the left sum is (r - k) P_k - D_k and the right one k P_{k+1} + D_k. Both D_k and
P_{k+1} on the right only raise P_k. So from P_v = alpha and nothing above v, going down gives the least P_k that the
curve allows; if one passes 1, v right guesses had a chance below alpha.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..privacy import accounting
from ..privacy.plan import PrivacyPlan
from ..privacy.trade_off import TradeOff, trade_off_of_steps

_MOST = 100.0  # an epsilon that no number of canaries can tell from infinity
_WIDER = 1.25  # by which the noise is changed in search of a bracket
_CLOSE = 1e-3  # of the noise multiplier, relative
_MOST_NOISE = 1e3  # times the plan's: an epsilon of next to nothing


def refutes(trade_off: TradeOff, *, canaries: int, guesses: int, correct: int, alpha: float) -> bool:
    """Return whether training that keeps this curve had this many right guesses with a chance below ``alpha``.

    Args:
        trade_off: The hypothesis, for adding or removing one canary.
        canaries: m, each in by a fair coin of its own.
        guesses: r <= m, a number that the guesses' outcome has not decided.
        correct: v <= r.
        alpha: In (0, 1).
    """
    if correct == 0:
        return False
    reached, above = alpha, 0.0  # P_{k+1} and D_{k+1}
    for k in range(correct - 1, -1, -1):
        above += reached
        least = canaries * trade_off.least((k * reached + above) / canaries)
        reached = max(reached, (above + least) / (guesses - k))
        if reached > 1.0:
            return True
    return False


@dataclass(frozen=True)
class Family:
    """Training runs of one rate and number of steps with any noise: what the guesses are held against.

    Attributes:
        sample_rate, steps: Of all of them.
        noise_multiplier: Of the plan, where the search begins.
        delta: At which their epsilons are told.
    """

    sample_rate: float
    steps: int
    noise_multiplier: float
    delta: float

    @classmethod
    def of(cls, plan: PrivacyPlan) -> Family | None:
        """Return the family of a plan; None where its loss distribution would take minutes."""
        if plan.epsilon() > accounting.PLD_UP_TO_EPSILON or plan.steps > accounting.PLD_UP_TO_STEPS:
            return None
        return cls(plan.sample_rate, plan.steps, plan.noise_multiplier, plan.delta)

    def trade_off(self, noise_multiplier: float) -> TradeOff:
        """Return the curve at this noise."""
        return trade_off_of_steps(((self.sample_rate, noise_multiplier, self.steps),))

    def epsilon(self, noise_multiplier: float, accountant: str = "pld") -> float:
        """Return the epsilon at this noise."""
        return accounting.dp_sgd_epsilon(self.sample_rate, self.steps, noise_multiplier, self.delta, accountant)


def f_dp_lower_bound(family: Family, *, canaries: int, guesses: int, correct: int, confidence: float = 0.95) -> float:
    """Return the largest epsilon of the family's members that the guesses refute; 0 where they refute none.

    Guarantee: for training that is at least as private as a member of the family, the result is above that member's
    epsilon (PLD) with chance at most ``1 - confidence``, provided that the number of guesses was chosen before their
    outcome was known. Of training outside the family it says only that no member with less epsilon describes it.
    """
    if 2 * correct <= guesses:
        return 0.0

    def refuted(noise: float) -> bool:
        return refutes(
            family.trade_off(noise), canaries=canaries, guesses=guesses, correct=correct, alpha=1.0 - confidence
        )

    kept = found = family.noise_multiplier  # in the end the most noise that is not refuted, and the least that is
    if refuted(found):
        while refuted(kept := found / _WIDER):
            found = kept
            if family.epsilon(found, "rdp") > _MOST:
                return family.epsilon(found)
    else:
        while not refuted(found := kept * _WIDER):
            kept = found
            if kept > _MOST_NOISE * family.noise_multiplier:
                return 0.0
    while found - kept > _CLOSE * kept:
        middle = math.sqrt(kept * found)
        kept, found = (kept, middle) if refuted(middle) else (middle, found)
    return family.epsilon(found)
