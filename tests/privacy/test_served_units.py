"""The images that reach the gradients, step by step, against the sampling that is accounted for.

What is counted is what the loader serves, not what the sampler says; and the rate it is held against is read off the
event that the accountant is given. Every p-value is compared with 1e-9.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from dptrain import PrivacyPlan
from dptrain.detection.data import StepLoader
from dptrain.detection.model import save_weights
from dptrain.privacy.sampling import PoissonSampler
from dptrain.privacy.streams import NoiseStream
from dptrain.run.prepare import prepare
from dptrain.settings import resolve as config_module

from .datasets import detector, write_neighbours

SIGNIFICANCE = 1e-9
UNITS, STEPS = 30, 3000
PLAN = PrivacyPlan(0.15, STEPS, 1.0, 1.0, 1e-5, 4)


class Numbers:
    """Serves the number of a unit as the class of its only box."""

    imgsz = 1

    def sample(self, index: int, seed: int) -> dict[str, Any]:
        return {
            "img": torch.zeros(3, 1, 1, dtype=torch.uint8),
            "cls": torch.full((1, 1), float(index)),
            "bboxes": torch.zeros(1, 4),
        }


def served(plan: PrivacyPlan, units: int = UNITS, physical_batch_size: int = 4) -> Iterator[list[int]]:
    sampler = plan.sampler(units, NoiseStream())
    for batches in StepLoader(Numbers(), physical_batch_size).steps(sampler.draws(plan.steps)):
        yield [int(row) for batch in batches for row in batch["cls"]]


@pytest.fixture(scope="module")
def table() -> np.ndarray:
    """How often every unit was served in every step, (steps, units)."""
    return np.stack([np.bincount(rows, minlength=UNITS) for rows in served(PLAN)])


def accounted_rate(plan: PrivacyPlan) -> float:
    return float(plan.event().event.sampling_probability)


def test_every_unit_is_served_at_the_accounted_rate_and_at_most_once_a_step(table: np.ndarray) -> None:
    assert table.shape == (STEPS, UNITS) and table.max() == 1
    rate = accounted_rate(PLAN)
    for count in table.sum(0):
        assert stats.binomtest(int(count), STEPS, rate).pvalue > SIGNIFICANCE
    assert stats.binomtest(int(table.sum()), table.size, rate).pvalue > SIGNIFICANCE
    for wrong in (0.9, 1.1):
        assert stats.binomtest(int(table.sum()), table.size, wrong * rate).pvalue < SIGNIFICANCE


def test_coins_are_independent_between_units_and_between_steps(table: np.ndarray) -> None:
    centred = (table - table.mean(0)) / table.std(0)
    most = stats.norm.isf(SIGNIFICANCE / UNITS**2) / np.sqrt(STEPS)
    between_units = centred.T @ centred / STEPS - np.eye(UNITS)
    assert np.abs(between_units).max() < most
    for lag in (1, 2, 7):
        between_steps = centred[:-lag].T @ centred[lag:] / STEPS
        assert np.abs(between_steps).max() < most
    assert len({row.tobytes() for row in table}) > STEPS / 2, "the same draws come again and again"


def test_sizes_are_those_of_independent_coins(table: np.ndarray) -> None:
    """A sampler of fixed batches has one size; one that skips the empty draws has too few of them."""
    expected = stats.binom(UNITS, accounted_rate(PLAN)).pmf(np.arange(UNITS + 1)) * STEPS
    observed = np.bincount(table.sum(1), minlength=UNITS + 1)
    common = expected > 5
    pairs = [np.append(both[common], both[~common].sum()) for both in (observed, expected)]
    assert stats.chisquare(*pairs).pvalue > SIGNIFICANCE


def test_an_empty_draw_is_a_step() -> None:
    plan = PrivacyPlan(0.02, 1000, 1.0, 1.0, 1e-5, 1)
    sizes = [len(rows) for rows in served(plan, units=20)]
    assert len(sizes) == plan.steps
    empty = (1 - accounted_rate(plan)) ** 20
    assert stats.binomtest(sizes.count(0), plan.steps, empty).pvalue > SIGNIFICANCE


@pytest.mark.parametrize("physical_batch_size", [1, 3, 100])
def test_the_physical_batch_leaves_no_unit_out(physical_batch_size: int) -> None:
    plan = PrivacyPlan(1.0, 3, 1.0, 1.0, 1e-5, 4)
    assert list(served(plan, 10, physical_batch_size)) == [list(range(10))] * 3


def test_a_run_samples_at_the_rate_of_its_event_however_many_images_there_are(tmp_path: Path) -> None:
    """Four images in the folder, a thousand declared: the folder's number decides nothing."""
    data = write_neighbours(tmp_path / "data", ["ordinary", "one box", "no boxes"], "ordinary", 3).larger
    start = save_weights(detector("end2end group", tmp_path), tmp_path / "start.pt")
    settings = config_module.resolve(
        config_module.from_kwargs(
            model=str(start),
            data=str(data),
            imgsz=32,
            steps=7,
            validation="off",
            output_dir=str(tmp_path / "out"),
            privacy={"noise_multiplier": 1.0, "dataset_size": 1000, "expected_batch_size": 50},
            tracking={"enabled": False},
            budget={"url": None},
        )
    )
    plan = config_module.make_plan(settings)
    trainer = prepare(config_module.with_plan(settings, plan), plan).trainer
    assert isinstance(trainer.sampler, PoissonSampler)
    assert trainer.sampler.num_units == 4
    assert trainer.sampler.sample_rate == accounted_rate(plan) == 0.05
    assert (trainer.plan, plan.event().count, plan.expected_batch_size) == (plan, 7, 50)
