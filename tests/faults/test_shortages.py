"""A full disk, a locked ledger, a dead loader worker: no step is taken uncounted, and one line says how to go on."""

from __future__ import annotations

import functools
import multiprocessing
import os
import resource
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import dptrain
from dptrain import BudgetError, BudgetLedger
from dptrain.commands.main import main
from dptrain.training.journal import StepJournal, steps_started

from ..conftest import MakeDataset
from . import process
from .process import HOW, PLAN, options


def test_a_step_that_cannot_be_counted_is_not_taken(
    make_dataset: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out, released = make_dataset(), tmp_path / "out", []
    real_write, real_noise = os.write, dptrain.privacy.noise.privatize

    def write(handle: int, text: bytes) -> int:
        if text.strip(b".") == b"" and len(released) == 2:
            raise OSError(28, "No space left on device")
        return real_write(handle, text)

    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr("dptrain.privacy.noise.privatize", lambda *a, **k: (released.append(1), real_noise(*a, **k))[1])
    with pytest.raises(OSError, match="No space left") as caught:
        dptrain.train(**options(tmp_path, out, data, validation="off"))
    assert len(released) == steps_started(out) == 2
    assert caught.value.__notes__ == [f"2 of 6 steps are taken and kept: {HOW.format(out=out)}"]


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold the write lock of an SQLite ledger, as another process would."""
    holder = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        holder.close()


def test_a_ledger_that_stays_locked_stops_a_run_before_it_begins_and_loses_none(
    make_dataset: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data, out, file = make_dataset(), tmp_path / "out", tmp_path / "budget.db"
    BudgetLedger(f"sqlite:///{file}")
    monkeypatch.setattr("dptrain.ledger.store._BUSY_SECONDS", 0.2)
    monkeypatch.setattr("dptrain.run.charge._RETRIES", (0.01,))
    with locked(file), pytest.raises(BudgetError, match=r"locked.*another process") as caught:
        dptrain.train(**options(tmp_path, out, data, validation="off"))
    assert "\n" not in str(caught.value) and not out.exists()

    real = dptrain.run.job.Run._write_weights
    lock = locked(file)

    def lock_at_the_end(run: dptrain.run.job.Run) -> None:
        real(run)
        if run.trainer.step == PLAN.steps:
            lock.__enter__()

    monkeypatch.setattr("dptrain.run.job.Run._write_weights", lock_at_the_end)
    result = dptrain.train(**options(tmp_path, out, data, validation="off"))
    lock.__exit__(None, None, None)
    assert result.statement["status"] == "finished"
    told = [record.message for record in caplog.records if "budget settle" in record.message]
    assert len(told) == 1, "said once, with the command"
    (row,) = BudgetLedger(f"sqlite:///{file}").history()
    assert (row.charged, row.status) == (PLAN.steps, "open"), "the whole reservation stays charged"
    assert main(["budget", "settle", str(out)]) == 0
    assert BudgetLedger(f"sqlite:///{file}").history()[0].status == "killed"


def test_a_full_disk_ends_the_run_with_its_file_and_the_next_command(make_dataset: MakeDataset, tmp_path: Path) -> None:
    """A file size limit: every write beyond it fails, in torch's code too. Checkpoints do not fit, all else does."""
    data, out = make_dataset(), tmp_path / "out"
    full = functools.partial(after_steps, 3, limit_files)
    large = {"model": "yolo26n.yaml"}
    assert process.run(options(tmp_path, out, data, **large), tmp_path / "report", before=full) == 1
    told = (tmp_path / "report" / "error").read_text()
    assert "File too large" in told and "checkpoint.pt" in told and "\n" not in told
    assert told.endswith(f"{steps_started(out)} of 6 steps are taken and kept: " + HOW.format(out=out))
    assert 3 <= steps_started(out) < PLAN.steps and not list(out.rglob(".*.part"))
    (row,) = BudgetLedger(f"sqlite:///{tmp_path / 'budget.db'}").history()
    assert (row.charged, row.status) == (steps_started(out), "failed")
    assert process.run(options(tmp_path, out, data, **large), tmp_path / "report") == 0
    assert steps_started(out) == PLAN.steps


def after_steps(steps: int, then: Callable[[], None]) -> None:
    """Call ``then`` when the journal has counted some steps."""
    real = StepJournal.record

    def record(self: StepJournal, count: int) -> None:
        real(self, count)
        if count == steps:
            then()

    StepJournal.record = record  # type: ignore[method-assign]


def limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, resource.RLIM_INFINITY))


def test_a_dead_loader_worker_ends_the_run_with_the_next_command(make_dataset: MakeDataset, tmp_path: Path) -> None:
    data, out = make_dataset(), tmp_path / "out"
    kill = functools.partial(after_steps, 2, kill_a_worker)
    loading = {"workers": 2, "physical_batch_size": 1}
    assert process.run(options(tmp_path, out, data, **loading), tmp_path / "report", before=kill) == 1
    told = (tmp_path / "report" / "error").read_text()
    assert "a loader worker died" in told and "\n" not in told
    assert told.endswith(HOW.format(out=out))
    assert 2 <= steps_started(out) < PLAN.steps
    (row,) = BudgetLedger(f"sqlite:///{tmp_path / 'budget.db'}").history()
    assert row.charged == steps_started(out)


def kill_a_worker() -> None:
    worker = multiprocessing.active_children()[0]
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.join(10)
