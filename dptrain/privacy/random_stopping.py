"""The number of runs of a tuning: secret, and drawn from a distribution that the bound holds for.

Reference: Papernot and Steinke (2022): definition 1 (truncated negative binomial) and theorem 6 (Poisson).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dp_accounting.dp_event import DpEvent
import itertools
import math
from collections.abc import Iterator
from random import Random

MOST_MEAN_RUNS = 500
STOPPINGS = ("geometric", "poisson", "logarithmic")


def draw_runs(distribution: str, mean: float, random: Random) -> int:
    """Draw the number of runs: ``geometric`` and ``logarithmic`` give at least 1, ``poisson`` may give 0.

    By inversion of the distribution function at a uniform number of 53 bits.
    """
    uniform, cumulated = random.random(), 0.0
    for count, chance in _chances(distribution, mean):
        cumulated += chance
        if uniform < cumulated or (count > mean and chance < 1e-18):
            return count
    raise AssertionError("the chances add up to 1")


def _chances(distribution: str, mean: float) -> Iterator[tuple[int, float]]:
    """The number of runs and its probability, from the smallest number on."""
    if distribution == "poisson":
        chance = math.exp(-mean)
        for count in itertools.count():
            yield count, chance
            chance *= mean / (count + 1)
    gamma = 1 / mean if distribution == "geometric" else _logarithmic_gamma(mean)
    for count in itertools.count(1):
        power = (1 - gamma) ** (count - 1)
        yield count, power * (gamma if distribution == "geometric" else (1 - gamma) / (count * -math.log(gamma)))


def _logarithmic_gamma(mean: float) -> float:
    """Solve (1/gamma - 1) / ln(1/gamma) = mean (definition 1 of the paper, shape 0), from the safe side.

    A larger gamma means fewer runs and a smaller bound than the one that is accounted.
    """
    low, high = 1e-12, 1 - 1e-12
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 / middle - 1) / -math.log(middle) > mean else (low, middle)
    return min(high * (1 + 1e-8), 1 - 1e-12)


RANDOM_STOPPING = {"geometric": 1.0, "logarithmic": 0.0, "poisson": math.inf}  # the shape of each distribution


def random_stopping_event(event: DpEvent, mean: float, distribution: str) -> DpEvent:
    """Return the event of releasing the best of a random number of runs (Papernot and Steinke 2022).

    Args:
        event: Of every one of the runs.
        mean: Expected number of runs.
        distribution: Of that number: ``geometric``, ``logarithmic`` or ``poisson``.
    """
    from dp_accounting import dp_event

    return dp_event.RepeatAndSelectDpEvent(event, mean, RANDOM_STOPPING[distribution])
