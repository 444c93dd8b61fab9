"""The bound from the whole trade-off curve: never above what is true, and near it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.stats import binom

from dptrain.audit import Family, default_plan, epsilon_lower_bound, f_dp_lower_bound
from dptrain.audit.f_dp import refutes
from dptrain.privacy.trade_off import TradeOff, trade_off_of_steps

DELTA = 1e-5


def gaussian(sigma: float) -> TradeOff:
    return trade_off_of_steps(((1.0, sigma, 1),))


def guess(sigma: float, canaries: int, guesses: int, rng: np.random.Generator) -> int:
    """How many guesses by rank are right, of one canary's unit step each behind Gaussian noise."""
    included = rng.random(canaries) < 0.5
    order = included[np.argsort(included + sigma * rng.standard_normal(canaries))]
    half = guesses // 2
    return int(order[canaries - half :].sum() + (~order[:half]).sum())


@pytest.mark.parametrize(("sigma", "canaries", "guesses"), [(0.3, 400, 100), (0.66, 1000, 100), (2.0, 1000, 400)])
def test_the_gaussian_mechanism_is_not_refuted_more_often_than_stated(
    sigma: float, canaries: int, guesses: int
) -> None:
    """Its own curve is the hypothesis, and the best test there is has made the guesses."""
    rng = np.random.default_rng(0)
    curve, runs = gaussian(sigma), 500
    sizes = {"canaries": canaries, "guesses": guesses}
    wrong = sum(refutes(curve, **sizes, correct=guess(sigma, canaries, guesses, rng), alpha=0.05) for _ in range(runs))
    assert wrong <= binom.isf(1e-3, runs, 0.05)


