"""What private detectors are worth: mAP by epsilon next to plain fine-tuning from the same public start.

    python -m experiments.benchmark                              # everything: the table of experiments/README.md
    python -m experiments.benchmark --set fashion --seeds 1 --epsilons 8 --minutes 30
    python -m experiments.benchmark --processes 2                # two runs at a time, each with half of the cores

Every run is a process of its own and leaves a JSON, so what was stopped goes on with the same command. A set whose
images or start are not there is left out, with a line that says how to get them. Writes experiments/results/NAME.json,
NAME.md and docs/images/NAME.png after every run.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from dptrain import config as settings
from dptrain.errors import DptrainError
from dptrain.files import write_json, write_text
from dptrain.rounding import round_up
from experiments.benchmark.runs import Job, Results, Row, jobs_of, ledger_url
from experiments.benchmark.sets import SETS, BenchmarkSet, Missing
from experiments.benchmark.table import draw, lines
from experiments.sweep import machine

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results"
PICTURES = HERE.parent.parent / "docs" / "images"
REPEATS = {"fashion": 3}  # the main set; the others once, unless --seeds says more


class OutOfTime(Exception):
    """The next run would end after the time limit."""


class Benchmark:
    """The runs of some sets, in an order that gives a table early."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.root: Path = options.root / options.name
        self.end = time.monotonic() + options.minutes * 60 if options.minutes else None
        self.stopped = False
        self.skipped: dict[str, str] = {}
        self.sets: dict[str, dict[str, Any]] = {}

    def run(self) -> bool:
        """Do what is not done yet; returns whether all of it is."""
        try:
            for name in self.options.set:
                try:
                    self._set(SETS[name])
                except Missing as missing:
                    self._leave_out(name, str(missing))
                except DptrainError as error:  # such as a unit that this version has not
                    self._leave_out(name, str(error))
        except OutOfTime as stop:
            print(f"stopped: {stop}; the same command goes on", flush=True)
            return False
        return True

    def _leave_out(self, name: str, why: str) -> None:
        self.skipped[name] = why
        print(f"{name}: left out: {why}", file=sys.stderr, flush=True)

    def _set(self, found: BenchmarkSet) -> None:
        found.start()  # refused before any image is painted
        for epsilon in self.options.epsilons or found.epsilons:  # and before hours of plain runs
            given = settings.from_kwargs(model="start.pt", data="data.yaml", **found.private_options(epsilon))
            settings.make_plan(settings.resolve(given))
        data = found.prepare(self.options.root / "data" / found.name)
        results = Results(self.root / found.name, self.options.any_commit)
        repeats = self.options.seeds or REPEATS.get(found.name, 1)
        epsilons = self.options.epsilons or found.epsilons
        rows: dict[str, Row] = {}
        for best in (None, "known"):  # first all else, then the plain runs that hang on the best of the tries
            rate = results.best_rate(found) if best else None
            if rate is not None and rate in (min(found.plain.rates), max(found.plain.rates)):
                print(
                    f"{found.name}: the best plain rate, {rate:g}, is at an end of those tried: try further", flush=True
                )
            todo = []
            for job in jobs_of(found, epsilons, repeats, rate):
                row = rows.get(job.key) or results.find(job)
                if row is None:
                    todo.append(job)
                else:
                    rows[job.key] = row
            if rows:
                self._keep(found, results, list(rows.values()))
            with ThreadPoolExecutor(self.options.processes) as pool:  # a thread waits for the process of its run
                for running in as_completed(pool.submit(self._do, job, results, data, rows) for job in todo):
                    running.result()
                    self._keep(found, results, list(rows.values()))

    def _do(self, job: Job, results: Results, data: Path, rows: dict[str, Row]) -> None:
        self._refuse_late(job, rows)
        print(f"{job.set}: {job.key} ...", flush=True)
        rows[job.key] = results.do(job, data)
        print(f"{job.set}: {job.key}: {_short(rows[job.key])}", flush=True)

    def _refuse_late(self, job: Job, rows: dict[str, Row]) -> None:
        """Start nothing that, by the runs of its kind so far, would not end in time."""
        if self.end is None:
            return
        alike = [row["seconds"] for row in list(rows.values()) if row["kind"] == job.kind]
        expected = statistics.mean(alike) if alike else 0.0
        left = self.end - time.monotonic()
        if self.stopped or left <= expected:
            self.stopped = True  # also for a run whose time nobody knows
            raise OutOfTime(f"{max(0, left):.0f} s are left, and {job.set} {job.key} takes about {expected:.0f} s")

    def _keep(self, found: BenchmarkSet, results: Results, rows: list[Row]) -> None:
        self.sets[found.name] = {
            "what": found.what, "units": found.units, "imgsz": found.imgsz, "delta": found.delta,
            "tuned": found.tuned, "epsilon_of_all_runs_together": _composed(results.folder),
            "runs": [
                {**{k: v for k, v in row.items() if k not in ("settings", "set")}, "epsilon_asked": asked(row)}
                for row in rows
            ],
            "settings": {row["kind"]: row["settings"] for row in rows},
        }  # fmt: skip
        name = self.options.name
        whole = {
            "command": self.options.command,
            "machine": {**machine(), "processes": self.options.processes},
            "skipped": self.skipped,
            "sets": self.sets,
        }
        write_json(RESULTS / f"{name}.json", whole)
        write_text(RESULTS / f"{name}.md", "\n".join(lines(whole)) + "\n")
        draw(whole, PICTURES / f"{name}.png")


def asked(row: Row) -> float | None:
    """The epsilon that a run was asked for; what it got is a little less."""
    return row["settings"]["job"]["epsilon"]


def _composed(folder: Path) -> float | None:
    """What it costs, by the set's ledger, to have seen all of its private runs."""
    from dptrain import BudgetLedger

    ledger = BudgetLedger.existing(ledger_url(folder))
    readings = ledger.show() if ledger else []
    return float(round_up(max(reading.epsilon for reading in readings), 3)) if readings else None


def _short(row: Row) -> str:
    return f"mAP50 {row['mAP50']:.3f}, mAP50-95 {row['mAP50-95']:.3f}, {row['seconds']:.0f} s"


def main() -> int:
    parser = argparse.ArgumentParser(description="mAP by epsilon next to plain fine-tuning from the same public start")
    parser.add_argument("--set", nargs="+", choices=list(SETS), default=list(SETS), help="default: all")
    parser.add_argument("--epsilons", type=float, nargs="+", help="default: those of the set")
    parser.add_argument(
        "--seeds", type=int, help="repeats of plain and private runs; default 3 of fashion, 1 of others"
    )
    parser.add_argument("--minutes", type=float, help="start no run that would end later")
    parser.add_argument("--processes", type=int, default=1, help="runs at a time, the processor's cores shared out")
    parser.add_argument("--name", default="benchmark", help="of the results and of the folder of the runs")
    parser.add_argument("--root", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--any-commit", action="store_true", help="keep runs that another commit made")
    options = parser.parse_args()
    if options.processes < 1:
        parser.error(f"--processes {options.processes}: at least 1")
    if options.processes > 1:  # before any run starts torch in its own process
        os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // options.processes))
    options.command = " ".join(["python -m experiments.benchmark", *sys.argv[1:]])
    benchmark = Benchmark(options)
    done = benchmark.run()
    if benchmark.sets:
        print("\n".join(lines({"sets": benchmark.sets})))
    return 0 if done and benchmark.sets else 1


if __name__ == "__main__":
    raise SystemExit(main())
