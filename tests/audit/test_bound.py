"""The bound on epsilon from right guesses: the paper's own numbers, and mechanisms whose epsilon is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dptrain.audit import epsilon_lower_bound, p_value
from dptrain.errors import ConfigError

DELTA = 1e-5


@pytest.mark.parametrize(
    ("canaries", "guesses", "correct", "delta", "expected"),
    [
        (100, 100, 75, 0.0, 0.702),  # appendix D
        (100, 100, 75, 1e-4, 0.699),  # appendix D
        (1000, 100, 75, 1e-4, 0.673),  # appendix D
        (100_000, 1510, 1439, 1e-5, 2.675),  # section 7
    ],
)
def test_the_bound_is_the_one_that_steinke_nasr_and_jagielski_print(
    canaries: int, guesses: int, correct: int, delta: float, expected: float
) -> None:
    found = epsilon_lower_bound(canaries=canaries, guesses=guesses, correct=correct, delta=delta)
    assert found == pytest.approx(expected, abs=1e-3)  # the paper rounds some and cuts others


def test_the_p_value_is_the_one_that_they_print() -> None:
    assert p_value(canaries=100, guesses=100, correct=75, epsilon=math.log(3), delta=0) == pytest.approx(
        0.553, abs=5e-4
    )


def test_the_bound_is_where_the_p_value_meets_the_level() -> None:
    numbers = {"canaries": 2000, "guesses": 200, "correct": 170, "delta": DELTA}
    found = epsilon_lower_bound(**numbers, confidence=0.9)
    assert p_value(**numbers, epsilon=found) == pytest.approx(0.1, abs=1e-9)


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_randomised_response_passes_its_own_epsilon_as_rarely_as_stated(epsilon: float) -> None:
    """The tightest mechanism there is: a right guess has exactly the chance e^eps / (1 + e^eps)."""
    rng = np.random.default_rng(0)
    runs, guesses, confidence = 4000, 150, 0.9
    correct = rng.binomial(guesses, 1 / (1 + math.exp(-epsilon)), runs)
    bounds = {
        v: epsilon_lower_bound(canaries=guesses, guesses=guesses, correct=int(v), delta=0, confidence=confidence)
        for v in set(correct.tolist())
    }
    passed = np.mean([bounds[v] > epsilon for v in correct.tolist()])
    assert 0.04 < passed < 0.115  # at most 0.1, and not far below: binomial steps, three standard errors


def test_chance_guesses_prove_nothing() -> None:
    assert epsilon_lower_bound(canaries=100, guesses=100, correct=55, delta=0) == 0
    assert epsilon_lower_bound(canaries=100, guesses=0, correct=0, delta=0) == 0


def test_delta_and_abstentions_weaken_the_bound() -> None:
    numbers = {"guesses": 100, "correct": 90}
    bounds = [epsilon_lower_bound(canaries=m, delta=d, **numbers) for m, d in ((100, 0), (100, 1e-4), (1000, 1e-4))]
    assert bounds[0] > bounds[1] > bounds[2] > 0


def test_impossible_numbers_are_refused() -> None:
    for wrong in ({"correct": 11}, {"guesses": 21}, {"delta": 1.0}, {"confidence": 1.0}, {"correct": -1}):
        with pytest.raises(ConfigError, match=r"confidence|delta|correct"):
            epsilon_lower_bound(**{"canaries": 20, "guesses": 10, "correct": 9, "delta": 0, **wrong})
