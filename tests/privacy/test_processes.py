"""The guarantee of steps that several processes take together: what goes in at the door, and what comes out for all.

Each process is forked from the test; rank 0 is the only one that may come to the door.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from dptrain import ClippedSum, PrivacyPlan
from dptrain.privacy import noise
from dptrain.privacy.sampling import Draw
from dptrain.training.processes import Group
from dptrain.training.trainer import PrivateTrainer

from ..training.together import given, together
from .test_added_noise import SIGNIFICANCE

PLAN = PrivacyPlan(0.5, 4, 1.7, 0.3, 1e-3, 4)
EXAMPLES = torch.randn(24, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(5)) * 3
UNITS = [f"picture {number}".encode() for number in range(len(EXAMPLES))]


class Served:
    """Serves examples three at a time, and keeps their numbers."""

    examples_at_once = 3

    def __init__(self, examples: Tensor) -> None:
        self.examples = examples
        self.units: list[list[int]] = []

    def steps(self, draws: Iterator[Draw]) -> Iterator[Iterator[Any]]:
        for draw in draws:
            self.units.append(draw.indices.tolist())
            yield iter(
                [self.examples[some] for some in np.split(draw.indices, range(3, len(draw.indices), 3)) if len(some)]
            )


def losses(module: nn.Module, batch: Tensor) -> Tensor:
    return module(batch).square().sum(1)


def module_of(width: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(6, width).double()


def trainer_of(group: Group | None, examples: Tensor, width: int = 2, seed: int | None = None) -> PrivateTrainer:
    module = module_of(width)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)  # a step moves the weights by the noised gradient
    return PrivateTrainer(
        module, losses, PLAN, optimizer, Served(examples), len(examples),
        identities=UNITS[: len(examples)], group=group, seed=seed, probe=False,
    )  # fmt: skip


def values_of(trainer: PrivateTrainer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trainer.parameters.items()}


def length(value: dict[str, Tensor]) -> float:
    return float(torch.cat([tensor.flatten() for tensor in value.values()]).norm())


def on(examples: Tensor, count: int) -> list[dict[str, Any]]:
    """Train with a door that gives the same whatever goes in; return what every process did."""

    def work(group: Group) -> dict[str, Any]:
        seen: dict[str, Any] = {"sums": [], "weights": [], "units": []}

        def door(value: dict[str, Tensor], **how: Any) -> dict[str, Tensor]:
            seen["sums"].append({name: tensor.clone() for name, tensor in value.items()})
            seen["how"] = (how["sensitivity"], how["noise_multiplier"])
            fixed = torch.Generator().manual_seed(len(seen["sums"]))
            return {name: torch.randn(t.shape, generator=fixed, dtype=t.dtype) for name, t in value.items()}

        noise.privatize = door  # in this process, which ends with the test
        trainer = trainer_of(group, examples, seed=3)
        for _ in trainer.run():
            seen["weights"].append(values_of(trainer))
        return {**seen, "units": trainer.loader.units}  # type: ignore[attr-defined]

    return given(together(count, work))


def clipped(examples: Tensor, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    module = module_of()
    module.load_state_dict(weights)
    return ClippedSum(PLAN, module, losses).over(examples)


@pytest.fixture(scope="module")
def neighbours() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What two processes did without the last unit, and with it; every other unit keeps its coin."""
    return on(EXAMPLES[:-1], 2), on(EXAMPLES, 2)


