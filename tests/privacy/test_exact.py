"""Exact noise: its law, what it is worth, and that one unit moves the whole numbers by no more than the sensitivity."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from dptrain import ConfigError, PrivacyPlan
from dptrain.privacy import exact, noise
from dptrain.privacy.accounting import dp_sgd_event, rdp_curve
from dptrain.privacy.exact import SENSITIVITY, discrete_gaussian, to_grid, variance
from dptrain.privacy.noise import privatize
from dptrain.privacy.streams import NoiseStream

from ..training.test_trainer import Batches, X, Y, make, plan, weights

SIGNIFICANCE = 1e-6


def law(parameter: float, reach: int) -> np.ndarray:
    """The chances of -reach to reach."""
    chances = np.exp(-(np.arange(-reach, reach + 1.0) ** 2) / (2 * parameter))
    return chances / chances.sum()


@pytest.mark.parametrize("parameter", [1, 3, 40])
def test_small_noise_has_the_law_of_the_discrete_gaussian_and_no_other(parameter: int) -> None:
    found = discrete_gaussian(600_000, parameter, NoiseStream()).numpy()
    reach = int(4 * math.sqrt(parameter))
    seen = np.bincount(np.clip(found, -reach, reach) + reach, minlength=2 * reach + 1)

    def fit(of: float) -> float:
        expected = law(of, 40 * reach)[39 * reach : 41 * reach + 1] * len(found)
        expected[0] = expected[-1] = (len(found) - expected[1:-1].sum()) / 2  # the tails beyond are counted there
        return float(stats.chisquare(seen, expected).pvalue)

    assert fit(parameter) > SIGNIFICANCE
    assert fit(parameter * 1.04) < SIGNIFICANCE and fit(parameter * 0.96) < SIGNIFICANCE


@pytest.mark.parametrize("multiplier", [1e-3, 0.7, 1e6])
def test_noise_of_any_size_has_the_scale_asked_for(multiplier: float) -> None:
    parameter = variance(multiplier, SENSITIVITY)
    found = discrete_gaussian(60_001, parameter, NoiseStream())
    assert found.shape == (60_001,) and found.dtype == torch.int64
    scaled = found.double().numpy() / (multiplier * SENSITIVITY)
    assert stats.kstest(scaled, "norm").pvalue > SIGNIFICANCE

    def fit(scale: float) -> float:  # of the sum of squares, which tells scales apart far better than the law's shape
        squares = float((scaled**2).sum()) / scale**2
        return 2 * min(stats.chi2.cdf(squares, len(scaled)), stats.chi2.sf(squares, len(scaled)))

    assert fit(1.0) > SIGNIFICANCE
    assert fit(1.05) < SIGNIFICANCE and fit(0.95) < SIGNIFICANCE
    assert len(np.unique(found % 1024)) > 1000, "the lowest digits are random too"


@pytest.mark.parametrize("parameter", [1, 7, variance(1.1, SENSITIVITY)])
def test_floating_point_decides_as_whole_numbers_do(parameter: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a doubt that is never settled, every comparison is made exactly; the same numbers must come out."""
    quick = discrete_gaussian(500, parameter, NoiseStream(seed=1))
    monkeypatch.setattr(exact, "_DOUBT", math.inf)
    assert torch.equal(quick, discrete_gaussian(500, parameter, NoiseStream(seed=1)))


def test_an_undecided_comparison_asks_for_more_digits() -> None:
    middle = int(Fraction(math.exp(-1)) * 2**64)  # right to 53 digits only
    digits = (
        "0.36787944117144232159552377016146086744581113103176783450783680169746149574489980335714727434591964374662"
    )
    nearest = int(Fraction(digits) * 2**64)
    below = [exact._Uniform(nearest + step, NoiseStream()).is_below_exp(Fraction(1)) for step in (-2, -1, 1, 2)]
    assert below == [True, True, False, False] and abs(middle - nearest) < 2**12
    answers = {exact._Uniform(nearest, NoiseStream()).is_below_exp(Fraction(1)) for _ in range(60)}
    assert answers == {True, False}, "the 64 digits leave it open, and fresh ones decide"


@pytest.mark.parametrize("multiplier", [0.75, 1.3])
def test_it_is_a_rounded_gaussian_of_the_multiplier_that_is_accounted(multiplier: float) -> None:
    """The argument that keeps every bound: integrate the rounding of a continuous Gaussian, and compare chances."""
    sensitivity = 4
    parameter = variance(multiplier, sensitivity)
    y, step = np.linspace(-80, 80, 400_001, retstep=True)
    spread = math.sqrt(parameter - 16)
    assert spread >= multiplier * sensitivity
    density = stats.norm.pdf(y, scale=spread)
    near = np.exp(-((np.arange(-140, 141)[:, None] - y[::50]) ** 2) / 32).sum(0)
    assert np.ptp(near) < 1e-12 * near[0], "the normaliser of the rounding does not depend on what is rounded"
    rounded = [(density * np.exp(-((x - y) ** 2) / 32)).sum() * step / near[0] for x in range(-20, 21)]
    expected = law(parameter, 400)[380:421]
    np.testing.assert_allclose(rounded, expected, rtol=1e-9)


