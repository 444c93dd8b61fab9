"""Guesses by rank, and the best bound that they prove: over numbers of guesses, and over two tests of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import ConfigError
from .bound import epsilon_lower_bound
from .f_dp import Family, f_dp_lower_bound

PAIR, CURVE = TESTS = ("(epsilon, delta)", "f-DP")


@dataclass(frozen=True)
class Guesses:
    """What one number of guesses came to by one test.

    Attributes:
        test: ``(epsilon, delta)`` (Steinke et al. 2023) or ``f-DP`` (Mahloujifar et al. 2024).
        guesses: r, the canaries guessed for; the others are abstentions.
        correct: v of them were right.
        epsilon_lower_bound: What they prove.
        confidence: At which the bound holds; higher than that of the audit where several were tried.
    """

    test: str
    guesses: int
    correct: int
    epsilon_lower_bound: float
    confidence: float


def all_bounds(
    scores: np.ndarray,
    included: np.ndarray,
    counts: Sequence[int],
    *,
    delta: float,
    family: Family | None = None,
    confidence: float = 0.95,
) -> list[Guesses]:
    """Guess by rank, for each number of guesses in ``counts``, and return every bound, the highest first.

    Half of the guesses (the odd one too) say that the canaries of the highest scores are in, the others that those of
    the lowest are out. With k numbers and both tests, each bound is taken at confidence 1 - (1 - confidence) / 2k, so
    that all of them hold together (union bound) and the highest may be reported.

    Args:
        scores: Shape (m,); higher means more likely in. They must not depend on ``included`` but through the output.
        included: Whether each canary was in, bool of shape (m,).
        counts: Numbers of guesses, chosen before the scores were seen.
        delta, confidence: See :func:`epsilon_lower_bound`.
        family: For the test by trade-off curves; None leaves it out, which must not depend on the scores either.
    """
    check_counts(counts, len(scores))
    if scores.shape != included.shape or scores.ndim != 1:
        raise ConfigError(
            f"{scores.shape} scores for {included.shape} canaries: they must be two vectors of one length"
        )
    if not np.isfinite(scores).all():
        raise ConfigError(f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores are not finite")
    tests = (PAIR,) if family is None else TESTS
    each = 1.0 - (1.0 - confidence) / (len(counts) * len(tests))
    order = included[np.argsort(scores, kind="stable")]
    found = []
    for count in counts:
        top, bottom = order[len(order) - (count + 1) // 2 :], order[: count // 2]
        correct = int(top.sum() + (~bottom).sum())
        seen = {"canaries": len(scores), "guesses": count, "correct": correct}
        found.append(Guesses(PAIR, count, correct, epsilon_lower_bound(**seen, delta=delta, confidence=each), each))
        if family is not None:
            found.append(Guesses(CURVE, count, correct, f_dp_lower_bound(family, **seen, confidence=each), each))
    return sorted(found, key=lambda guess: -guess.epsilon_lower_bound)


def check_counts(counts: Sequence[int], canaries: int) -> None:
    """Refuse numbers of guesses that cannot be made."""
    if not len(counts):
        raise ConfigError("guesses=[] holds no number of guesses: give one, such as 100")
    for count in counts:
        if not 1 <= count <= canaries:
            raise ConfigError(f"guesses={count} must be from 1 to the number of canaries, {canaries}")


def rate_reached(scores: np.ndarray, included: np.ndarray, false_positives: float) -> float:
    """Return the share of the canaries in that scores above all but this share of those out; no bound, a reading.

    Raises nothing: 0 where no canary was in or none was out.
    """
    inside, outside = scores[included], np.sort(scores[~included])
    if not len(inside) or not len(outside):
        return 0.0
    allowed = int(false_positives * len(outside))
    return float((inside > outside[-1 - allowed]).mean())
