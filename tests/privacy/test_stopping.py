"""Why a run that was stopped claims the epsilon of its plan: the worst rule of stopping, worked out to the end."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from dptrain import PrivacyPlan

STEPS, DELTA = 20, 1e-5
PLAN = PrivacyPlan(1.0, STEPS, math.sqrt(STEPS), 1.0, DELTA, 50)


def worst_delta(claims: Sequence[float], noise: float) -> float:
    """The delta that stopped runs need, if a run stopped after step t claims ``claims[t - 1]``, under the worst rule.

    The privacy loss of t Gaussian steps is a walk: each adds a normal of mean 1 / (2 noise^2) and variance 1 / noise^2.
    To stop at loss l after t steps adds max(0, 1 - e^(claims - l)) to the delta; to go on adds what the best rule adds
    from there. The first value of that optimal stopping problem is the answer, by backward induction on a grid.
    """
    mean, deviation = 1 / (2 * noise**2), 1 / noise
    spread = deviation * math.sqrt(len(claims))
    grid = np.linspace(-4 * spread, len(claims) * mean + 7 * spread, 2001)
    width = grid[1] - grid[0]
    reach = math.ceil(8 * deviation / width)
    step = np.exp(-(((np.arange(-reach, reach + 1) * width - mean) / deviation) ** 2) / 2)
    step /= step.sum()
    value = np.zeros_like(grid)
    for claim in reversed(claims):
        value = np.maximum(value, np.maximum(0.0, 1.0 - np.exp(claim - grid)))
        padded = np.concatenate([np.full(reach, value[0]), value, np.full(reach, value[-1])])
        value = np.convolve(padded, step[::-1], mode="valid")
    return float(np.interp(0.0, grid, value))


@pytest.mark.parametrize(("accountant", "least"), [("rdp", 1.6), ("pld", 6.0)])
def test_a_stop_chosen_by_looking_breaks_the_epsilon_of_the_steps_taken_and_not_that_of_the_plan(
    accountant: str, least: float
) -> None:
    taken = [PLAN.epsilon(accountant, steps=t) for t in range(1, STEPS + 1)]
    assert worst_delta(taken, PLAN.noise_multiplier) > least * DELTA
    planned = [PLAN.epsilon(accountant)] * STEPS
    assert worst_delta(planned, PLAN.noise_multiplier) <= DELTA * (1 + 1e-3)
