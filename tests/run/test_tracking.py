"""What MLflow keeps of a run tells its numbers, and not when they came."""

from __future__ import annotations

import itertools
import os
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from dptrain.run.tracking import Tracker
from dptrain.support.files import even_times


def rows(store: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Every row that the store holds of runs, without the identifiers that are drawn for each."""
    columns = {
        "runs": "status, start_time, end_time, deleted_time, lifecycle_stage, user_id, source_name",
        "metrics": "key, value, timestamp, step, is_nan",
        "latest_metrics": "key, value, timestamp, step, is_nan",
        "params": "key, value",
        "tags": "key, value",
    }
    with sqlite3.connect(store) as connection:
        found = {t: sorted(connection.execute(f"select {c} from {t}"), key=repr) for t, c in columns.items()}
    return {table: [row for row in lines if row[0] != "mlflow.runName"] for table, lines in found.items()}


def log(folder: Path, seconds: list[float], patch: pytest.MonkeyPatch) -> Path:
    """A run whose steps take as long as ``seconds`` says, by a clock of its own, stopped once and resumed."""
    clock = [1e9 + 3600.0]
    patch.setattr(time, "time", lambda: clock[0])
    folder.mkdir()
    patch.chdir(folder)
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    known = None
    for part in range(2):
        tracker = Tracker.start(uri, "e", "r", {"tag": "x"}, known)
        known = tracker.run_id
        with tracker:
            tracker.parameters({"part": part} if part else {"a": 1})
            for step in range(part, part + 2):  # the step at the cut comes again
                clock[0] += seconds[step]
                tracker.metrics({"dp/epsilon": 0.5 * step, "metrics/mAP50B": 0.1}, step)
            tracker.table({"job": [0], "state": ["finished"]}, "runs.json")
    return folder


def test_two_runs_that_took_their_time_at_different_steps_leave_the_same_rows_and_file_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = log(tmp_path / "one", [0.02, 0.02, 0.02], monkeypatch)
    other = log(tmp_path / "other", [0.02, 7.5, 0.4], monkeypatch)
    assert rows(one / "mlflow.db") == rows(other / "mlflow.db")
    assert len(rows(one / "mlflow.db")["metrics"]) == 6
    times = {file.stat().st_mtime_ns for folder in (one, other) for file in folder.rglob("runs.json")}
    assert times == {(10**9 // 86400) * 86400 * 10**9}


def test_runs_of_one_day_keep_their_order_and_tell_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "time", lambda: 1e9 + 3600.0)
    # In full: MLflow keeps the store of an address for as long as the process lives.
    runs = [Tracker.start(f"sqlite:///{tmp_path / 'mlflow.db'}", "e", name, {}) for name in ("one", "two", "three")]
    for tracker in runs:
        tracker.end("FINISHED")
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        found = list(connection.execute("select name, start_time, end_time from runs order by start_time"))
    day = (10**9 // 86400) * 86400 * 1000
    assert found == [("one", day, day), ("two", day + 1, day + 1), ("three", day + 2, day + 2)]


def test_a_folders_files_all_get_the_start_of_the_day(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    for number, name in zip(itertools.count(), ("results.csv", "weights/last.pt", "steps.journal")):
        (tmp_path / name).write_text("x")
        os.utime(tmp_path / name, (1e9, 1e9 + number))
    even_times(tmp_path)
    times = {place.stat().st_mtime for place in (tmp_path, *tmp_path.rglob("*"))}
    assert len(times) == 1 and times.pop() % 86400 == 0
    even_times(tmp_path / "nothing")