def test_one_unit_more_moves_the_sum_of_all_processes_by_its_own_clipped_gradient_and_nothing_else(
    neighbours: tuple[list[dict[str, Any]], list[dict[str, Any]]],
) -> None:
    one, other = neighbours
    newcomer, drawn = len(EXAMPLES) - 1, 0
    start = {name: p.detach() for name, p in module_of().named_parameters()}
    for step in range(PLAN.steps):
        before = start if step == 0 else one[0]["weights"][step - 1]
        moved = {name: t - one[0]["sums"][step][name] for name, t in other[0]["sums"][step].items()}
        where = [rank for rank in range(2) if newcomer in other[rank]["units"][step]]
        assert len(where) <= 1, "a unit in two processes"
        drawn += len(where)
        own = (
            clipped(EXAMPLES[[newcomer]], before) if where else {name: torch.zeros_like(t) for name, t in moved.items()}
        )
        assert length(moved) <= PLAN.clip_norm * (1 + 1e-12)
        assert length({name: moved[name] - own[name] for name in moved}) < 1e-12
        for rank in range(2):
            without = [unit for unit in other[rank]["units"][step] if unit != newcomer]
            assert without == one[rank]["units"][step], "another unit changed its process, or its coin"
            for name, weight in one[rank]["weights"][step].items():
                assert torch.equal(weight, other[rank]["weights"][step][name]), "something went round the door"
    assert drawn, "the newcomer was never drawn, so nothing was shown"


def test_the_first_process_alone_comes_to_the_door_once_a_step_with_the_sum_over_the_whole_draw(
    neighbours: tuple[list[dict[str, Any]], list[dict[str, Any]]],
) -> None:
    first, second = neighbours[1]
    assert len(first["sums"]) == PLAN.steps and not second["sums"]
    assert first["how"] == (PLAN.clip_norm, PLAN.noise_multiplier)
    start = {name: p.detach() for name, p in module_of().named_parameters()}
    for step, total in enumerate(first["sums"]):
        units = sorted(first["units"][step] + second["units"][step])
        assert len(set(units)) == len(units) > 4
        assert first["units"][step] and second["units"][step]
        whole = clipped(EXAMPLES[units], start if step == 0 else first["weights"][step - 1])
        assert length({name: total[name] - whole[name] for name in whole}) < 1e-12


@pytest.fixture(scope="module")
def added() -> list[np.ndarray]:
    """What two secure processes added above the clipped sums of their draws, each as it sees it: (steps, entries)."""
    width = 4000

    def work(group: Group) -> tuple[list[dict[str, Tensor]], list[list[int]]]:
        trainer = trainer_of(group, EXAMPLES, width)
        weights = [values_of(trainer)]
        for _ in trainer.run():
            weights.append(values_of(trainer))
        return weights, trainer.loader.units  # type: ignore[attr-defined]

    found = given(together(2, work))
    rows = []
    for weights, _ in found:
        noises = []
        for step in range(PLAN.steps):
            module = module_of(width)
            module.load_state_dict(weights[step])
            units = found[0][1][step] + found[1][1][step]
            total = ClippedSum(PLAN, module, losses).over(EXAMPLES[units])
            gradient = {name: weights[step][name] - after for name, after in weights[step + 1].items()}
            parts = [gradient[name] * PLAN.expected_batch_size - total[name] for name in total]
            noises.append(torch.cat([part.flatten() for part in parts]).numpy())
        rows.append(np.stack(noises))
    return rows


def test_the_noise_of_a_step_is_gaussian_of_the_plans_scale_whatever_the_number_of_processes(
    added: list[np.ndarray],
) -> None:
    scale = PLAN.noise_multiplier * PLAN.clip_norm
    for rows in added:
        sample = rows.ravel()
        assert len(sample) > 100_000
        assert stats.kstest(sample, stats.norm(0, scale).cdf).pvalue > SIGNIFICANCE
        for wrong in (0.9, 1.1):
            assert stats.kstest(sample, stats.norm(0, wrong * scale).cdf).pvalue < SIGNIFICANCE


def test_all_processes_get_the_same_noise_and_no_two_steps_do(added: list[np.ndarray]) -> None:
    assert np.array_equal(added[0], added[1])
    correlations = np.corrcoef(added[0]) - np.eye(PLAN.steps)
    assert np.abs(correlations).max() < 6 / np.sqrt(added[0].shape[1])
