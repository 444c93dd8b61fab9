"""A journal that cannot be written, a ledger that stays locked: no step is taken uncounted, and no run is lost."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import dptrain
from dptrain import BudgetError, BudgetLedger
from dptrain.cli import main
from dptrain.files import steps_started

from ..conftest import MakeDataset
from .process import HOW, PLAN, options


def test_a_step_that_cannot_be_counted_is_not_taken(
    make_dataset: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out, released = make_dataset(), tmp_path / "out", []
    real_write, real_noise = os.write, dptrain.noise.privatize

    def write(handle: int, text: bytes) -> int:
        if text.strip(b".") == b"" and len(released) == 2:
            raise OSError(28, "No space left on device")
        return real_write(handle, text)

    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr("dptrain.noise.privatize", lambda *a, **k: (released.append(1), real_noise(*a, **k))[1])
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
    monkeypatch.setattr("dptrain.spending._RETRIES", (0.01,))
    with locked(file), pytest.raises(BudgetError, match=r"locked.*another process") as caught:
        dptrain.train(**options(tmp_path, out, data, validation="off"))
    assert "\n" not in str(caught.value) and not out.exists()

    real = dptrain.run.Run._write_weights
    lock = locked(file)

    def lock_at_the_end(run: dptrain.run.Run) -> None:
        real(run)
        if run.trainer.step == PLAN.steps:
            lock.__enter__()

    monkeypatch.setattr("dptrain.run.Run._write_weights", lock_at_the_end)
    result = dptrain.train(**options(tmp_path, out, data, validation="off"))
    lock.__exit__(None, None, None)
    assert result.statement["status"] == "finished"
    told = [record.message for record in caplog.records if "budget settle" in record.message]
    assert len(told) == 1, "said once, with the command"
    (row,) = BudgetLedger(f"sqlite:///{file}").history()
    assert (row.charged, row.status) == (PLAN.steps, "open"), "the whole reservation stays charged"
    assert main(["budget", "settle", str(out)]) == 0
    assert BudgetLedger(f"sqlite:///{file}").history()[0].status == "killed"
