"""The command, stopped, killed and interrupted: what it says, what it forgets, and that it has its folder to itself."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

import dptrain
from dptrain import PrivacyPlan
from dptrain.run.charge import steps_per_lease

from ..conftest import SMALL, MakeDataset
from . import process
from .process import options

Command = tuple[BaseProcess, Path]


@pytest.fixture
def started() -> Iterator[list[BaseProcess]]:
    """Every process of a test; none outlives it."""
    processes: list[BaseProcess] = []
    yield processes
    for left in processes:
        left.kill()
        left.join()


def start(started: list[BaseProcess], tmp_path: Path, data: Path, *overrides: str) -> Command:
    """Start a run of 400 steps, and wait until it has taken some; return it and the file of what it says."""
    arguments = [
        "train", f"model={SMALL}", f"data={data}", "imgsz=64", "trainable=head",
        "physical_batch_size=2", "workers=0", "evaluate_every=2", "steps=400", "privacy.noise_multiplier=1.0",
        "privacy.sample_rate=0.5", "privacy.delta=1e-3", "privacy.expected_batch_size=3", "tracking.enabled=false",
        f"budget.url=sqlite:///{tmp_path / 'budget.db'}", f"output_dir={tmp_path / 'out'}", *overrides,
    ]  # fmt: skip
    told = tmp_path / "told"
    started.append(process.start_command(arguments, told))
    journal, deadline = tmp_path / "out" / "steps.journal", time.monotonic() + 120
    known = journal.stat().st_size if journal.exists() else 0
    while not (tmp_path / "out" / "checkpoint.pt").exists() or journal.stat().st_size < known + 3:
        assert started[-1].is_alive(), told.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return started[-1], told


def stop(running: BaseProcess, how: signal.Signals) -> None:
    assert running.pid is not None
    os.kill(running.pid, how)
    running.join(60)
    assert running.exitcode not in (0, None)


def test_a_stopped_run_says_how_to_go_on_and_a_killed_one_forgets_no_step(
    make_dataset: MakeDataset, tmp_path: Path, started: list[BaseProcess]
) -> None:
    data = make_dataset()
    journal = tmp_path / "out" / "steps.journal"
    running, told = start(started, tmp_path, data)
    stop(running, signal.SIGTERM)
    assert "resume=true" in told.read_text() and "Traceback" not in told.read_text()
    stopped = torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)["step"]
    assert stopped == journal.stat().st_size
    statement = json.loads((tmp_path / "out" / "statement.json").read_text())
    assert (statement["status"], statement["mechanism"]["steps"]) == ("stopped", stopped)

    running, _ = start(started, tmp_path, data, "resume=true")
    stop(running, signal.SIGKILL)
    killed = journal.stat().st_size
    checkpointed = torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)["step"]
    assert stopped < checkpointed <= killed

    running, _ = start(started, tmp_path, data, "resume=true")
    stop(running, signal.SIGINT)
    final = torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)
    assert final["step"] == journal.stat().st_size > killed
    # The optimizer has seen fewer updates than the budget has paid for: those that the kill lost stay spent.
    updates = int(next(iter(final["optimizer"]["state"].values()))["step"])
    lost = final["step"] - updates
    # A kill also costs what the last lease gave leave for, since a copy of the folder may have taken those steps.
    assert killed - checkpointed <= lost <= killed - checkpointed + steps_per_lease(400)


def test_two_processes_cannot_share_a_run(
    make_dataset: MakeDataset, tmp_path: Path, started: list[BaseProcess]
) -> None:
    data = make_dataset()
    start(started, tmp_path, data)
    given = {"imgsz": 64, "evaluate_every": 2, "plan": PrivacyPlan(0.5, 400, 1.0, 1.0, 1e-3, 3), "resume": True}
    with pytest.raises(dptrain.PrivacyError, match="another process"):
        dptrain.train(**options(tmp_path, tmp_path / "out", data, **given))
