"""Poisson sampling: every unit on its own coin."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from dptrain import ConfigError
from dptrain.privacy.sampling import PoissonSampler
from dptrain.privacy.streams import NoiseStream
from dptrain.privacy.units import UnitExamples


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


GROUPS = ["a", "b", "a", "c", "b", "a", "a"]


def test_a_units_rows_are_all_of_its_group_up_to_the_most() -> None:
    units = UnitExamples(GROUPS, most=4)
    assert [units.chosen(unit, 5).tolist() for unit in range(len(units))] == [[0, 2, 5, 6], [1, 4], [3]]
    assert UnitExamples(GROUPS, most=3, copies=4).most_at_once == 12
    assert len(UnitExamples([])) == 0


def test_every_subset_of_a_large_group_is_as_likely_and_drawn_anew_each_step() -> None:
    units = UnitExamples(["a"] * 4 + ["b"] * 4, most=2)
    drawn = [tuple(units.chosen(0, seed)) for seed in range(6000)]
    counts = [drawn.count(pair) for pair in ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))]
    assert sum(counts) == 6000 and stats.chisquare(counts).pvalue > 1e-7
    same = sum(tuple(units.chosen(1, seed) - 4) == drawn[seed] for seed in range(6000))
    assert stats.binomtest(same, 6000, 1 / 6).pvalue > 1e-7, "what is taken of a unit depends on another's choice"
    assert tuple(units.chosen(0, 17)) == drawn[17], "it is a function of the unit and the seed"


def test_a_unit_more_at_the_end_leaves_the_others_rows_alone() -> None:
    fewer, more = UnitExamples(GROUPS, most=2), UnitExamples([*GROUPS, "new"], most=2)
    assert all(fewer.chosen(u, s).tolist() == more.chosen(u, s).tolist() for u in range(3) for s in range(20))


@pytest.mark.parametrize("most_copies", [(0, 1), (1, 0)])
def test_no_rows_of_a_unit_are_refused(most_copies: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="1 or more"):
        UnitExamples(GROUPS, *most_copies)
