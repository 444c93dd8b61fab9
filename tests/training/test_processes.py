"""Steps that several processes take together: the same as those of one, and an end in one line if a process goes."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dptrain import ConfigError, PrivacyPlan, UnitBatch
from dptrain.privacy.sampling import Draw
from dptrain.training.processes import Group, shares_of
from dptrain.training.trainer import PrivateTrainer

from .test_trainer import X, Y, plan
from .together import Failed, given, together

UNITS = [f"picture {number}".encode() for number in range(20)]
PAIRS = [f"clip {number}".encode() for number in range(10)]


class Served:
    """Serves X and Y, or units of two examples each, four examples at a time; keeps what it was asked for."""

    examples_at_once = 4

    def __init__(self, paired: bool = False) -> None:
        self.paired = paired
        self.units: list[list[int]] = []

    def steps(self, draws: Iterator[Draw]) -> Iterator[Iterator[Any]]:
        for draw in draws:
            self.units.append(draw.indices.tolist())
            most = 2 if self.paired else 4
            parts = [draw.indices[i : i + most] for i in range(0, len(draw.indices), most)]
            yield map(self._batch, parts)

    def _batch(self, units: np.ndarray) -> Any:
        if not self.paired:
            return X[units], Y[units]
        examples = np.stack([2 * units, 2 * units + 1], 1).ravel()
        return UnitBatch((X[examples], Y[examples]), torch.arange(len(units)).repeat_interleave(2))


def losses(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(module(batch[0].double()), batch[1], reduction="none")


def make(group: Group | None, plan: PrivacyPlan, paired: bool = False, **options: Any) -> PrivateTrainer:
    torch.manual_seed(0 if group is None else 7)  # another start than the first process's: it hands out its own
    module = nn.Sequential(nn.Linear(3, 8), nn.GroupNorm(2, 8), nn.ReLU(), nn.Linear(8, 2)).double()
    identities = PAIRS if paired else UNITS
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    return PrivateTrainer(
        module, losses, plan, optimizer, Served(paired), len(identities),
        identities=identities, group=group, ema_decay=0.9, probe=False, **options,
    )  # fmt: skip


def start(paired: bool) -> dict[str, Any]:
    return make(None, plan(), paired).state()


def weights(trainer: PrivateTrainer) -> Tensor:
    live = [p.detach().flatten() for p in trainer.parameters.values()]
    return torch.cat([*live, *(value.flatten() for value in trainer.average.values.values())])


def steps_of(count: int, states: dict[str, Any], until: int | None = None, **options: Any) -> list[Any]:
    """Take the steps in so many processes; return of each its weights, its units by step, and its state."""

    def work(group: Group | None) -> tuple[Tensor, list[list[int]], dict[str, Any]]:
        trainer = make(group, plan(), **options)
        state = copy.deepcopy(states)  # a trainer goes on with its tensors
        trainer.restore(state if group is None else group.hand_out(state if group.is_first else None))
        for _ in trainer.run(until):
            pass
        return weights(trainer), trainer.loader.units, trainer.state()  # type: ignore[attr-defined]

    return [work(None)] if count == 1 else given(together(count, work))


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("exact", [False, True])
def test_one_two_and_three_processes_give_the_same_weights(exact: bool, paired: bool) -> None:
    begun = start(paired)
    alone, *_ = steps_of(1, begun, exact=exact, paired=paired, seed=3)
    for count in (2, 3):
        found = steps_of(count, begun, exact=exact, paired=paired, seed=3)
        for other, _, _ in found:
            assert torch.equal(other, found[0][0])
            if exact:
                assert torch.equal(other, alone[0])
            else:
                assert torch.allclose(other, alone[0], rtol=1e-9, atol=1e-12)
        for step, drawn in enumerate(alone[1]):
            assert sorted(unit for _, units, _ in found for unit in units[step]) == drawn
        assert all(any(units) for _, units, _ in found), "a process had nothing to do"


def test_a_run_goes_on_with_another_number_of_processes() -> None:
    begun = start(False)
    alone, *_ = steps_of(1, begun, exact=True, seed=3)
    for counts in ((2, 3), (3, 1), (1, 2)):
        half, *_ = steps_of(counts[0], begun, until=4, exact=True, seed=3)
        whole, *_ = steps_of(counts[1], half[2], exact=True, seed=3)
        assert torch.equal(whole[0], alone[0])


def test_the_processes_make_one_draw_by_a_key_of_the_first_ones_system() -> None:
    begun = start(False)
    runs = [steps_of(2, begun) for _ in range(2)]
    drawn = [[sorted(one + other) for one, other in zip(run[0][1], run[1][1], strict=True)] for run in runs]
    assert drawn[0] != drawn[1], "two runs with the same draws"
    shares = shares_of(UNITS, 2)
    for run in runs:
        assert torch.equal(run[0][0], run[1][0])
        for rank, (_, units, _) in enumerate(run):
            assert {int(shares[unit]) for step in units for unit in step} == {rank}


def test_a_units_process_follows_from_the_unit_alone() -> None:
    many = [f"unit {number}".encode() for number in range(3000)]
    shares = shares_of(many, 3)
    assert np.array_equal(np.delete(shares, 1000), shares_of(many[:1000] + many[1001:], 3))
    assert min(np.bincount(shares)) > 900
    assert shares_of([], 3).shape == (0,)


def test_what_several_processes_need_is_asked_for() -> None:
    def work(group: Group) -> list[str]:
        words = []
        for changes in ({"identities": None}, {"identities": UNITS[:3]}):
            module = nn.Linear(3, 2)
            optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
            with pytest.raises(ConfigError) as error:
                PrivateTrainer(module, losses, plan(), optimizer, Served(), 20, group=group, **changes)  # type: ignore[arg-type]
            words.append(str(error.value))
        with pytest.raises(ConfigError) as error:
            make(group, plan(bands=2))
        return [*words, str(error.value), str(group.memory)]

    for words in given(together(2, work)):
        assert words == [
            *["2 processes need the identities of all units: which process computes a unit follows from its own"] * 2,
            "2 processes and noise of 2 bands are not worked out: leave one out",
            "100",
        ]


def trainer_of(group: Group) -> PrivateTrainer:
    trainer = make(group, plan())
    trainer.restore(group.hand_out(start(False) if group.is_first else None))
    return trainer


def test_a_process_that_dies_ends_the_others_in_one_line() -> None:
    def work(group: Group) -> None:
        for step in trainer_of(group).run():
            if step == 2 and group.rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)

    found = together(3, work)
    assert found[1] is None
    assert {str(found[0]), str(found[2])} == {
        "ProcessError: another of the run's 3 processes is gone: it was killed, or its machine was"
    }


def test_a_process_that_fails_tells_the_others_why() -> None:
    def work(group: Group) -> str:
        for step in trainer_of(group).run():
            if step == 2 and group.rank == 1:
                group.fail("pets/7.png: cannot be read")
                return "failed"
        return "finished"

    found = together(3, work)
    assert found[1] == "failed"
    assert {str(found[0]), str(found[2])} == {"ProcessError: process 1 of 3 failed: pets/7.png: cannot be read"}


def test_weights_that_differ_by_a_bit_end_the_run() -> None:
    def work(group: Group) -> None:
        trainer = trainer_of(group)
        for step in trainer.run():
            if step == 2 and group.rank == 1:
                with torch.no_grad():
                    last = list(trainer.parameters.values())[-1]
                    last.view(torch.int64)[-1] ^= 1 << 20  # a lower one may be rounded away

    for failed in together(2, work):
        assert isinstance(failed, Failed)
        assert "the weights of process 1 are not those of process 0 after step 3" in str(failed)


@pytest.mark.parametrize("change", ["another draw", "a unit twice", "a unit left out"])
def test_a_draw_that_is_not_shared_out_is_not_taken(change: str) -> None:
    def work(group: Group) -> None:
        trainer = trainer_of(group)
        if group.rank == 1:
            real = group.own

            def own(draws: Iterator[Draw], shares: np.ndarray) -> Iterator[Draw]:
                if change == "another draw":
                    draws = (Draw(draw.indices[:-1], draw.seed) for draw in draws)
                for draw in real(draws, shares):
                    units = {"a unit twice": np.arange(20), "a unit left out": draw.indices[:0]}
                    yield Draw(units.get(change, draw.indices), draw.seed)

            group.own = own  # type: ignore[method-assign]
        for _ in trainer.run():
            pass

    for failed in together(2, work):
        assert str(failed) == (
            "PrivacyError: step 1 is not taken: the processes do not share its draw out, each unit to one of them"
        )


def test_processes_of_other_versions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Group.__init__

    def init(group: Group, rank: int, *rest: Any) -> None:
        monkeypatch.setattr("dptrain.__version__", f"0.{rank}")
        real(group, rank, *rest)

    monkeypatch.setattr(Group, "__init__", init)
    for failed in together(2, lambda group: None):
        assert "different versions of dptrain or torch" in str(failed)
