"""Whole runs, from files to released weights, with the door recorded and frozen (Re:cord-play, Cebere et al. 2026).

What goes into ``noise.privatize`` is kept, and what comes out is fixed. Two runs on neighbouring datasets with the same
seed may then differ in what went in, by no more than the stated sensitivity, and in nothing else that is published.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dptrain
from dptrain import PrivacyPlan
from dptrain.privacy import noise
from dptrain.privacy.streams import NoiseStream


@dataclass
class Door:
    """What passed the door of one run.

    Attributes:
        values: By step, what went in.
        stated: By step, the sensitivity and the noise multiplier that came with it.
        draws: How many random numbers were asked for, in their order; a newcomer's own coins are left out.
    """

    values: list[dict[str, Tensor]] = field(default_factory=list)
    stated: list[tuple[float, float]] = field(default_factory=list)
    draws: list[tuple[str, ...]] = field(default_factory=list)


def run_on(
    dataset: Path, start: Path, where: Path, patch: pytest.MonkeyPatch, newcomers: int = 0, **changes: Any
) -> tuple[dptrain.TrainResult, Door]:
    """Train as users do, in a folder of its own, with the door recorded and frozen.

    Args:
        dataset: A ``data.yaml`` beside the ``.txt`` that lists its images; both are copied into the folder.
        start: The weights to begin from.
        where: The folder; the run's own is ``out`` in it.
        patch: Undoes everything at its end.
        newcomers: How many images the dataset has beyond its neighbour.
        changes: Options of ``dptrain.train``.
    """
    where.mkdir(exist_ok=True)
    (where / "pets.yaml").write_text(dataset.read_text())
    (where / dataset.with_suffix(".txt").name).write_text(dataset.with_suffix(".txt").read_text())
    patch.chdir(where)
    seen = Door()
    synced: list[int] = []
    real_fsync = os.fsync
    patch.setattr(os, "fsync", lambda handle: (synced.append(os.fstat(handle).st_ino), real_fsync(handle))[1])

    def door(
        value: dict[str, Tensor], *, sensitivity: float, noise_multiplier: float, stream: NoiseStream
    ) -> dict[str, Tensor]:
        seen.values.append({name: tensor.double().clone() for name, tensor in value.items()})
        seen.stated.append((sensitivity, noise_multiplier))
        journal = (where / "out" / "steps.journal").stat()
        assert journal.st_size == len(seen.values), "noise before the step was counted"
        assert journal.st_ino in synced, "the step was counted, and not brought to the disk"
        synced.clear()
        generator = torch.Generator().manual_seed(len(seen.values))
        return {name: torch.randn(tensor.shape, generator=generator) for name, tensor in value.items()}

    patch.setattr(noise, "privatize", door)
    for kind in ("integer", "uniform", "gaussian"):
        _count(patch, kind, seen, newcomers)
    result = dptrain.train(
        model=str(start), data="pets.yaml", output_dir="out", workers=0, seed=5, validation="off",
        **{
            "plan": PrivacyPlan(0.7, 4, 1.0, 0.3, 1e-3, 4), "imgsz": 32, "physical_batch_size": 2, "evaluate_every": 2,
            "augment": {"fliplr": 0.5}, "tracking": {"enabled": False}, "budget": {"url": None}, **changes,
        },
    )  # fmt: skip
    return result, seen


def _count(patch: pytest.MonkeyPatch, kind: str, seen: Door, newcomers: int) -> None:
    real = getattr(NoiseStream, kind)

    def draw(self: NoiseStream, *count: int) -> Any:
        own = newcomers if kind == "uniform" else 0
        seen.draws.append((kind, *(str(number - own) for number in count)))
        return real(self, *count)

    patch.setattr(NoiseStream, kind, draw)


def published(where: Path) -> dict[str, bytes]:
    """Return every file of the run in ``where`` that is not the owner's, by name; its folder's name is left out."""
    output = where / "out"
    there = {str(file.relative_to(output)): file for file in output.rglob("*") if file.is_file()}
    return {
        name: file.read_bytes().replace(bytes(where), b"")
        for name, file in there.items()
        if not name.startswith("owner/")
    }
