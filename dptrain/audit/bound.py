"""The lower bound on epsilon that right guesses prove (Steinke, Nasr and Jagielski 2023, theorem 5.2).

Each of m canaries is in the training set by a fair coin. Whoever sees the run's output ranks them and guesses for the
most and the least suspicious ones, abstaining from the rest. If training is (epsilon, delta)-differentially private
for one canary more or less, right guesses can hardly be more frequent than e^epsilon / (1 + e^epsilon).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import ConfigError

_MOST = 100.0  # an epsilon that no number of canaries can tell from infinity
_HALVINGS = 60


@dataclass(frozen=True)
class Guesses:
    """What one number of guesses came to.

    Attributes:
        guesses: r, the canaries guessed for; the others are abstentions.
        correct: v of them were right.
        epsilon_lower_bound: What they prove.
        confidence: At which the bound holds; higher than that of the audit where several numbers were tried.
    """

    guesses: int
    correct: int
    epsilon_lower_bound: float
    confidence: float


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
    are tried, use :func:`best_guesses`.

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


def best_guesses(
    scores: np.ndarray,
    included: np.ndarray,
    counts: Sequence[int],
    *,
    delta: float,
    confidence: float = 0.95,
) -> Guesses:
    """Guess by rank, for each number of guesses in ``counts``, and return the highest bound.

    Half of the guesses (the odd one too) say that the canaries of the highest scores are in, the others that those of
    the lowest are out. With k numbers tried, each bound is taken at confidence 1 - (1 - confidence) / k, so that all
    of them hold together (union bound) and the highest may be reported.

    Args:
        scores: Shape (m,); higher means more likely in. They must not depend on ``included`` but through the output.
        included: Whether each canary was in, bool of shape (m,).
        counts: Numbers of guesses, chosen before the scores were seen.
        delta, confidence: See :func:`epsilon_lower_bound`.
    """
    check_counts(counts, len(scores))
    if scores.shape != included.shape or scores.ndim != 1:
        raise ConfigError(
            f"{scores.shape} scores for {included.shape} canaries: they must be two vectors of one length"
        )
    if not np.isfinite(scores).all():
        raise ConfigError(f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores are not finite")
    each = 1.0 - (1.0 - confidence) / len(counts)
    order = included[np.argsort(scores, kind="stable")]
    found = []
    for count in counts:
        top, bottom = order[len(order) - (count + 1) // 2 :], order[: count // 2]
        correct = int(top.sum() + (~bottom).sum())
        bound = epsilon_lower_bound(canaries=len(scores), guesses=count, correct=correct, delta=delta, confidence=each)
        found.append(Guesses(count, correct, bound, each))
    return max(found, key=lambda guess: guess.epsilon_lower_bound)


def check_counts(counts: Sequence[int], canaries: int) -> None:
    """Refuse numbers of guesses that cannot be made."""
    if not len(counts):
        raise ConfigError("guesses=[] holds no number of guesses: give one, such as 100")
    for count in counts:
        if not 1 <= count <= canaries:
            raise ConfigError(f"guesses={count} must be from 1 to the number of canaries, {canaries}")


def _check(canaries: int, guesses: int, correct: int, delta: float) -> None:
    if not 0 <= correct <= guesses <= canaries:
        raise ConfigError(
            f"correct={correct}, guesses={guesses}, canaries={canaries}: there cannot be more right guesses than "
            "guesses, nor more guesses than canaries"
        )
    if not 0.0 <= delta < 1.0:
        raise ConfigError(f"delta={delta} is not in [0, 1)")
