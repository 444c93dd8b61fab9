"""The lower bound on epsilon that right guesses prove (Steinke, Nasr and Jagielski 2023, theorem 5.2).

Each of m canaries is in the training set by a fair coin. Whoever sees the run's output ranks them and guesses for the
most and the least suspicious ones, abstaining from the rest. If training is (epsilon, delta)-differentially private
for one canary more or less, right guesses can hardly be more frequent than e^epsilon / (1 + e^epsilon).
"""

from __future__ import annotations

import math

import numpy as np

from ..errors import ConfigError

_MOST = 100.0  # an epsilon that no number of canaries can tell from infinity
_HALVINGS = 60


def p_value(*, canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Return a bound on the chance of this many right guesses, if training is (epsilon, delta)-private.

    With p = e^epsilon / (1 + e^epsilon) and W binomial of r and p, it is
    P[W >= v] + 2 m delta max_i P[v - i <= W < v] / i, the maximum over i = 1 ... v (theorem 5.2).

    Args:
        canaries: m, each in by a fair coin of its own.
        guesses: r <= m, a number that the guesses' outcome has not decided.
        correct: v <= r.
        epsilon, delta: The hypothesis, for adding or removing one canary.
    """
    _check(canaries, guesses, correct, delta)
    if epsilon < 0:
        raise ConfigError(f"epsilon={epsilon} must not be negative")
    from scipy.stats import binom

    chance = 1.0 / (1.0 + math.exp(-epsilon))
    value = float(binom.sf(correct - 1, guesses, chance))
    if delta > 0 and correct > 0:
        below = np.cumsum(binom.pmf(np.arange(correct - 1, -1, -1), guesses, chance))
        value += 2.0 * canaries * delta * float((below / np.arange(1, correct + 1)).max())
    return min(value, 1.0)


def epsilon_lower_bound(*, canaries: int, guesses: int, correct: int, delta: float, confidence: float = 0.95) -> float:
    """Return an epsilon that training exceeds, at this confidence; 0 where the guesses prove nothing.

    Guarantee: for training that is (epsilon, delta)-private the result is above epsilon with chance at most
    ``1 - confidence``, provided that the number of guesses was chosen before their outcome was known. Where several
    are tried, use :func:`~dptrain.audit.all_bounds`.

    Raises:
        ConfigError: Not 0 <= correct <= guesses <= canaries, delta is not in [0, 1), or confidence not in (0, 1).
    """
    _check(canaries, guesses, correct, delta)
    if not 0.0 < confidence < 1.0:
        raise ConfigError(f"confidence={confidence} is not in (0, 1), such as 0.95")

    def refuted(epsilon: float) -> bool:
        value = p_value(canaries=canaries, guesses=guesses, correct=correct, epsilon=epsilon, delta=delta)
        return value <= 1.0 - confidence

    if guesses == 0 or not refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while refuted(high) and high < _MOST:
        low, high = high, 2.0 * high
    for _ in range(_HALVINGS):  # low is refuted all along, and with it every smaller epsilon
        middle = (low + high) / 2.0
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def _check(canaries: int, guesses: int, correct: int, delta: float) -> None:
    if not 0 <= correct <= guesses <= canaries:
        raise ConfigError(
            f"correct={correct}, guesses={guesses}, canaries={canaries}: there cannot be more right guesses than "
            "guesses, nor more guesses than canaries"
        )
    if not 0.0 <= delta < 1.0:
        raise ConfigError(f"delta={delta} is not in [0, 1)")
