"""What private detectors are worth: mAP by epsilon next to fine-tuning without privacy from the same public start.

    python -m experiments.benchmark                              # everything: the table of docs/benchmarks.md
    python -m experiments.benchmark --set fashion --seeds 1 --epsilons 8 --minutes 30
    python -m experiments.benchmark --processes 2                # two runs at a time, each with half of the cores

Every run is a process of its own and leaves a JSON, so what was stopped goes on with the same command. A set whose
images or start are not there is left out, with a line that says how to get them. After every run its JSON is in
experiments/results/NAME/SET/, and experiments/results/NAME.md and docs/images/NAME.png are drawn from all of a set's.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from dp_accounting import dp_event

from dptrain import PrivacyPlan
from dptrain.errors import DptrainError
from dptrain.privacy import accounting
from dptrain.settings import resolve as settings
from dptrain.support.files import write_text
from dptrain.support.words import round_up
from experiments.benchmark.a_set import BenchmarkSet
from experiments.benchmark.runs import KINDS, Job, Results, Row, jobs_of
from experiments.benchmark.sets import SETS
from experiments.benchmark.table import draw, table
from experiments.photos import Missing

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
        self.end = time.monotonic() + options.minutes * 60 if options.minutes is not None else None
        self.stopped = False
        self.left_out: set[str] = set()

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
        self.left_out.add(name)
        print(f"{name}: left out: {why}", file=sys.stderr, flush=True)

    def _set(self, found: BenchmarkSet) -> None:
        found.start()  # refused before any image is painted
        for epsilon in self.options.epsilons or found.epsilons:  # and before hours of plain runs
            plan_of(found, epsilon)
        data = found.prepare(self.options.root / "data" / found.name)
        results = self._results(found)
        if found.public:
            found.public(results.runs / "public")  # before runs beside each other would write them
        repeats = self.options.seeds or REPEATS.get(found.name, 1)
        epsilons = self.options.epsilons or found.epsilons
        rows: dict[str, Row] = {}
        for best in (None, "known"):  # first all else, then the plain runs that hang on the best of the tries
            rate = results.best_rate(found) if best else None
            if rate is not None and rate in (min(found.plain.rates), max(found.plain.rates)):
                print(
                    f"{found.name}: the best rate without privacy, {rate:g}, is at an end of those tried: try further",
                    flush=True,
                )
            todo = []
            for job in jobs_of(found, epsilons, repeats, rate):
                if job.kind not in self.options.kinds:
                    continue
                row = rows.get(job.key) or results.find(job)
                if row is None:
                    todo.append(job)
                else:
                    rows[job.key] = row
            with ThreadPoolExecutor(self.options.processes) as pool:  # a thread waits for the process of its run
                for running in as_completed(pool.submit(self._do, job, results, data, rows) for job in todo):
                    running.result()
                    self.draw()

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

    def _results(self, found: BenchmarkSet) -> Results:
        name = self.options.name
        return Results(RESULTS / name / found.name, self.root / found.name, self.options.any_commit)

    def draw(self) -> str:
        """Write the table and the picture of all finished runs, of this call and of others; returns the table."""
        sets = self.finished()
        if not sets:
            return "no runs"
        text = table({"sets": sets})
        write_text(RESULTS / f"{self.options.name}.md", text)
        draw({"sets": sets}, PICTURES / f"{self.options.name}.png")
        return text

    def finished(self) -> dict[str, Any]:
        """All finished runs, by set, with what a reader must know of it."""
        sets = {}
        for found in SETS.values():
            if rows := self._results(found).all():
                sets[found.name] = {
                    "what": found.what, "delta": found.delta, "tuned": found.tuned,
                    "epsilon_of_all": composed(found, rows),
                    "runs": [{**row, "epsilon_asked": row["settings"]["job"]["epsilon"]} for row in rows],
                }  # fmt: skip
        return sets


def composed(found: BenchmarkSet, rows: Sequence[Row]) -> float | None:
    """What it would cost to have seen all private runs of a set, by RDP at its delta."""
    asked = [row["settings"]["job"]["epsilon"] for row in rows if row["kind"] == "private"]
    if not asked:
        return None
    events = {epsilon: plan_of(found, epsilon).event() for epsilon in set(asked)}
    whole = dp_event.ComposedDpEvent([events[epsilon] for epsilon in asked])
    return float(round_up(accounting.epsilon(whole, found.delta), 3))


def plan_of(found: BenchmarkSet, epsilon: float) -> PrivacyPlan:
    """The plan of a private run."""
    given = settings.from_kwargs(
        model="start.pt", data="data.yaml", **found.private_options(epsilon, Path("public.yaml"))
    )
    return settings.make_plan(settings.resolve(given))


def _short(row: Row) -> str:
    return f"mAP50 {row['mAP50']:.3f}, mAP50-95 {row['mAP50-95']:.3f}, {row['seconds']:.0f} s"


def main() -> int:
    parser = argparse.ArgumentParser(
        description="mAP by epsilon beside fine-tuning without privacy from the same start"
    )
    parser.add_argument("--set", nargs="+", choices=list(SETS), default=list(SETS), help="default: all")
    parser.add_argument("--epsilons", type=float, nargs="+", help="default: those of the set")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="of runs; default: all")
    parser.add_argument(
        "--seeds", type=int, help="repeats of runs with and without privacy; default 3 of fashion, 1 of others"
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
    benchmark = Benchmark(options)
    done = benchmark.run()
    print(benchmark.draw())
    return 0 if done and set(options.set) - benchmark.left_out else 1


if __name__ == "__main__":
    raise SystemExit(main())
