"""Small detectors, and neighbouring datasets of image files for them to train on."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from dptrain.detection.model import load_model

from ..detectors import stock_detector, write_checkpoint

SIZE = 32
DETECTORS = ("end2end group", "end2end frozen_bn", "dfl group", "dfl frozen_bn")

# Two levels, a C2f block and the Detect layer of YOLO26 (two heads, L1 loss) or of YOLOv8 (one head, DFL).
_DESCRIPTION = """
nc: 2
end2end: {end2end}
reg_max: {reg_max}
backbone:
  - [-1, 1, Conv, [8, 3, 2]]
  - [-1, 1, Conv, [8, 3, 2]]
  - [-1, 1, C2f, [8, True]]
  - [-1, 1, Conv, [16, 3, 2]]
head:
  - [[2, 3], 1, Detect, [nc]]
"""


def description(folder: Path, kind: str = "end2end") -> Path:
    """Write the description of a detector of two levels and a hundred thousand parameters at most."""
    file = folder / f"{kind}.yaml"
    end2end = kind == "end2end"
    file.write_text(_DESCRIPTION.format(end2end=end2end, reg_max=1 if end2end else 16))
    return file


@functools.cache
def _detector(name: str, folder: Path) -> Any:
    kind, norm = name.split()
    torch.manual_seed(0)
    if kind not in ("end2end", "dfl"):  # one of Ultralytics' own, in part: it takes seconds as it is
        return load_model(f"{kind}.yaml", 2, norm=norm, trainable=["model.0.*", "model.4.*", "model.23.*"])
    file = description(folder, kind)
    if norm == "frozen_bn":
        file = write_checkpoint(stock_detector(str(file.with_suffix("")), "ab"), folder / f"{kind}.pt")
    return load_model(file, 2, norm=norm)


def detector(name: str, folder: Path) -> Any:
    """Return a fresh copy of one of ``DETECTORS``, or of a stock detector of which three blocks train."""
    return copy.deepcopy(_detector(name, folder))


# --- images ----------------------------------------------------------------------------------------------------------


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    centre, side = rng.uniform(0.3, 0.7, (count, 2)), rng.uniform(0.02, 0.5, (count, 2))
    return np.column_stack((rng.integers(0, 2, count), centre, side))


def _pixels(rng: np.random.Generator, height: int = SIZE, width: int = SIZE) -> np.ndarray:
    return rng.integers(0, 256, (height, width, 3)).astype(np.uint8)


_FLAT = np.zeros((SIZE, SIZE, 3), np.uint8)
# Pixels and label rows, by kind of image.
IMAGES: dict[str, Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]]] = {
    "ordinary": lambda rng: (_pixels(rng, 24, 40), _boxes(rng, 3)),
    "no boxes": lambda rng: (_pixels(rng), np.zeros((0, 5))),
    "one box": lambda rng: (_pixels(rng), _boxes(rng, 1)),
    "all black": lambda rng: (_FLAT, _boxes(rng, 2)),
    "all white, no boxes": lambda rng: (_FLAT + 255, np.zeros((0, 5))),
    "300 boxes": lambda rng: (_pixels(rng), _boxes(rng, 300)),
    "tiny boxes": lambda rng: (_pixels(rng), np.array([[0, 0.5, 0.5, 1e-4, 1e-4], [1, 0.2, 0.2, 1e-4, 0.3]])),
    "a box of the whole image": lambda rng: (_pixels(rng), np.array([[0, 0.5, 0.5, 1.0, 1.0]])),
    "one pixel": lambda rng: (_pixels(rng, 1, 1), _boxes(rng, 1)),
    "a long strip": lambda rng: (_pixels(rng, 2, 200), _boxes(rng, 2)),
}


def _filled(value: float) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda sample: {**sample, "img": torch.full(sample["img"].shape, value)}


def _spoilt(sample: dict[str, Any]) -> dict[str, Any]:
    image = sample["img"].float()
    image[:, 3, 5] = torch.inf
    return {**sample, "img": image}


def _no_size(sample: dict[str, Any]) -> dict[str, Any]:
    return {**sample, "cls": torch.ones(2, 1), "bboxes": torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.3, 0.2, 0.0, 0.4]])}


# What no file can hold, put in the place of the newcomer's sample after its augmentation.
AFTER_AUGMENTATION: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "NaN": _filled(torch.nan),
    "one pixel is infinite": _spoilt,
    "too large to square": _filled(1e30),
    "boxes of no size": _no_size,
}
NEWCOMERS = (*IMAGES, *AFTER_AUGMENTATION)


def write_image(folder: Path, name: str, kind: str, seed: int) -> Path:
    """Write an image of a kind with its labels, in Ultralytics' layout."""
    pixels, rows = IMAGES.get(kind, IMAGES["ordinary"])(np.random.default_rng(seed))
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    file = folder / "images" / f"{name}.png"
    assert cv2.imwrite(str(file), pixels)
    lines = [f"{int(c)} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n" for c, x, y, w, h in rows]
    (folder / "labels" / f"{name}.txt").write_text("".join(lines))
    return file


@dataclass(frozen=True)
class Neighbours:
    """Two datasets that differ in one image.

    Attributes:
        smaller, larger: Their ``data.yaml``.
        place: The newcomer's number in the larger one.
        kind: What it is.
    """

    smaller: Path
    larger: Path
    place: int
    kind: str


def write_neighbours(folder: Path, kinds: Sequence[str], newcomer: str, place: int, seed: int = 0) -> Neighbours:
    """Write images ``kinds`` and a newcomer that the order of file names puts at ``place``."""
    names = [f"{row:02}" for row in range(len(kinds) + 1)]
    others = zip(names[:place] + names[place + 1 :], kinds, strict=True)
    files = [write_image(folder, name, kind, seed + row) for row, (name, kind) in enumerate(others)]
    other = write_image(folder, names[place], newcomer, seed + len(kinds))
    made = []
    for name, rows in (("smaller", files), ("larger", [*files, other])):
        (folder / f"{name}.txt").write_text("".join(f"{file}\n" for file in rows))
        (folder / f"{name}.yaml").write_text(f"path: .\ntrain: {name}.txt\nval: {name}.txt\nnames: [one, two]\n")
        made.append(folder / f"{name}.yaml")
    return Neighbours(made[0], made[1], place, newcomer)
