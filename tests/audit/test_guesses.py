"""Guesses by rank: the extremes are guessed, and whatever else was tried costs confidence."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest

from dptrain.audit import Family, all_bounds, epsilon_lower_bound, f_dp_lower_bound, guesses
from dptrain.audit.guesses import CURVE, PAIR, rate_reached
from dptrain.errors import ConfigError


def test_trying_many_numbers_of_guesses_does_not_raise_the_rate_of_false_alarms(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Randomised response again, with scores that say nothing else: the best of ten numbers, corrected."""
    monkeypatch.setattr(guesses, "epsilon_lower_bound", functools.cache(epsilon_lower_bound))
    rng = np.random.default_rng(1)
    epsilon, canaries, runs = 1.0, 200, 800
    counts = list(range(20, canaries + 1, 20))
    corrected = uncorrected = 0
    for _ in range(runs):
        included = rng.random(canaries) < 0.5
        told = included ^ (rng.random(canaries) > 1 / (1 + math.exp(-epsilon)))
        scores = np.where(told, 1.0, -1.0) * rng.random(canaries)
        corrected += all_bounds(scores, included, counts, delta=0, confidence=0.9)[0].epsilon_lower_bound > epsilon
        each = (all_bounds(scores, included, [count], delta=0, confidence=0.9)[0] for count in counts)
        uncorrected += max(guess.epsilon_lower_bound for guess in each) > epsilon
    assert corrected / runs <= 0.1
    assert uncorrected / runs > 0.15  # so that the test can fail


def test_the_gaussian_mechanism_passes_its_own_epsilon_as_rarely_as_stated() -> None:
    from dptrain.privacy.accounting import dp_sgd_epsilon

    rng = np.random.default_rng(2)
    sigma, canaries = 1.0, 500
    claim = dp_sgd_epsilon(1.0, 1, sigma, 0.05, "pld")  # a large delta: its term is what is tested
    passed = 0
    for _ in range(200):
        included = rng.random(canaries) < 0.5
        scores = included + sigma * rng.standard_normal(canaries)
        passed += all_bounds(scores, included, [60], delta=0.05, confidence=0.9)[0].epsilon_lower_bound > claim
    assert passed <= 20


def test_guesses_are_the_extremes_of_the_scores() -> None:
    included = np.array([False, False, True, False, True, True])
    assert all_bounds(np.arange(6.0), included, [3], delta=0)[0].correct == 3
    assert all_bounds(np.arange(6.0), included, [6], delta=0)[0].correct == 4
    assert all_bounds(-np.arange(6.0), included, [2], delta=0)[0].correct == 0


def test_both_tests_share_the_chance_of_being_wrong() -> None:
    """Two tests of the same guesses, each at 95 %, would be wrong together in up to 10 % of correct runs."""
    rng = np.random.default_rng(3)
    included = rng.random(1000) < 0.5
    scores = included + 0.7 * rng.standard_normal(1000)
    family = Family(1.0, 1, 0.7, 1e-5)
    for counts in ([100], [60, 100]):
        found = all_bounds(scores, included, counts, delta=1e-5, family=family)
        each = 1 - 0.05 / (2 * len(counts))
        assert {(bound.test, bound.guesses) for bound in found} == {(t, n) for t in (PAIR, CURVE) for n in counts}
        assert [bound.confidence for bound in found] == pytest.approx([each] * len(found), rel=1e-12)
        for bound in found:
            seen = {"canaries": 1000, "guesses": bound.guesses, "correct": bound.correct, "confidence": each}
            alone = epsilon_lower_bound(**seen, delta=1e-5) if bound.test == PAIR else f_dp_lower_bound(family, **seen)
            assert bound.epsilon_lower_bound == pytest.approx(alone, rel=1e-6)
        assert [bound.epsilon_lower_bound for bound in found] == sorted(
            (bound.epsilon_lower_bound for bound in found), reverse=True
        )


def test_the_rate_that_was_reached_counts_no_more_false_alarms_than_were_allowed() -> None:
    included = np.array([True] * 4 + [False] * 100)
    scores = np.concatenate(([100.5, 99.5, 98.5, 0.5], np.arange(1.0, 101.0)))
    assert rate_reached(scores, included, 0.001) == 1 / 4  # above all of those out
    assert rate_reached(scores, included, 0.01) == 2 / 4
    assert rate_reached(scores, included, 0.02) == 3 / 4
    assert rate_reached(scores[:4], included[:4], 0.01) == 0


def test_scores_and_numbers_that_cannot_be_judged_are_refused() -> None:
    with pytest.raises(ConfigError, match="not finite"):
        all_bounds(np.array([1.0, np.nan]), np.array([True, False]), [1], delta=0)
    with pytest.raises(ConfigError, match="guesses=3"):
        all_bounds(np.zeros(2), np.array([True, False]), [3], delta=0)
