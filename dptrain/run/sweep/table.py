"""The table of a sweep: one row a job, for people (rich), for spreadsheets (CSV) and for MLflow."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...statement.results import read_rows
from ...support.files import write_json
from ...support.words import counted, shown
from .cost import JobCost, SweepCost, compose, planned_cost, read_cost
from .jobs import FINISHED, SweepRecord, short

if TYPE_CHECKING:
    from rich.table import Table

METRICS = {
    "metrics/mAP50B": "mAP50",
    "metrics/mAP50-95B": "mAP50-95",
    "metrics/precisionB": "precision",
    "metrics/recallB": "recall",
}


@dataclass(frozen=True)
class Row:
    """One job.

    Attributes:
        number: Its place in the sweep.
        label: The swept values in short.
        swept: The swept keys with their values.
        state: ``finished``, ``begun``, ``failed`` or ``not started``.
        cost: What it spent; None if it took no step.
        metrics: Of its last evaluation, by Ultralytics' names; empty without one.
        mlflow_run: Its MLflow run.
    """

    number: int
    label: str
    swept: Mapping[str, str]
    state: str
    cost: JobCost | None
    metrics: Mapping[str, float]
    mlflow_run: str | None

    @property
    def point(self) -> str:
        """What stands beside its point in a picture: the swept values, without the keys if there is one only."""
        return short(next(iter(self.swept.values()))) if len(self.swept) == 1 else self.label

    def flat(self) -> dict[str, Any]:
        """The row with the columns of ``sweep.csv``; what is not there is None."""
        cost = self.cost
        return {
            "job": self.number,
            **self.swept,
            "state": self.state,
            "epsilon": cost.epsilon() if cost else 0.0,
            **{name: self.metrics.get(key) for key, name in METRICS.items()},
            "epsilon_pld": cost.epsilon_pld() if cost else 0.0,
            "delta": cost.delta if cost else None,
            "steps": cost.steps if cost else 0,
            "mlflow_run": self.mlflow_run,
        }


@dataclass(frozen=True)
class SweepTable:
    """All jobs of a sweep and their composed cost (None if no step was taken)."""

    rows: tuple[Row, ...]
    cost: SweepCost | None

    @property
    def finished(self) -> int:
        """Number of jobs that finished."""
        return sum(row.state == FINISHED for row in self.rows)

    def price(self) -> str:
        """In one line, what publishing this table or its picture costs."""
        cost = self.cost
        if cost is None:
            return "no job took a step, so nothing was spent"
        runs = counted(sum(row.cost is not None for row in self.rows), "run")
        pld = "" if cost.epsilon_pld is None else f"; PLD {shown(cost.epsilon_pld)}"
        text = (
            f"publishing this curve costs epsilon {shown(cost.epsilon)} (RDP{pld}) "
            f"at delta {cost.delta:.3g}: the composition of {runs}, choice of the best among them included"
        )
        if cost.ended_early:
            text += (
                "; not all planned steps were taken, and all are counted, since where to stop may have been chosen by "
                f"looking (epsilon {shown(cost.epsilon_of_steps)} if it was decided beforehand)"
            )
        if cost.deltas_differ:
            text += "; the jobs have different deltas, and this one is the largest"
        if cost.start_runs:
            text += (
                f"; with the {counted(len(cost.start_runs), 'private run')} behind the start epsilon "
                f"{shown(cost.epsilon_with_start)}, for a unit that was in all of them"
            )
        return text if cost.secure else f"{text}; VOID: a seed was set"


def read_table(record: SweepRecord) -> SweepTable:
    """Collect a sweep from its folders, whatever became of its jobs."""
    planned = {job.number: job for job in record.jobs}
    rows = []
    for number in record.numbers():
        folder = record.job_folder(number)
        note = folder / "mlflow_run"
        job = planned.get(number)
        told = record.outcome(number)
        rows.append(
            Row(
                number,
                job.label if job else told.get("label", str(number)),
                job.swept if job else told.get("swept", {}),
                record.state(number),
                read_cost(folder),
                last_metrics(folder / "results.csv"),
                note.read_text().strip() if note.exists() else None,
            )
        )
    unbegun = [planned_cost(planned[row.number]) for row in rows if row.cost is None and row.number in planned]
    costs = [cost for cost in (*(row.cost for row in rows), *unbegun) if cost is not None]
    if record.study and costs:  # its trials have one plan, and all that were planned count
        costs += [replace(costs[0], steps=0, start_runs=())] * (record.study.trials - len(costs))
    return SweepTable(tuple(rows), compose(costs))


def last_metrics(file: Path) -> dict[str, float]:
    """The metrics of the last row of a run's ``results.csv``; empty if there is none."""
    rows = read_rows(file) if file.exists() else []
    return {key: value for key, value in rows[-1].items() if key in METRICS} if rows else {}


def write_table(table: SweepTable, folder: Path) -> None:
    """Write ``sweep.csv`` and the composed cost, ``summary.json``."""
    rows = [row.flat() for row in table.rows]
    with (folder / "sweep.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]) if rows else ["job"])
        writer.writeheader()
        writer.writerows(rows)
    write_json(folder / "summary.json", summary(table))


def summary(table: SweepTable) -> dict[str, Any]:
    """The composed cost as plain values, for ``summary.json`` and ``--json``."""
    cost = table.cost
    return {
        "jobs": len(table.rows),
        "finished": table.finished,
        "epsilon_composed": _finite(cost.epsilon) if cost else 0.0,
        "epsilon_composed_pld": cost.epsilon_pld if cost else 0.0,
        "epsilon_of_steps": _finite(cost.epsilon_of_steps) if cost else 0.0,
        "ended_early": cost.ended_early if cost else False,
        "epsilon_with_start": _finite(cost.epsilon_with_start) if cost and cost.start_runs else None,
        "delta": cost.delta if cost else None,
        "valid": cost.secure if cost else True,
        "meaning": table.price(),
    }


def _finite(epsilon: float) -> float | None:
    """JSON has no infinity: None, and the meaning says it."""
    return epsilon if math.isfinite(epsilon) else None


def for_terminal(table: SweepTable) -> Table:
    """The table for a terminal; only the columns that are read first."""
    from rich.table import Table as RichTable

    view = RichTable(box=None, pad_edge=False, header_style="bold")
    for name in ("job", "", "state", "steps", "epsilon", "mAP50", "mAP50-95"):
        view.add_column(name, justify="left" if name in ("", "state") else "right", no_wrap=name != "")
    for row in table.rows:
        cost = row.cost
        metrics = [row.metrics.get(key) for key in ("metrics/mAP50B", "metrics/mAP50-95B")]
        view.add_row(
            str(row.number),
            row.label,
            row.state,
            f"{cost.steps}/{cost.planned_steps}" if cost else "0",
            shown(cost.epsilon()) if cost else "0",
            *("-" if value is None else f"{value:.3f}" for value in metrics),
        )
    return view


def mlflow_table(table: SweepTable) -> dict[str, list[Any]]:
    """Columns for MLflow, whose viewer leaves a column empty when there is a dot in its name."""
    rows = [row.flat() for row in table.rows]
    return {name.replace(".", " "): [row[name] for row in rows] for name in rows[0]} if rows else {}
