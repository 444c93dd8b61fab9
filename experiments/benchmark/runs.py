"""One number of the benchmark at a time: each run in a process of its own, its result in a JSON of its own.

The JSONs are part of the repository, so that the runs may be made on several machines, one after the other.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import commit
from dptrain.support.files import file_hash, write_json
from experiments.benchmark.a_set import BenchmarkSet
from experiments.benchmark.sets import SETS
from experiments.photos import Missing
from experiments.sweep import machine

Row = dict[str, Any]
KINDS = ("start", "stock", "plain", "private")


@dataclass(frozen=True)
class Job:
    """One run of one set.

    Attributes:
        set: Its name.
        kind: ``start`` (the public start, untrained), ``stock`` (Ultralytics' own training), ``plain`` (our
            loop without privacy) or ``private``.
        repeat: Which of several; of a run without privacy it is the seed, a private run draws afresh each time.
        epsilon: Of a private run.
        rate: Learning rate of a run without privacy.
    """

    set: str
    kind: str
    repeat: int = 0
    epsilon: float | None = None
    rate: float | None = None

    @property
    def key(self) -> str:
        """Its name among the runs of its set."""
        of = "" if self.epsilon is None else f"_eps{self.epsilon:g}"
        return f"{self.kind}{of}{'' if self.rate is None else f'_lr{self.rate:g}'}_{self.repeat}"

    def settings(self) -> dict[str, Any]:
        """Everything that decides what it is, as plain data; where the start is not there, no hash of it."""
        found = SETS[self.set]
        try:
            start = file_hash(found.start())
        except Missing:
            start = None
        own: dict[str, Any] = {"job": asdict(self), "imgsz": found.imgsz, "start_sha256": start}
        if self.kind == "plain":
            own["plain"] = asdict(found.plain)
            del own["plain"]["rates"]  # its own is the job's
            if found.plain.head == "auto":
                del own["plain"]["head"]  # as in the files of runs from before it could be chosen
        if self.kind == "stock":
            own["stock"] = found.stock
        if self.kind == "private":
            assert self.epsilon is not None
            own["private"] = found.private_options(self.epsilon)
        return json.loads(json.dumps(own))


def jobs_of(found: BenchmarkSet, epsilons: Sequence[float], repeats: int, best: float | None) -> Iterator[Job]:
    """Every job of a set, in its order: stock, plain rates, then one private repeat after the other.

    Args:
        found: The set.
        epsilons: Of the private runs.
        repeats: Of plain and private runs.
        best: The plain rate that did best, once it is known; its repeats come last.
    """
    yield Job(found.name, "start")
    if found.stock is not None:
        yield Job(found.name, "stock")
    for rate in found.plain.rates:
        yield Job(found.name, "plain", 0, rate=rate)
    for repeat in range(repeats):
        for epsilon in sorted(epsilons, reverse=True):
            yield Job(found.name, "private", repeat, epsilon)
    if best is not None:
        for repeat in range(1, repeats):
            yield Job(found.name, "plain", repeat, rate=best)


def process_of_its_own() -> ProcessPoolExecutor:
    """A fresh process for one run; it ends with this one, however that ends."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=_end_with_parent)


def _end_with_parent() -> None:
    """Nobody would keep what a process measures that outlives the one that started it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        sentinel = parent.sentinel

        def watch() -> None:
            wait([sentinel])
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


def measure(job: Job, data: Path, folder: Path) -> Row:
    """Do one run; called in a process of its own, whose memory is then the run's."""
    from dptrain.statement.results import MAP, MAP50

    found = SETS[job.set]
    began = time.perf_counter()
    if job.kind == "private":
        values, row = _private(found, job, data, folder)
    elif job.kind == "stock":
        values, row = _stock(found, data, folder), {}
    elif job.kind == "plain":
        from experiments.plain import fine_tune

        assert job.rate is not None
        metrics, seconds = fine_tune(found.start(), data, found.plain, job.rate, imgsz=found.imgsz, seed=job.repeat)
        values, row = metrics.values, {"train_seconds": round(seconds, 1)}
    else:
        from dptrain.detection import load_model
        from dptrain.detection.data import DetectionDataset, load_data
        from dptrain.detection.evaluate import evaluate

        parsed = load_data(data)
        model = load_model(found.start(), parsed.num_classes, names=parsed.names)
        values, row = evaluate(model, DetectionDataset(parsed, "val", found.imgsz)).values, {}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "mAP50": round(values[MAP50], 4), "mAP50-95": round(values[MAP], 4), **row,
        "seconds": round(time.perf_counter() - began, 1), "peak_memory_mb": round(peak / 1e6),
        "threads": torch.get_num_threads(),
    }  # fmt: skip


