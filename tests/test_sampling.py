"""Poisson sampling: every unit on its own coin."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from dptrain import ConfigError
from dptrain.noise import NoiseStream
from dptrain.sampling import PoissonSampler


def _inclusions(units: int, rate: float, draws: int) -> np.ndarray:
    sampler = PoissonSampler(units, rate, NoiseStream())
    table = np.zeros((draws, units), dtype=bool)
    for row, draw in enumerate(sampler.draws(draws)):
        table[row, draw.indices] = True
        assert len(set(draw.indices)) == len(draw.indices)
    return table


def test_every_unit_is_drawn_at_the_rate() -> None:
    table = _inclusions(units=50, rate=0.13, draws=4000)
    for count in table.sum(0):
        assert stats.binomtest(int(count), 4000, 0.13).pvalue > 1e-7


def test_draw_sizes_vary_as_independent_coins_do() -> None:
    """A shuffled loader of fixed batches has variance 0 here."""
    sizes = _inclusions(units=60, rate=0.2, draws=4000).sum(1)
    expected = stats.binom(60, 0.2)
    frequencies = np.bincount(sizes, minlength=61)
    keep = expected.pmf(np.arange(61)) * 4000 > 5
    observed, wanted = frequencies[keep], expected.pmf(np.arange(61))[keep] * 4000
    assert stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > 1e-7


def test_units_and_steps_are_independent() -> None:
    table = _inclusions(units=8, rate=0.5, draws=4000).astype(float)
    between_units = np.corrcoef(table.T) - np.eye(8)
    assert np.abs(between_units).max() < 0.1
    assert abs(np.corrcoef(table[:-1, 0], table[1:, 0])[0, 1]) < 0.1


def test_empty_draws_are_draws() -> None:
    draws = list(PoissonSampler(3, 0.01, NoiseStream()).draws(200))
    assert len(draws) == 200
    assert any(len(draw.indices) == 0 for draw in draws)


def test_rate_one_draws_all_and_no_units_draw_none() -> None:
    assert len(PoissonSampler(7, 1.0, NoiseStream()).draw(0).indices) == 7
    assert len(PoissonSampler(0, 0.5, NoiseStream()).draw(0).indices) == 0


def test_adding_a_unit_at_the_end_leaves_the_others_draws_alone() -> None:
    small = PoissonSampler(40, 0.3, NoiseStream(seed=1, purpose="sampling"))
    large = PoissonSampler(41, 0.3, NoiseStream(seed=1, purpose="sampling"))
    for step in range(50):
        assert small.draw(step).seed == large.draw(step).seed
        assert np.array_equal(small.draw(step).indices, [i for i in large.draw(step).indices if i < 40])


def test_augmentation_seeds_are_fresh_every_step() -> None:
    seeds = [draw.seed for draw in PoissonSampler(5, 0.5, NoiseStream()).draws(100)]
    assert len(set(seeds)) == 100


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, float("nan")])
def test_a_rate_that_is_no_probability_is_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match="sample_rate"):
        PoissonSampler(5, rate, NoiseStream())