def test_subsampled_steps_are_not_refuted_more_often_than_stated() -> None:
    rng = np.random.default_rng(1)
    rate, steps, sigma, canaries, guesses, runs = 0.3, 5, 0.6, 500, 100, 300
    curve, wrong = trade_off_of_steps(((rate, sigma, steps),)), 0
    for _ in range(runs):
        included = rng.random(canaries) < 0.5
        drawn = included & (rng.random((steps, canaries)) < rate)
        x = drawn + sigma * rng.standard_normal((steps, canaries))
        scores = np.logaddexp(math.log1p(-rate), math.log(rate) + (2 * x - 1) / (2 * sigma**2)).sum(0)
        order = included[np.argsort(scores)]
        correct = int(order[-guesses // 2 :].sum() + (~order[: guesses // 2]).sum())
        wrong += refutes(curve, canaries=canaries, guesses=guesses, correct=correct, alpha=0.05)
    assert wrong <= binom.isf(1e-3, runs, 0.05)


def test_a_mechanism_with_less_noise_than_the_curve_is_refuted() -> None:
    rng = np.random.default_rng(2)
    found = [refutes(gaussian(1.6), canaries=1000, guesses=100, correct=guess(0.66, 1000, 100, rng), alpha=0.05)
             for _ in range(20)]  # fmt: skip
    assert all(found)


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_randomised_response_is_not_refuted_more_often_than_stated(epsilon: float) -> None:
    """Its right guesses are binomial, so that the chance of being wrong is known and no simulation is needed."""
    curve = TradeOff(np.array([epsilon]), np.array([0.0]))
    guesses, chance = 200, 1 / (1 + math.exp(-epsilon))
    for alpha in (0.05, 0.001):
        least = next(v for v in range(guesses + 1)
                     if refutes(curve, canaries=guesses, guesses=guesses, correct=v, alpha=alpha))  # fmt: skip
        assert binom.sf(least - 1, guesses, chance) <= alpha


def test_no_law_of_right_guesses_that_the_curve_allows_is_refuted() -> None:
    """The recursion against a linear program over all laws of the count, with every constraint on the tails."""
    curve = gaussian(2.0)
    slopes, offsets = curve._lines
    for canaries, guesses, correct in ((12, 8, 8), (20, 6, 5), (9, 9, 7), (40, 10, 9)):
        counts = np.arange(guesses + 1)
        rows, limits = [], []
        for k in range(guesses):
            wrong = np.where(counts >= k, guesses - counts, 0) / canaries
            right = np.where(counts > k, counts, 0) / canaries
            rows.append(slopes[:, None] * right - wrong)  # slope R + offset - H <= 0
            limits.append(-offsets)
        best = linprog(
            -(counts >= correct).astype(float), A_ub=np.vstack(rows), b_ub=np.concatenate(limits),
            A_eq=np.ones((1, guesses + 1)), b_eq=[1.0],
        )  # fmt: skip
        most = -best.fun
        seen = {"canaries": canaries, "guesses": guesses, "correct": correct}
        assert 0 < most < 1
        assert not refutes(curve, **seen, alpha=most * (1 - 1e-6))
        assert refutes(curve, **seen, alpha=most * (1 + 1e-6))


def test_fewer_right_guesses_and_more_canaries_prove_less() -> None:
    family = Family(1.0, 1, 0.66, DELTA)
    bounds = [
        f_dp_lower_bound(family, canaries=m, guesses=100, correct=v) for v, m in ((99, 500), (92, 500), (92, 900))
    ]
    assert all(higher > lower > 0 for higher, lower in itertools.pairwise(bounds))
    assert f_dp_lower_bound(family, canaries=500, guesses=100, correct=50) == 0
    assert f_dp_lower_bound(family, canaries=500, guesses=100, correct=52) < 0.2
    loose = f_dp_lower_bound(family, canaries=500, guesses=100, correct=92, confidence=0.5)
    assert loose > f_dp_lower_bound(family, canaries=500, guesses=100, correct=92, confidence=0.999) > 0


def test_the_bound_is_the_epsilon_of_the_most_noise_that_is_refuted() -> None:
    family = Family(0.5, 10, 1.0, DELTA)
    found = f_dp_lower_bound(family, canaries=1000, guesses=100, correct=93)
    low, high = 0.3, 5.0  # by another search
    for _ in range(30):
        middle = (low + high) / 2
        seen = refutes(family.trade_off(middle), canaries=1000, guesses=100, correct=93, alpha=0.05)
        low, high = (low, middle) if seen else (middle, high)
    assert family.epsilon(high) * 0.99 < found <= family.epsilon(high) * 1.001


def test_in_the_ideal_the_curve_proves_half_of_epsilon_8_and_the_pair_does_not() -> None:
    """What an audit of more canaries sees, by simulation of its mechanism: 10,000 canaries, 1,000 guesses."""
    plan = default_plan()
    family = Family.of(plan)
    assert family is not None
    rng = np.random.default_rng(4)
    rate, sigma, scores = plan.sample_rate, plan.noise_multiplier, np.zeros(10_000)
    included = rng.random(10_000) < 0.5
    for _ in range(plan.steps):
        x = (included & (rng.random(10_000) < rate)) + sigma * rng.standard_normal(10_000)
        scores += np.logaddexp(math.log1p(-rate), math.log(rate) + (2 * x - 1) / (2 * sigma**2))
    order = included[np.argsort(scores)]
    seen = {"canaries": 10_000, "guesses": 1000, "correct": int(order[-500:].sum() + (~order[:500]).sum())}
    by_curve = f_dp_lower_bound(family, **seen, confidence=0.975)
    by_pair = epsilon_lower_bound(**seen, delta=DELTA, confidence=0.975)
    assert 0.5 < by_curve / plan.epsilon() < 1
    assert by_pair < 0.45 * plan.epsilon()


def test_no_family_where_its_loss_distributions_take_minutes() -> None:
    assert Family.of(default_plan(noise_multiplier=0.01)) is None
    assert Family.of(default_plan(steps=2_000_000, noise_multiplier=1000.0)) is None
