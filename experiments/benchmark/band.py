"""Measure where a small private run lands, for the test that holds the benchmark to it.

    python -m experiments.benchmark.band        # eight runs, some minutes; writes experiments/results/band.json

The run is the digits set at epsilon 8 with fewer and smaller steps. Noise and draws are fresh each time, so the runs
differ; the band is four sample deviations to each side of their mean.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

from dptrain.support.files import write_json
from experiments.benchmark.a_set import BenchmarkSet
from experiments.benchmark.runs import Job, measure
from experiments.benchmark.sets import SETS
from experiments.sweep import machine

RESULTS = Path(__file__).resolve().parent.parent / "results" / "band.json"
JOB = Job("digits", "private", 0, 8.0)
WIDTH = 4  # sample deviations


def small_set() -> BenchmarkSet:
    """The digits set with a recipe of seconds."""
    found = SETS["digits"]
    few = {"steps": 12, "privacy": {"clip_norm": 1.0, "expected_batch_size": 128}}
    return replace(found, private={**found.private, **few})


def main() -> None:
    parser = argparse.ArgumentParser(description="measure the band of the quick benchmark")
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--root", type=Path, help="keep the scenes there; default a temporary folder")
    options = parser.parse_args()
    SETS["digits"] = small_set()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = SETS["digits"].prepare((options.root or Path(folder)) / "data")
        for number in range(options.runs):
            rows.append(measure(JOB, data, Path(folder) / str(number)))
            print(rows[-1], flush=True)
    scores = [row["mAP50"] for row in rows]
    mean, deviation = statistics.mean(scores), statistics.stdev(scores)
    band = [round(max(0.0, mean - WIDTH * deviation), 4), round(min(1.0, mean + WIDTH * deviation), 4)]
    found = {"mean": round(mean, 4), "deviation": round(deviation, 4), "band": band}
    write_json(
        RESULTS, {"command": "python -m experiments.benchmark.band", "machine": machine(), **found, "runs": rows}
    )
    print(found)


if __name__ == "__main__":
    main()
