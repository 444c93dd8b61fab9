"""A training run on one of two neighbouring datasets, with everything about it recorded.

The door, ``noise.privatize``, is wrapped (Re:cord-play, Cebere et al. 2026): what goes in is kept, and what comes out
is fixed. Two runs on neighbouring datasets with the same seed may then differ in what went in, and in nothing else.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dptrain import PrivacyPlan
from dptrain.detection.data import Augmentation, DetectionDataset, StepLoader, collate, load_data, to_device
from dptrain.detection.loss import PerImageLoss
from dptrain.privacy import noise
from dptrain.privacy.sampling import PoissonSampler
from dptrain.privacy.streams import NoiseStream
from dptrain.run.optimizers import make_optimizer
from dptrain.settings.schema import OptimizerConfig
from dptrain.training.clipped_sum import ClippedSum
from dptrain.training.trainer import PrivateTrainer

from .datasets import AFTER_AUGMENTATION, DETECTORS, SIZE, Neighbours, detector

AUGMENTED = Augmentation(fliplr=0.5, flipud=0.5, hsv_v=0.4, translate=0.2, scale=0.3, crop=0.2)


class Coupled:
    """The sampler's stream on a dataset whose newcomer is not its last image: every other unit keeps its own coin.

    The coins of a step are independent and alike, so that handing them out in another order changes no probability:
    the run on the larger dataset is as likely as it was, whatever comes out, and the guarantee is about nothing else.
    """

    def __init__(self, stream: Any, place: int) -> None:
        self._stream, self._place = stream, place

    def at(self, step: int) -> Coupled:
        return Coupled(self._stream.at(step), self._place)

    def integer(self) -> int:
        return self._stream.integer()

    def uniform(self, count: int) -> np.ndarray:
        coins = self._stream.uniform(count)
        return np.insert(coins[:-1], self._place, coins[-1])


@dataclass
class Recorded:
    """What one run did.

    Attributes:
        events: In their order: hooks, learning rates, draws of randomness, optimizer steps, calls of the door.
        served: By step, the samples that were loaded without the newcomer's: number among the others, digest.
        newcomer: By step, the newcomer's samples; at most one.
        sums: By step, what went into the door.
        own: By step, the newcomer's clipped gradient computed from its sample alone; empty where it was not drawn.
        state: Weights, average, optimizer and generators at the end, as bytes.
    """

    events: list[tuple[Any, ...]] = field(default_factory=list)
    served: list[list[tuple[int, str]]] = field(default_factory=list)
    newcomer: list[list[dict[str, Any]]] = field(default_factory=list)
    sums: list[dict[str, Tensor]] = field(default_factory=list)
    own: list[dict[str, Tensor]] = field(default_factory=list)
    state: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """How both runs of a pair train."""

    plan: PrivacyPlan
    detector: str = DETECTORS[0]
    engine: str = "fused"
    physical_batch_size: int = 2
    augmented: bool = True
    double: bool = True
    seed: int = 0
    optimizer: str = "sgd"


def record(neighbours: Neighbours, larger: bool, settings: Settings, models: Path) -> Recorded:
    """Train on one of the two datasets, from its files to the last noised step, with the door frozen."""
    seen = Recorded()
    model = detector(settings.detector, models)
    if settings.double:
        model = model.double()
    file = neighbours.larger if larger else neighbours.smaller
    dataset = DetectionDataset(load_data(file), "train", SIZE, AUGMENTED if settings.augmented else None)
    units = len(dataset)
    place = neighbours.place if larger else units
    before = _generators()
    loss = _in_double(PerImageLoss()) if settings.double else PerImageLoss()

    def begin(step: int) -> None:
        seen.events.append(("step", step))
        seen.served.append([])
        seen.newcomer.append([])

    def release(steps: int) -> None:
        seen.events.append(("release", steps))
        if seen.newcomer[-1]:  # the weights are still those of the sum
            alone = to_device(collate(seen.newcomer[-1]), "cpu")
            seen.own.append(ClippedSum(settings.plan, model, loss, settings.engine).over(alone))
        else:
            seen.own.append({})

    with pytest.MonkeyPatch.context() as patch:
        _freeze_the_door(patch, seen)
        _count_draws(patch, seen, more=int(larger))
        _name_samples(patch, dataset, seen, place, neighbours.kind)
        if place < units - 1:

            def coupled(plan: PrivacyPlan, count: int, coins: Any, identities: None) -> PoissonSampler:
                return PoissonSampler(count, plan.sample_rate, Coupled(coins, place))  # type: ignore[arg-type]

            patch.setattr(PrivacyPlan, "sampler", coupled)
        trainer = PrivateTrainer(
            model,
            loss,
            settings.plan,
            make_optimizer(
                OptimizerConfig(settings.optimizer, lr=0.05, momentum=0.9),
                [p for p in model.parameters() if p.requires_grad],
            ),
            StepLoader(dataset, settings.physical_batch_size),
            units,
            seed=settings.seed,
            engine=settings.engine,
            ema_decay=0.9,
            set_rate=lambda step: _note(seen, ("rate", step), 0.05 / (step + 1)),
            before_step=begin,
            on_release=release,
            probe=False,  # dptrain.train tries made-up images instead
        )
        trainer.optimizer.register_step_post_hook(lambda *_: seen.events.append(("optimizer",)))
        for step in trainer.run():
            seen.events.append(("yielded", step))
    assert _generators() == before, "a generator of the whole process was drawn from"
    state = trainer.state()
    momenta = {f"{k}.{name}": v for k, kept in state["optimizer"]["state"].items() for name, v in kept.items()}
    for part, tensors in (("weights", state["parameters"]), ("frozen", state["frozen"]), ("average", state["average"]),
                          ("momentum", momenta)):  # fmt: skip
        seen.state[part] = b"".join(tensor.numpy().tobytes() for tensor in tensors.values())
    seen.state["optimizer's numbers"] = repr(
        [{k: v for k, v in group.items() if k != "params"} for group in state["optimizer"]["param_groups"]]
    ).encode()
    return seen


def _note(seen: Recorded, event: tuple[Any, ...], value: float) -> float:
    seen.events.append((*event, value))
    return value


def _in_double(loss: PerImageLoss) -> Callable[[Any, Any], Tensor]:
    return lambda model, batch: loss(model, {**batch, "img": batch["img"].double()})


def _generators() -> tuple[Any, ...]:
    return torch.get_rng_state().numpy().tobytes(), np.random.get_state()[1].tobytes(), random.getstate()  # type: ignore[union-attr, index]  # noqa: NPY002


def _freeze_the_door(patch: pytest.MonkeyPatch, seen: Recorded) -> None:
    real = noise.privatize

    def door(
        value: dict[str, Tensor], *, sensitivity: float, noise_multiplier: float, stream: Any
    ) -> dict[str, Tensor]:
        seen.sums.append({name: tensor.double().clone() for name, tensor in value.items()})
        shapes = tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in value.items())
        seen.events.append(("door", shapes, sensitivity, noise_multiplier))
        real(
            value, sensitivity=sensitivity, noise_multiplier=noise_multiplier, stream=stream
        )  # it draws, and may refuse
        generator = torch.Generator().manual_seed(len(seen.sums))
        scale = sensitivity * noise_multiplier
        return {name: scale * torch.randn(tensor.shape, generator=generator) for name, tensor in value.items()}

    patch.setattr(noise, "privatize", door)


def _count_draws(patch: pytest.MonkeyPatch, seen: Recorded, more: int) -> None:
    """Note how many numbers are drawn, in which order; the newcomer's own coins (``more`` a step) are left out."""

    def watch(name: str) -> None:
        real = getattr(NoiseStream, name)

        def draw(self: NoiseStream, *count: int) -> Any:
            own = more if name == "uniform" else 0
            seen.events.append((name, *(number - own for number in count)))
            return real(self, *count)

        patch.setattr(NoiseStream, name, draw)

    for name in ("integer", "uniform", "gaussian"):
        watch(name)


