"""What a second process gains: ``python -m benchmarks.processes`` prints JSON.

Whole steps of one process and of two, in turns and on the same draws, each process with one thread on this machine.
Images are made up and lie in memory. ``processor`` is processor time, of the slower process where there are two: other
work on the machine disturbs it less than the time on the clock, which is what counts.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from .machine import processor
from .steps import CLASSES, random_batch

_UNITS = 1024


class _Pictures:
    """Random images in memory, a few that stand for all."""

    def __init__(self, pixels: int) -> None:
        self.imgsz = pixels
        batch = random_batch(32, pixels, "cpu")
        self._samples = [
            {
                "img": (batch["img"][number] * 255).byte(),
                "cls": batch["cls"][batch["batch_idx"] == number],
                "bboxes": batch["bboxes"][batch["batch_idx"] == number],
            }
            for number in range(32)
        ]

    def sample(self, index: int, seed: int) -> dict[str, Any]:
        """Return the image that stands for number ``index``."""
        return self._samples[index % 32]


def _work(rank: int, store_file: str, args: argparse.Namespace, told: Any) -> None:
    import torch.distributed as dist

    from dptrain import PrivacyPlan
    from dptrain.detection import PerImageLoss, load_model
    from dptrain.detection.data import StepLoader
    from dptrain.training.processes import Group, joined
    from dptrain.training.trainer import PrivateTrainer

    torch.set_num_threads(1)
    plan = PrivacyPlan(args.expected / _UNITS, args.repeats + 1, 1.0, 1.0, 1e-5, args.expected)
    pictures = _Pictures(args.pixels)

    def trainer_of(group: Group | None) -> PrivateTrainer:
        torch.manual_seed(0)
        module = load_model(f"{args.model}.yaml", CLASSES, norm="group")
        return PrivateTrainer(
            module, PerImageLoss(), plan, torch.optim.SGD(module.parameters(), lr=1e-4),
            StepLoader(pictures, args.at_once), _UNITS, identities=[str(number).encode() for number in range(_UNITS)],
            seed=0, ema_decay=0.99, group=group, probe=False,
        )  # fmt: skip

    with joined(rank, 2, dist.FileStore(store_file, 2), torch.device("cpu")) as group:
        alone, together = trainer_of(None).run(), trainer_of(group).run()
        seconds: dict[str, list[float]] = {
            "one": [],
            "two": [],
            "exchange": [],
            "processor_one": [],
            "processor_two": [],
        }
        numbers = sum(p.numel() for p in load_model(f"{args.model}.yaml", CLASSES, norm="group").parameters())
        for _ in range(args.repeats + 1):
            if group.is_first:
                began, busy = time.perf_counter(), time.process_time()
                next(alone)
                seconds["one"].append(time.perf_counter() - began)
                seconds["processor_one"].append(time.process_time() - busy)
            group.hand_out()
            began, busy = time.perf_counter(), time.process_time()
            next(together)
            seconds["two"].append(time.perf_counter() - began)
            slower = torch.tensor(time.process_time() - busy)
            dist.all_reduce(slower, dist.ReduceOp.MAX)
            seconds["processor_two"].append(float(slower))
            group.hand_out()
            began = time.perf_counter()
            dist.reduce(torch.ones(numbers, dtype=torch.float64), dst=0)
            dist.broadcast(torch.ones(numbers), src=0)
            seconds["exchange"].append(time.perf_counter() - began)
        if group.is_first:
            told.send({name: statistics.median(times[1:]) for name, times in seconds.items()} | {"parameters": numbers})


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="one process against two, with one thread each")
    parser.add_argument("--model", default="yolo26n")
    parser.add_argument("--pixels", type=int, default=128)
    parser.add_argument("--expected", type=int, default=256, help="expected batch size")
    parser.add_argument("--at-once", type=int, default=16, help="physical batch size")
    parser.add_argument("--repeats", type=int, default=5, help="steps, after one that warms up")
    args = parser.parse_args()

    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        started = [
            context.Process(target=_work, args=(rank, str(Path(folder) / "store"), args, there)) for rank in range(2)
        ]
        for process in started:
            process.start()
        there.close()
        found = here.recv()
        for process in started:
            process.join()
    print(
        json.dumps(
            {
                "machine": {
                    "processor": processor(), "cores": os.cpu_count(), "load_before": load, "torch": torch.__version__,
                },
                "case": vars(args),
                "seconds": {name: round(value, 4) for name, value in found.items() if name != "parameters"},
                "parameters": found["parameters"],
                "ratio": round(found["one"] / found["two"], 3),
                "processor_ratio": round(found["processor_one"] / found["processor_two"], 3),
            },
            indent=2,
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