def _stock(found: BenchmarkSet, data: Path, folder: Path) -> dict[str, float]:
    """Train by Ultralytics with its defaults; batches of 16, its rates, its augmentation."""
    os.environ.setdefault("YOLO_CONFIG_DIR", str(folder.resolve()))
    from ultralytics import YOLO

    folder, data, start = folder.resolve(), data.resolve(), found.start().resolve()
    os.chdir(data.parent)  # from which it reads a relative path
    trained = YOLO(str(start)).train(
        data=str(data), epochs=found.stock, imgsz=found.imgsz, device="cpu", workers=0, plots=False, verbose=False,
        project=str(folder), name="stock", exist_ok=True,
    )  # fmt: skip
    assert trained is not None
    return {name.replace("(B)", "B"): float(value) for name, value in trained.results_dict.items()}


def _private(found: BenchmarkSet, job: Job, data: Path, folder: Path) -> tuple[dict[str, float], Row]:
    import dptrain

    assert job.epsilon is not None
    options = found.private_options(job.epsilon, found.public(folder / "public") if found.public else None)
    shutil.rmtree(folder / job.key, ignore_errors=True)  # of a run that was cut
    result = dptrain.train(
        model=str(found.start()),
        data=str(data),
        output_dir=str(folder / job.key),
        evaluate_every=options["steps"],
        tracking={"enabled": False},
        budget={"url": None},  # what all runs of a set cost together is computed from their plans
        **options,
    )
    plan = result.plan
    row = {"epsilon": round(result.epsilon, 4), "noise_multiplier": plan.noise_multiplier, "steps": plan.steps}
    return result.metrics, row


class Results:
    """The finished runs of a set: JSON files under one folder.

    Args:
        folder: Of the JSON files.
        runs: Where the private runs leave their weights and statements.
        any_commit: Whether runs of another commit count.
    """

    def __init__(self, folder: Path, runs: Path, any_commit: bool = False) -> None:
        self.folder, self.runs, self.any_commit, self.commit = folder, runs, any_commit, commit()

    def find(self, job: Job) -> Row | None:
        """What the job gave, if it was done with the same settings by the same commit."""
        return self._read(self.folder / f"{job.key}.json")

    def all(self) -> list[Row]:
        """What all jobs gave, as :meth:`find` finds them."""
        rows = [self._read(file) for file in sorted(self.folder.glob("*.json"))]
        return [row for row in rows if row is not None]

    def _read(self, file: Path) -> Row | None:
        try:
            row = json.loads(file.read_text(encoding="utf-8"))
            job, commit_then = Job(**row["settings"]["job"]), row["machine"]["commit"]
            settings = job.settings()
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None  # not done, or written by hand: measured again
        settings["start_sha256"] = settings["start_sha256"] or row["settings"].get("start_sha256")
        same = job.set == self.folder.name and f"{job.key}.json" == file.name and row["settings"] == settings
        return row if same and (self.any_commit or commit_then == self.commit) else None

    def best_rate(self, found: BenchmarkSet) -> float | None:
        """The plain rate with the highest mAP50-95 on val, once all were tried."""
        tries = {rate: self.find(Job(found.name, "plain", 0, rate=rate)) for rate in found.plain.rates}
        if any(row is None for row in tries.values()):
            return None
        return max(tries, key=lambda rate: (tries[rate] or {})["mAP50-95"])

    def do(self, job: Job, data: Path) -> Row:
        """Measure a job in a process of its own and keep what it gave."""
        settings = job.settings()
        with process_of_its_own() as pool:
            numbers = pool.submit(measure, job, data, self.runs).result()
        row = {**asdict(job), **numbers, "machine": {**machine(), "commit": self.commit}, "settings": settings}
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / f"{job.key}.json", row)
        return row