def _name_samples(patch: pytest.MonkeyPatch, dataset: DetectionDataset, seen: Recorded, place: int, kind: str) -> None:
    """Note what is loaded; give every unit but the newcomer the same augmentation whatever its number is."""
    real, real_rng = dataset.sample, np.random.default_rng
    last = len(dataset) - 1

    def row_of(index: int) -> int:
        return last if index == place else index - (index > place)

    def rng(key: list[int]) -> np.random.Generator:
        seed, index = key
        return real_rng([seed, row_of(index)])

    def sample(index: int, seed: int = 0) -> dict[str, Any]:
        patch.setattr(np.random, "default_rng", rng)
        try:
            found = real(index, seed)
        finally:
            patch.setattr(np.random, "default_rng", real_rng)
        if index == place:
            seen.newcomer[-1].append(AFTER_AUGMENTATION.get(kind, lambda same: same)(found))
            return seen.newcomer[-1][-1]
        digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in found.values())).hexdigest()
        seen.served[-1].append((row_of(index), digest))
        return found

    patch.setattr(dataset, "sample", sample)


def length(value: dict[str, Tensor]) -> float:
    """Return the Euclidean norm, all tensors taken as one vector."""
    return float(torch.cat([tensor.double().flatten() for tensor in value.values()]).norm()) if value else 0.0


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return ``one - other``; nothing is subtracted from ``one`` where ``other`` is empty."""
    return {name: tensor - other[name] for name, tensor in one.items()} if other else one
