"""Error rates: what a claim leaves to an attacker is what is known of the Gaussian, and never less."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm

from dptrain.privacy import accounting
from dptrain.privacy.trade_off import FALSE_POSITIVE_RATES, TradeOff, trade_off_of_curve, trade_off_of_steps

CHANCES = (0.0, 1e-4, 1e-3, 1e-2, 0.3, 0.5, 0.9, 0.999, 1.0)


@pytest.mark.parametrize("mu", [0.05, 0.5, 1.5, 4.0])
def test_the_rates_of_one_gaussian_step_are_those_of_the_best_test(mu: float) -> None:
    """Neyman and Pearson: at false-positive rate x the most powerful test finds Phi(Phi^-1(x) + mu)."""
    found = trade_off_of_steps(((1.0, 1 / mu, 1),))
    for chance in CHANCES:
        exact = norm.cdf(norm.ppf(chance) + mu)
        assert exact - 1e-12 <= found.most(chance) <= exact * 1.001 + 1e-9
        exact = norm.cdf(norm.ppf(chance) - mu)
        assert exact * 0.99 - 1e-9 <= found.least(chance) <= exact + 1e-12


def test_most_and_least_are_inverse_to_one_another() -> None:
    found = trade_off_of_steps(((0.2, 0.9, 30),))
    for chance in (1e-3, 1e-2, 0.2, 0.7):
        assert found.least(found.most(chance)) == pytest.approx(chance, rel=1e-9)


def test_more_pairs_are_never_worse_and_one_pair_is_its_own_line() -> None:
    one = TradeOff(np.array([1.0]), np.array([1e-3]))
    assert one.most(0.01) == pytest.approx(1e-3 + np.e * 0.01)
    assert one.most(0.9) == pytest.approx(1 - (1 - 0.9 - 1e-3) / np.e)
    both = TradeOff(np.array([0.0, 1.0]), np.array([0.02, 1e-3]))
    assert both.most(0.9) == pytest.approx(0.92) and both.most(0.001) == pytest.approx(one.most(0.001))


@pytest.mark.parametrize(("rate", "steps", "noise"), [(0.05, 50, 1.0), (1.0, 3, 2.0), (0.5, 100, 3.323)])
def test_renyi_bounds_the_rates_too_and_more_loosely(rate: float, steps: int, noise: float) -> None:
    by_pld = trade_off_of_steps(((rate, noise, steps),))
    by_rdp = trade_off_of_curve(accounting.dp_sgd_rdp_curve(rate, steps, noise))
    for chance in (1e-3, 1e-2, 0.3):
        assert by_pld.most(chance) <= by_rdp.most(chance) < 4 * by_pld.most(chance)


def test_the_rates_of_a_run_grow_with_its_steps_from_those_of_a_coin() -> None:
    coin = FALSE_POSITIVE_RATES
    assert accounting.true_positive_rates(0.1, 0, 1.0, 1e-5) == coin
    assert accounting.true_positive_rates(0.0, 10, 1.0, 1e-5) == coin
    before = coin
    for steps in (1, 10, 100):
        now = accounting.true_positive_rates(0.1, steps, 1.0, 1e-5)
        epsilon = accounting.dp_sgd_epsilon(0.1, steps, 1.0, 1e-5, "pld")
        for name, rate in coin.items():
            assert before[name] < now[name] <= (1e-5 + np.exp(epsilon) * rate) * 1.001
        before = now


def test_with_hardly_any_noise_the_rates_are_there_at_once() -> None:
    assert accounting.true_positive_rates(0.5, 100, 0.01, 1e-5) == dict.fromkeys(FALSE_POSITIVE_RATES, 1.0)
    assert accounting.true_positive_rates(1e-4, 2_000_000, 100.0, 1e-5)["1 in 1000"] < 0.01


@pytest.mark.parametrize("epsilon", [0.01, 0.5, 8.0, 400.0])
def test_planted_units_move_a_chance_as_often_as_there_are_units(epsilon: float) -> None:
    bound = TradeOff(np.array([epsilon]), np.array([1e-6]))
    assert bound.most_after(0, 1e-3) == 1e-3
    assert bound.most_after(1, 1e-3) == bound.most(1e-3)
    chances = [bound.most_after(count, 1e-3) for count in range(12)]
    assert chances == sorted(chances) and chances[-1] <= 1.0
    for count, chance in enumerate(chances):  # never above the usual bound for groups
        grown = sum(math.exp(epsilon * step) for step in range(count)) if epsilon * count < 700 else math.inf
        usual = math.exp(epsilon * count) * 1e-3 + grown * 1e-6 if epsilon * count < 700 else 1.0
        assert chance <= min(1.0, usual) * (1 + 1e-9)


def test_planted_units_at_a_shift_of_gaussians_are_bounded() -> None:
    """k steps of mu are one of k mu: the true chance is that of the best test, and below the bound."""
    mu, chance = 0.3, 1e-3
    epsilons = np.linspace(0.0, 6.0, 200)
    deltas = norm.cdf(mu / 2 - epsilons / mu) - np.exp(epsilons) * norm.cdf(-mu / 2 - epsilons / mu)
    bound = TradeOff(epsilons, deltas)
    for count in (1, 3, 10):
        true = norm.sf(norm.isf(chance) - count * mu)
        assert true <= bound.most_after(count, chance) <= 1.05 * true + 1e-3
