"""kill -9 at every kind of point: no step is released that is not charged, and no file is left half-written."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from pathlib import Path

import torch

from dptrain import BudgetLedger
from dptrain.run.charge import read_note
from dptrain.statement.results import read_rows
from dptrain.training.checkpoint import load_checkpoint
from dptrain.training.journal import steps_started

from ..conftest import MakeDataset
from . import process
from .process import PLAN, options

# pytest kills a few times; DPTRAIN_KILLS=50 is the full mode (minutes).
KILLS = int(os.environ.get("DPTRAIN_KILLS", "3"))


def test_nothing_is_lost_or_uncharged_wherever_a_run_is_killed(make_dataset: MakeDataset, tmp_path: Path) -> None:
    data, choice, killed, runs = make_dataset(), random.Random(1), 0, 0
    assert process.run(options(tmp_path, tmp_path / "whole", data), tmp_path / "report of whole") == 0
    points = Counter((tmp_path / "report of whole" / "points").read_text().splitlines())
    assert len(points) > 40 and points["after write steps.journal"] == PLAN.steps
    check(tmp_path, tmp_path / "whole", finished=True)
    while killed < KILLS:
        runs += 1
        out, report = tmp_path / f"run{runs}", tmp_path / f"report of run{runs}"
        for attempt in range(1000):
            name = choice.choice(sorted(points))  # every kind of point, however rare it is
            at = None if attempt and killed >= KILLS else (name, choice.randint(1, points[name]))
            status = process.run(options(tmp_path, out, data), report, at)
            assert status in (0, -9), f"{at}: {(report / 'error').read_text()}"
            killed += status == -9
            finished = is_finished(out)  # a run killed after its statement is over, too
            assert finished or status == -9
            check(tmp_path, out, finished)
            if finished:
                break
            if out.exists() and not (out / "steps.journal").exists():  # killed before there was a run
                out = out.with_name(f"{out.name} again")


def is_finished(out: Path) -> bool:
    statement = out / "statement.json"
    return statement.exists() and json.loads(statement.read_text())["status"] == "finished"


def check(folder: Path, out: Path, finished: bool) -> None:
    """What must hold of a run's folder and its ledger at any moment."""
    for file in out.rglob("*"):
        if file.suffix == ".json":
            json.loads(file.read_text())
        if file.suffix == ".csv":
            read_rows(file) if file.name == "results.csv" else file.read_text()
        if file.suffix == ".pt" and file.parent.name == "weights":
            torch.load(file, weights_only=False)
    started = steps_started(out)
    if (out / "checkpoint.pt").exists():
        assert load_checkpoint(out / "checkpoint.pt", PLAN, None)["step"] <= started
    report = folder / f"report of {out.name.removesuffix(' again')}"
    released = report / "released"
    assert (released.stat().st_size if released.exists() else 0) <= started <= PLAN.steps
    ledger = BudgetLedger(f"sqlite:///{folder / 'budget.db'}")
    assert ledger.verify().findings == ()
    charged = {row.run: row.charged for row in ledger.history()}
    if started:
        assert charged[read_note(out)["run"]] >= started, "steps were started that nobody is charged for"
    if finished:
        assert started == charged[read_note(out)["run"]] == PLAN.steps
        assert json.loads((out / "statement.json").read_text())["mechanism"]["steps"] == PLAN.steps
        assert not list(out.rglob(".*.part"))
