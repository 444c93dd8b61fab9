"""Neighbouring datasets through the whole path, from image files to the one door out (Re:cord-play).

``noise.privatize`` is wrapped: what goes in is recorded, what comes out is fixed. Two runs on datasets that differ in
one image, with the same seed, may then differ in nothing but what went in, and there by the clip norm at most.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from dptrain import PrivacyPlan, noise
from dptrain.detection.data import Augmentation, DetectionDataset, StepLoader, load_data
from dptrain.detection.loss import PerImageLoss
from dptrain.detection.model import load_model
from dptrain.training import PrivateTrainer

SIZE, STEPS, CLIP = 64, 3, 0.3


def write_image(folder: Path, name: str, pixels: np.ndarray, boxes: np.ndarray) -> None:
    for kind in ("images", "labels"):
        (folder / kind / "train").mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(folder / "images" / "train" / f"{name}.png"), pixels)
    rows = "".join(f"{int(c)} {x:.5f} {y:.5f} {w:.5f} {h:.5f}\n" for c, x, y, w, h in boxes)
    (folder / "labels" / "train" / f"{name}.txt").write_text(rows)


def some_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    centre, side = rng.uniform(0.3, 0.7, (count, 2)), rng.uniform(0.02, 0.5, (count, 2))
    return np.column_stack((rng.integers(0, 2, count), centre, side))


def newcomer(kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The image that one of the two datasets has and the other has not."""
    noise_image = rng.integers(0, 256, (48, 80, 3)).astype(np.uint8)
    return {
        "ordinary": (noise_image, some_boxes(rng, 3)),
        "black": (np.zeros((64, 64, 3), np.uint8), some_boxes(rng, 1)),
        "white, no boxes": (np.full((64, 64, 3), 255, np.uint8), np.zeros((0, 5))),
        "300 boxes": (noise_image, some_boxes(rng, 300)),
        "tiny boxes": (noise_image, np.array([[0, 0.5, 0.5, 1e-4, 1e-4], [1, 0.2, 0.2, 1e-4, 0.3]])),
        "whole-image boxes": (noise_image, np.tile([[0, 0.5, 0.5, 1.0, 1.0]], (1, 1))),
    }[kind]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    rng = np.random.default_rng(0)
    for index in range(7):
        write_image(folder, f"a{index}", rng.integers(0, 256, (64, 64, 3)).astype(np.uint8), some_boxes(rng, index % 4))
    (folder / "data.yaml").write_text("path: .\ntrain: images/train\nval: images/train\nnames: [one, two]\n")
    return folder


def records(folder: Path, monkeypatch: pytest.MonkeyPatch, engine: str, augmented: bool) -> tuple[list[Any], Tensor]:
    """Train with the door recorded and frozen; return what went in, and the final weights."""
    seen: list[Any] = []

    def door(value: dict[str, Tensor], **how: Any) -> dict[str, Tensor]:
        seen.append(({k: v.double().clone() for k, v in value.items()}, how["sensitivity"], how["noise_multiplier"]))
        generator = torch.Generator().manual_seed(len(seen))
        return {k: torch.randn(v.shape, generator=generator) * 0.01 for k, v in value.items()}

    monkeypatch.setattr(noise, "privatize", door)
    torch.manual_seed(0)
    model = load_model("yolo26n.yaml", 2, norm="group", trainable=["model.0.*", "model.4.*", "model.23.*"])
    changes = Augmentation(fliplr=0.5, hsv_v=0.4, translate=0.2, scale=0.3, crop=0.2) if augmented else None
    dataset = DetectionDataset(load_data(folder / "data.yaml"), "train", SIZE, changes)
    plan = PrivacyPlan(0.6, STEPS, 1.0, CLIP, 1e-3, 4)
    trainer = PrivateTrainer(
        model,
        PerImageLoss(),
        plan,
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0),
        StepLoader(dataset, 3),
        len(dataset),
        seed=12,
        engine=engine,
        ema_decay=0.9,
        probe=False,  # what it would refuse is what is looked for here
    )
    for _ in trainer.run():
        pass
    return seen, torch.cat([v.flatten() for v in trainer.average.values.values()])


@pytest.fixture
def with_newcomer(base: Path, tmp_path: Path) -> Iterator[Any]:
    def build(kind: str) -> Path:
        import shutil

        folder = tmp_path / "larger"
        shutil.copytree(base, folder)
        # Sorted last, so that the other images keep their numbers, and so their coins and their augmentation.
        write_image(folder, "z", *newcomer(kind, np.random.default_rng(5)))
        return folder

    return build


KINDS = ["ordinary", "black", "white, no boxes", "300 boxes", "tiny boxes", "whole-image boxes"]


@pytest.mark.parametrize(("kind", "engine"), [*((kind, "fused") for kind in KINDS), ("300 boxes", "microbatch")])
def test_one_image_changes_the_sum_by_at_most_the_sensitivity_and_nothing_else(
    kind: str, engine: str, base: Path, with_newcomer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, weights = records(base, monkeypatch, engine, augmented=kind == "ordinary")
    other, other_weights = records(with_newcomer(kind), monkeypatch, engine, augmented=kind == "ordinary")
    assert len(one) == len(other) == STEPS
    assert torch.equal(weights, other_weights), "something went round the door"
    distances = []
    for (value, sensitivity, sigma), (other_value, other_sensitivity, other_sigma) in zip(one, other, strict=True):
        assert (sensitivity, sigma) == (other_sensitivity, other_sigma) == (CLIP, 1.0)
        assert value.keys() == other_value.keys()
        gap = torch.cat([(value[k] - other_value[k]).flatten() for k in value]).norm()
        distances.append(float(gap))
    # The rounding of a sum of up to eight gradients of norm CLIP, on top of the sensitivity.
    assert max(distances) <= CLIP * (1 + 1e-4)
    assert max(distances) > 0.9 * CLIP, "the newcomer was never drawn, or its gradient is not clipped: a dull test"


def test_the_test_would_see_a_batch_coupled_loss(
    base: Path, with_newcomer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ultralytics' own normaliser, the sum over the batch, breaks the bound."""
    real = PerImageLoss.__call__

    def coupled(self: PerImageLoss, model: Any, batch: Any) -> Tensor:
        return real(self, model, batch) / (1 + len(batch["cls"]))

    monkeypatch.setattr(PerImageLoss, "__call__", coupled)
    plan_gap = []
    monkeypatch.setattr("dptrain.clipping.FlatClip.weights", lambda self, norms: torch.ones_like(norms))
    one, _ = records(base, monkeypatch, "fused", False)
    other, _ = records(with_newcomer("300 boxes"), monkeypatch, "fused", False)
    for (value, *_), (other_value, *_) in zip(one, other, strict=True):
        plan_gap.append(float(torch.cat([(value[k] - other_value[k]).flatten() for k in value]).norm()))
    assert max(plan_gap) > CLIP * (1 + 1e-4)
