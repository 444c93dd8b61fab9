"""Image files to load: as large as those of a telephone or a camera on a wall, and about as hard to decode."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from .steps import BOXES, CLASSES

WIDTH, HEIGHT = 1280, 960


def write_dataset(folder: Path, images: int) -> Path:
    """Write ``images`` JPEGs of 1280 x 960 with ``BOXES`` boxes each in Ultralytics' layout; return the data.yaml."""
    random = np.random.default_rng(0)
    for part in ("images/train", "labels/train"):
        (folder / part).mkdir(parents=True)
    for number in range(images):
        # Coarse structure and some grain: smooth pictures decode too fast, pure noise too slowly.
        coarse = random.integers(0, 256, (HEIGHT // 16, WIDTH // 16, 3), np.uint8)
        picture = cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        grain = random.integers(0, 16, (HEIGHT, WIDTH, 1), np.uint8)
        cv2.imwrite(str(folder / f"images/train/{number:05}.jpg"), cv2.add(picture, np.repeat(grain, 3, 2)))
        rows = [
            f"{random.integers(CLASSES)} {x:.4f} {y:.4f} {w:.4f} {h:.4f}"
            for x, y, w, h in random.uniform((0.3, 0.3, 0.05, 0.05), (0.7, 0.7, 0.4, 0.4), (BOXES, 4))
        ]
        (folder / f"labels/train/{number:05}.txt").write_text("\n".join(rows))
    file = folder / "data.yaml"
    file.write_text(f"path: {folder}\ntrain: images/train\nnames: {[str(i) for i in range(CLASSES)]}\n")
    return file
