"""Runs in pieces: in test mode equal to an uncut one to the last bit, in production never the same twice."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dptrain
from dptrain import BudgetLedger
from dptrain.privacy import noise
from dptrain.privacy.sampling import Draw, PoissonSampler

from ..conftest import MakeDataset
from .process import options

PLAN = dptrain.PrivacyPlan(0.5, 9, 1.0, 1.0, 1e-3, 3)


def train(folder: Path, out: str, data: Path, **changes: Any) -> dptrain.TrainResult:
    shared = {"plan": PLAN, "validation": "off", "evaluate_every": 9, "ema": {"decay": 0.9}}
    shared |= {"augment": {"fliplr": 0.5, "hsv_v": 0.4, "translate": 0.2, "crop": 0.2}}
    return dptrain.train(**options(folder, folder / out, data, **{**shared, **changes}))


def cut_at(monkeypatch: pytest.MonkeyPatch, cut: int | None, how: Callable[[], None]) -> None:
    """Let a run be cut when ``cut`` steps are done."""
    real = dptrain.run.job.Progress.update

    def update(self: Any, step: int) -> None:
        real(self, step)
        if step == cut:
            how()

    monkeypatch.setattr("dptrain.run.job.Progress.update", update)


def fail() -> None:
    raise OSError("power gone")


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[tuple[list[int], int]]]:
    """Every draw that is made, by step."""
    monkeypatch.setattr(BudgetLedger, "refresh_pld", lambda self, name: None)  # takes seconds, and decides nothing
    made: dict[int, list[tuple[list[int], int]]] = {}
    real = PoissonSampler.draw

    def draw(self: PoissonSampler, step: int) -> Draw:
        found = real(self, step)
        made.setdefault(step, []).append((found.indices.tolist(), found.seed))
        return found

    monkeypatch.setattr(PoissonSampler, "draw", draw)
    return made


def test_a_seeded_run_in_pieces_equals_an_uncut_one_bitwise(
    make_dataset: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, draws: dict[int, Any]
) -> None:
    data = make_dataset()
    whole = train(tmp_path, "whole", data, seed=5)
    uncut = {step: made[0] for step, made in draws.items()}
    choice = random.Random(10)
    cuts = sorted(choice.sample(range(1, PLAN.steps), 2))
    for cut in cuts:
        with monkeypatch.context() as patch:
            how = choice.choice([fail, stop])  # one falls back to the checkpoint before, the other to its own
            cut_at(patch, cut, how)
            with pytest.raises((OSError, SystemExit)) as caught:
                train(tmp_path, "pieces", data, seed=5, workers=choice.choice([0, 1]))
            assert "resume=true" in " ".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    pieces = train(tmp_path, "pieces", data, seed=5)
    one, other = (torch.load(r.output_dir / "checkpoint.pt", weights_only=True) for r in (whole, pieces))
    assert_same(one, other)
    for step, made in draws.items():
        assert all(draw == uncut[step] for draw in made), f"step {step} was drawn in two ways"
    assert sum(map(len, draws.values())) > 2 * PLAN.steps, "nothing was lost, so nothing was repeated: a dull test"
    assert whole.plan == pieces.plan and whole.epsilon == pieces.epsilon == PLAN.epsilon()
    history = BudgetLedger(f"sqlite:///{tmp_path / 'budget.db'}").history()
    assert [row.charged for row in history] == [PLAN.steps, PLAN.steps]


def assert_same(one: Any, other: Any, where: str = "checkpoint") -> None:
    assert type(one) is type(other), where
    if isinstance(one, Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other), where
    elif isinstance(one, dict):
        assert list(one) == list(other), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}[{number}]")
    else:
        assert one == other, where


def test_in_production_no_step_is_released_twice_and_no_noise_or_draw_repeats(
    make_dataset: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, draws: dict[int, Any]
) -> None:
    data, journal = make_dataset(), tmp_path / "out" / "steps.journal"
    released: list[tuple[int, Tensor]] = []
    real = noise.privatize

    def watched(value: dict[str, Tensor], **how: Any) -> dict[str, Tensor]:
        noised = real(value, **how)
        first = next(iter(value))
        released.append((journal.stat().st_size, (noised[first] - value[first]).flatten()))
        return noised

    monkeypatch.setattr(noise, "privatize", watched)
    for cut in (1, 4, 6):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="power gone"):
            cut_at(patch, cut, fail)
            train(tmp_path, "out", data, checkpoint_every=3)
    result = train(tmp_path, "out", data, checkpoint_every=3)
    steps = [counted for counted, _ in released]
    assert steps == list(range(1, PLAN.steps + 1)), "a step was released before it was counted, or more than once"
    for number, (_, one) in enumerate(released):
        assert not any(torch.equal(one, other) for _, other in released[:number])
    seeds = [seed for made in draws.values() for _, seed in made]
    assert len(set(seeds)) == len(seeds) >= PLAN.steps, "a draw was repeated"
    state = torch.load(result.output_dir / "checkpoint.pt", weights_only=True)
    updates = int(next(iter(state["optimizer"]["state"].values()))["step"])
    assert (state["step"], updates) == (PLAN.steps, PLAN.steps - 4), "steps 1, 4, 5 and 6 were lost, and stay spent"
