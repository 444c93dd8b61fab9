"""Folders copied while their run goes on, as snapshots of a machine are: no step is taken that is not charged."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from dptrain import BudgetLedger
from dptrain.commands.main import main
from dptrain.training.journal import StepJournal, steps_started

from ..conftest import MakeDataset
from . import process
from .process import PLAN, options


def copy_and_go_on(out: Path, copy: Path, at: int, end: int | None, how: int = signal.SIGKILL) -> None:
    """Copy the folder when so many steps are counted, and end the process some steps later."""
    real = StepJournal.record

    def record(self: StepJournal, steps: int) -> None:
        real(self, steps)
        if steps == at and not copy.exists():
            shutil.copytree(out, copy)
        if steps == end:
            os.kill(os.getpid(), how)

    StepJournal.record = record  # type: ignore[method-assign]


def run_and_copy(folder: Path, data: Path, at: int, end: int | None, how: int = signal.SIGKILL) -> int:
    out, copy = folder / "out", folder / "copy"
    before = functools.partial(copy_and_go_on, out, copy, at, end, how)
    return process.run(options(folder, out, data, validation="off"), folder / "report", before=before)


def restored(folder: Path) -> Path:
    """The copy in the place of the folder."""
    shutil.rmtree(folder / "out")
    shutil.copytree(folder / "copy", folder / "out")
    return folder / "out"


def released(folder: Path) -> int:
    """Noised steps of all processes that ever ran."""
    return sum(file.stat().st_size for file in folder.glob("report*/released"))


def charged(folder: Path) -> Any:
    ledger = BudgetLedger(f"sqlite:///{folder / 'budget.db'}")
    assert ledger.verify().findings == ()
    (row,) = ledger.history()
    return row


def stated(out: Path) -> int:
    return int(json.loads((out / "statement.json").read_text())["mechanism"]["steps"])


def told(report: Path) -> str:
    return (report / "error").read_text()


def test_steps_taken_after_the_backup_are_not_taken_again(make_dataset: MakeDataset, tmp_path: Path) -> None:
    data = make_dataset()
    assert run_and_copy(tmp_path, data, at=2, end=4) == -9
    out = restored(tmp_path)
    assert process.run(options(tmp_path, out, data, validation="off"), tmp_path / "report") == 0
    assert released(tmp_path) <= charged(tmp_path).charged == PLAN.steps
    assert stated(out) == steps_started(out) == PLAN.steps


def test_a_copy_and_its_original_never_take_more_steps_than_are_charged(
    make_dataset: MakeDataset, tmp_path: Path
) -> None:
    """The copy is resumed while the original is stopped in the middle of a step, which then goes on."""
    data = make_dataset()
    before = functools.partial(copy_and_go_on, tmp_path / "out", tmp_path / "copy", 2, 2, signal.SIGSTOP)
    started = options(tmp_path, tmp_path / "out", data, validation="off")
    original = process.start(started, tmp_path / "report", None, before)
    assert original.pid is not None
    try:
        _until_stopped(original.pid)
        copy = tmp_path / "copy"
        assert process.run(options(tmp_path, copy, data, validation="off"), tmp_path / "report of copy") == 0
    finally:
        os.kill(original.pid, signal.SIGCONT)
        original.join(240)
    assert released(tmp_path) <= charged(tmp_path).charged == PLAN.steps
    assert stated(copy) == PLAN.steps
    assert original.exitcode == 1 and "\n" not in told(tmp_path / "report")
    assert "continued elsewhere" in told(tmp_path / "report")
    assert not (tmp_path / "out" / "weights").exists(), "it has nothing to show that it did not pay for"


def _until_stopped(pid: int) -> None:
    for _ in range(2400):
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
            return
        time.sleep(0.05)
    raise AssertionError("the run does not stop")


def test_settling_an_old_copy_frees_no_step_that_was_taken(make_dataset: MakeDataset, tmp_path: Path) -> None:
    data = make_dataset()
    assert run_and_copy(tmp_path, data, at=2, end=4) == -9
    assert main(["budget", "settle", str(tmp_path / "copy")]) == 0
    assert charged(tmp_path).charged >= released(tmp_path)
    assert steps_started(tmp_path / "copy") == charged(tmp_path).charged