@pytest.mark.parametrize("rate", [0.02, 0.3])
def test_a_sampled_step_costs_no_more_than_the_accountant_says(rate: float) -> None:
    """The Rényi divergence of the Poisson-sampled discrete Gaussian by summation, both ways, at every order."""
    sensitivity, multiplier = 6, 0.9
    parameter = variance(multiplier, sensitivity)
    x = np.arange(-400, 401.0)
    without = -(x**2) / (2 * parameter)
    with_it = -((x - sensitivity) ** 2) / (2 * parameter)
    norm = np.log(np.exp(without).sum())
    mixed = np.logaddexp(math.log1p(-rate) + without, math.log(rate) + with_it) - norm
    without -= norm
    for order, bound in rdp_curve(dp_sgd_event(rate, 1, multiplier)).items():
        for one, other in ((mixed, without), (without, mixed)):
            terms = order * one + (1 - order) * other
            top = terms.max()
            divergence = (top + math.log(np.exp(terms - top).sum())) / (order - 1)
            assert divergence <= bound * (1 + 1e-9), order


def test_one_unit_is_never_longer_than_the_sensitivity() -> None:
    generator = torch.Generator().manual_seed(0)
    for clip in (1e-3, 0.3, 17.0):
        for size in (1, 1000, 2_000_000):
            gradient = torch.randn(size, generator=generator)
            gradient *= clip / float(gradient.double().norm())
            whole = to_grid({"a": gradient[: size // 2], "b": gradient[size // 2 :]}, clip)
            length = sum(int(number) ** 2 for number in torch.cat(list(whole.values())).tolist()[:5000])
            length += int(sum(tensor.square().sum() for tensor in whole.values())) if size > 5000 else 0
            assert length > 0.99 * SENSITIVITY**2 if size <= 5000 else True
            squared = sum(int(tensor.square().sum()) for tensor in whole.values())
            assert 0.999 * SENSITIVITY**2 < squared <= SENSITIVITY**2


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30, 1.001])
def test_a_gradient_that_is_too_long_or_not_finite_becomes_zero(bad: float) -> None:
    whole = to_grid({"a": torch.tensor([bad]), "b": torch.ones(3)}, 1.0)
    assert all(tensor.dtype == torch.int64 and not tensor.any() for tensor in whole.values())


@pytest.mark.parametrize("length", [1.0001, 1.2, 1.41])
def test_a_gradient_a_little_too_long_becomes_zero_and_one_that_fits_is_kept(length: float) -> None:
    """Whole numbers decide, from the first length that the clip should never have let through."""
    gradient = torch.full((4,), length / 2, dtype=torch.float64)
    assert not to_grid({"a": gradient}, 1.0)["a"].any()
    assert to_grid({"a": gradient / length}, 1.0)["a"].all()


class Chosen(Batches):
    """Serves the examples that are there, whatever is drawn."""

    def __init__(self, chosen: list[int], size: int) -> None:
        super().__init__(size)
        self.chosen = chosen

    def steps(self, draws: Any) -> Any:
        for draw in draws:
            del draw
            yield ((X[part], Y[part]) for part in np.split(self.chosen, range(self.size, len(self.chosen), self.size)))


@pytest.mark.parametrize("size", [1, 3, 20])
def test_a_unit_more_adds_its_own_whole_numbers_and_changes_no_other(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal as whole numbers, wherever the units lie and whichever share a batch: no rounding is left over."""
    sums: list[dict[str, Tensor]] = []

    def door(value: dict[str, Tensor], **how: Any) -> dict[str, Tensor]:
        assert how["sensitivity"] == SENSITIVITY and how["noise_multiplier"] == 1.0
        sums.append({name: tensor.clone() for name, tensor in value.items()})
        return value

    monkeypatch.setattr(noise, "privatize", door)
    rows = list(range(20))
    for chosen in (rows, [*rows[:7], *rows[8:]], [7]):
        trainer = make(plan(steps=1), batches=Chosen(chosen, size), exact=True)
        next(trainer.run())
    for with_it, without, alone in zip(*(sums[k].values() for k in range(3)), strict=True):
        assert torch.equal(with_it - without, alone) and with_it.dtype == torch.int64
    assert 0.5 * SENSITIVITY**2 < sum(int(t.square().sum()) for t in sums[2].values()) <= SENSITIVITY**2


def test_exact_training_takes_the_same_steps_up_to_the_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "privatize", lambda value, **_: value)
    one, other = make(plan(), exact=True, seed=3), make(plan(), seed=3)
    list(one.run())
    list(other.run())
    assert torch.allclose(weights(one), weights(other), rtol=1e-3, atol=1e-5)
    assert not torch.equal(weights(one), weights(other))


def test_the_door_adds_whole_numbers_to_whole_numbers() -> None:
    value = {"a": torch.full((100, 200), 5, dtype=torch.int64), "b": torch.zeros(7, dtype=torch.int64)}
    noised = privatize(value, sensitivity=SENSITIVITY, noise_multiplier=1.3, stream=NoiseStream())
    assert all(tensor.dtype == torch.int64 and tensor.shape == value[name].shape for name, tensor in noised.items())
    added = (noised["a"] - 5).double().flatten().numpy() / SENSITIVITY
    assert stats.kstest(added, stats.norm(0, 1.3).cdf).pvalue > SIGNIFICANCE
    with pytest.raises(ConfigError, match="whole number"):
        privatize(value, sensitivity=0.5, noise_multiplier=1.3, stream=NoiseStream())


def test_what_reaches_the_optimizer_has_the_noise_of_the_plan() -> None:
    made = PrivacyPlan(0.1, 1, 1.7, 0.25, 1e-5, 8)
    total = {"w": torch.zeros(50_000, dtype=torch.int64)}
    gradient = made.mechanism(total).noise(total, NoiseStream())["w"].numpy()
    assert stats.kstest(gradient, stats.norm(0, 1.7 * 0.25 / 8).cdf).pvalue > SIGNIFICANCE


def test_several_units_at_once_are_refused() -> None:
    trainer = make(plan())
    with pytest.raises(ConfigError, match="one at a time"):
        trainer.clipped.on_grid((X[:2], Y[:2]))
