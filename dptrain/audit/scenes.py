"""Synthetic scenes for audits: shapes on noise, with boxes, made here, so that an audit touches nobody's images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

from ..detection.data import DetectionDataset, load_data
from ..support.files import write_text

CLASSES = ("square", "disc", "cross")

Scene = tuple[np.ndarray, np.ndarray]
"""RGB pixels (size, size, 3) uint8, and boxes (k, 5) float32: class, centre x and y, width, height in parts of it."""


def draw_scene(size: int, rng: np.random.Generator) -> Scene:
    """Draw one to three shapes, each of a class, on a noisy background."""
    picture = rng.normal(rng.uniform(30, 110), rng.uniform(3, 15), (size, size, 3))
    rows, columns = np.mgrid[:size, :size]
    boxes = []
    for _ in range(int(rng.integers(1, 4))):
        kind = int(rng.integers(len(CLASSES)))
        half = float(rng.uniform(0.1, 0.22)) * size
        y, x = rng.uniform(half, size - half, 2)
        down, across = np.abs(rows + 0.5 - y), np.abs(columns + 0.5 - x)
        box = np.maximum(down, across) < half
        shape = (box, np.hypot(down, across) < half, box & (np.minimum(down, across) < half / 3))[kind]
        picture[shape] = rng.uniform(140, 255, 3)
        boxes.append((kind, x / size, y / size, 2 * half / size, 2 * half / size))
    return picture.clip(0, 255).astype(np.uint8), np.array(boxes, np.float32).reshape(-1, 5)


def draw_canary(size: int, classes: int, rng: np.random.Generator) -> Scene:
    """Draw noise in blocks of an eighth of the side, with one box of a random class at a random place.

    Nothing of it can be learnt from other images, so a model that knows it has seen it. All canaries are drawn alike:
    their losses then move alike, but for what the model has seen.
    """
    coarse = rng.integers(0, 256, (8, 8, 3))
    grain = -(-size // 8)
    picture = coarse.repeat(grain, 0).repeat(grain, 1)[:size, :size].astype(np.uint8)
    side = 0.4
    x, y = rng.uniform(side / 2, 1 - side / 2, 2)
    return picture, np.array([[rng.integers(classes), x, y, side, side]], np.float32)


def write_dataset(folder: Path, scenes: Sequence[Scene], names: Sequence[str]) -> Path:
    """Write scenes as the train split of a dataset in Ultralytics' layout; return its data.yaml."""
    from PIL import Image

    for kind in ("images", "labels"):
        (folder / kind / "train").mkdir(parents=True)
    for number, (picture, boxes) in enumerate(scenes):
        Image.fromarray(picture).save(folder / "images" / "train" / f"{number:06}.png")
        rows = "".join(f"{int(row[0])} {' '.join(f'{value:.6f}' for value in row[1:])}\n" for row in boxes)
        write_text(folder / "labels" / "train" / f"{number:06}.txt", rows)
    file = folder / "data.yaml"
    described = {"path": str(folder), "train": "images/train", "names": dict(enumerate(names))}
    write_text(file, yaml.safe_dump(described, sort_keys=False))
    return file


def open_dataset(file: Path, imgsz: int) -> DetectionDataset:
    """Open the train split of a data.yaml, every image checked."""
    return DetectionDataset(load_data(file), "train", imgsz)
