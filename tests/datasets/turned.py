"""Copies of a picture that are the same picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from dptrain.datasets.images import read_image


def views(picture: np.ndarray) -> Iterator[np.ndarray]:
    """The four turns and their mirror images, by numpy."""
    for quarter in range(4):
        turned = np.rot90(picture, quarter)
        yield turned
        yield turned[:, ::-1]


def copies(file: Path, folder: Path) -> Iterator[Path]:
    """Save a picture again without loss, one copy at a time: in other formats, turned and mirrored."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, view in enumerate(views(read_image(file))):
        copy = folder / f"copy{number}{('.png', '.bmp', '.tif')[number % 3]}"
        assert cv2.imwrite(str(copy), view)
        yield copy
        copy.unlink()
