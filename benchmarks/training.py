"""Whole private steps by the real trainer: over their gradient part, by logical batch, and what noise costs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dptrain import PrivacyPlan
from dptrain.detection import PerImageLoss
from dptrain.detection.data import DetectionDataset, StepLoader, load_data
from dptrain.detection.loss import one2many_weight
from dptrain.gradients import trainable_parameters
from dptrain.privacy.sampling import Draw
from dptrain.privacy.streams import NoiseStream
from dptrain.run.optimizers import make_optimizer
from dptrain.settings.schema import OptimizerConfig
from dptrain.training.average import MovingAverage
from dptrain.training.clipped_sum import ClippedSum
from dptrain.training.journal import StepJournal
from dptrain.training.trainer import PrivateTrainer, learning_rate

from . import memory
from .cases import Case
from .files import write_dataset
from .steps import BOXES, CLASSES, Step, detector, random_batch, steps, take_turns

_STEPS = 10_000


def _plan(images: int, rate: float) -> PrivacyPlan:
    return PrivacyPlan(rate, _STEPS, 1.0, 1.0, 1e-5, images)


class _Kept:
    """A loader that remembers the batches it served, step by step."""

    def __init__(self, loader: StepLoader) -> None:
        self.loader = loader
        self.served: list[list[Any]] = []

    def steps(self, draws: Iterator[Draw]) -> Iterator[Iterator[Any]]:
        with closing(self.loader.steps(draws)) as inner:
            for batches in inner:
                self.served.append([])
                yield self._note(batches)

    def _note(self, batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            self.served[-1].append(batch)
            yield batch


def _trainer(
    module: nn.Module, plan: PrivacyPlan, loader: Any, units: int, journal: StepJournal | None = None
) -> PrivateTrainer:
    """Return a trainer set up as ``dptrain train`` does by default."""
    loss = PerImageLoss()

    def weigh_heads(step: int) -> None:
        loss.one2many = one2many_weight(step / plan.steps)

    return PrivateTrainer(
        module,
        loss,
        plan,
        make_optimizer(OptimizerConfig(lr=1e-3), trainable_parameters(module).values()),
        loader,
        units,
        ema_decay=0.99,
        set_rate=lambda step: learning_rate("cosine", 1e-3, step, plan.steps),
        before_step=weigh_heads,
        on_release=None if journal is None else journal.record,
        probe=False,  # tried before the first step of a run, and not a part of one
    )


def measure_whole(case: Case) -> dict[str, Any]:
    """Time one whole step from image files, and the gradient part of it alone on the very same batches.

    The workers read ahead, so a first step is taken and not counted: what they have ready when the clock starts, they
    have ready when it stops. They are gone while the gradient part is timed.
    """
    rate = 0.25
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        data = load_data(write_dataset(Path(folder), int(case.images / rate)))
        dataset = DetectionDataset(data, "train", case.pixels)
        kept = _Kept(StepLoader(dataset, case.physical, case.workers))
        plan = _plan(case.images, rate)
        journal = stack.enter_context(closing(StepJournal(Path(folder) / "steps.journal")))
        trainer = _trainer(detector(case), plan, kept, len(dataset), journal)
        clipped = ClippedSum(plan, trainer.module, trainer.loss_function)
        for few in range(case.physical):  # the last batch of a draw has any size, and the first of a size is slow
            clipped.over(random_batch(few + 1, case.pixels))
        seconds: dict[str, list[float]] = {"gradients": [], "whole": []}
        for repeat in range(case.repeats + 1):
            kept.served.clear()
            run: Any = trainer.run()
            with closing(run):
                next(run)
                began = time.perf_counter()
                step = next(run)
                plan.epsilon(steps=step)  # what the progress bar shows
                whole = time.perf_counter() - began
            batches = kept.served[1]
            began = time.perf_counter()
            for batch in batches:
                clipped.over(batch)
            if repeat:
                seconds["gradients"].append(time.perf_counter() - began)
                seconds["whole"].append(whole)
    return {"seconds": seconds}


def measure_loader(case: Case) -> dict[str, Any]:
    """Return the seconds for one image of the loader and of the gradient step, taking turns."""
    with tempfile.TemporaryDirectory() as folder:
        data = load_data(write_dataset(Path(folder), case.images))
        dataset = DetectionDataset(data, "train", case.pixels)
        loader = StepLoader(dataset, case.physical, case.workers)
        (gradients,) = steps(replace(case, images=case.physical, methods=("fused",))).values()
        seconds: dict[str, list[float]] = {"load": [], "consume": []}
        ahead = case.workers * case.physical  # what may be ready before the clock starts
        for repeat in range(case.repeats + 1):
            draws = (Draw(np.arange(case.images), seed) for seed in range(3))
            loaded = 0
            with closing(loader.steps(draws)) as served:
                batches = (batch for step in served for batch in step)
                next(batches)  # the workers are up
                began = time.perf_counter()
                for batch in batches:
                    loaded += len(batch["img"])
                took = time.perf_counter() - began
            began = time.perf_counter()
            gradients()
            if repeat:
                seconds["consume"].append((time.perf_counter() - began) / case.physical)
                seconds["load"].append(took / max(1, loaded - ahead))
    return {"seconds": seconds}


class _Made:
    """Random images and boxes made on the spot, so that a step's cost is the step's own."""

    def __init__(self, imgsz: int) -> None:
        self.imgsz = imgsz
        self._image = torch.randint(0, 256, (3, imgsz, imgsz), dtype=torch.uint8)

    def sample(self, index: int, seed: int) -> dict[str, Tensor]:
        random = torch.Generator().manual_seed(index)
        return {
            "img": self._image.roll(index, 2),
            "cls": torch.randint(0, CLASSES, (BOXES, 1), generator=random).float(),
            "bboxes": torch.rand((BOXES, 4), generator=random) * 0.3 + 0.2,
        }


def measure_logical(case: Case) -> dict[str, Any]:
    """Time whole steps of an eighth, a quarter, a half and all of the case's images, in physical batches."""
    module = detector(case)
    todo: dict[str, Step] = {}
    for images in (case.images // 8, case.images // 4, case.images // 2, case.images):
        loader = StepLoader(_Made(case.pixels), case.physical)
        trainer = _trainer(module, _plan(images, 1.0), loader, images)  # at rate 1 every step draws all of them
        todo[str(images)] = partial(next, trainer.run())
    # All of them compute in physical batches of one shape, so the smallest warms up for all.
    return {"seconds": take_turns(todo, case.repeats, warm_up=[min(todo, key=int)])}


def measure_logical_memory(case: Case) -> dict[str, Any]:
    """Return the MiB that a step on the case's logical batch needs at most, after one on a physical batch."""
    module = detector(case)

    def run(images: int) -> Iterator[int]:
        loader = StepLoader(_Made(case.pixels), case.physical)
        return _trainer(module, _plan(images, 1.0), loader, images).run()

    next(run(case.physical))
    steps_taken = run(case.images)
    return {"later": memory.peak(lambda: next(steps_taken))}


def measure_noise(case: Case) -> dict[str, Any]:
    """Time noise, optimizer and average of all parameters, and one gradient step of the case's images."""
    (gradients,) = steps(replace(case, methods=("fused",))).values()
    module = detector(case)
    parameters = trainable_parameters(module)
    mechanism, stream = _plan(case.images, 0.01).mechanism(parameters), NoiseStream()
    optimizer = make_optimizer(OptimizerConfig(lr=1e-3), parameters.values())
    average = MovingAverage(parameters, 0.99)
    total = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in parameters.items()}

    def noise() -> None:
        for name, gradient in mechanism.noise(total, stream).items():
            parameters[name].grad = gradient.to(parameters[name].dtype)

    todo: dict[str, Step] = {
        "gradients": gradients,
        "noise": noise,
        "optimizer": optimizer.step,
        "average": lambda: average.update(1),
    }
    return {"seconds": take_turns(todo, case.repeats)}
