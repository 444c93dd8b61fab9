"""Drawn smears as another laboratory would photograph them: what recipes for real photos are tried on, publicly.

The public start has never seen this stain, light and camera, as it has never seen a real photo. The shift was made up;
no photo was looked at.
"""

from __future__ import annotations

import cv2
import numpy as np

from experiments.cells.scenes import NAMES
from experiments.cells.scenes import scene as drawn
from experiments.painting import Boxes, Image

__all__ = ["NAMES", "scene"]

_MIX = np.array([[0.45, 0.35, 0.20], [0.15, 0.75, 0.10], [0.30, 0.10, 0.60]])  # of red, green and blue


def scene(rng: np.random.Generator) -> tuple[Image, Boxes]:
    """A scene in other colours, half of the contrast, sharpened, with the blocks of strong compression."""
    image, boxes = drawn(rng)
    mixed = image.astype(np.float64) @ _MIX.T
    flat = 60 + 0.55 * mixed[:, :, [2, 0, 1]] if rng.random() < 0.5 else 40 + 0.6 * mixed
    sharp = flat + 1.5 * (flat - cv2.GaussianBlur(flat, (0, 0), 2.0))
    encoded = cv2.imencode(".jpg", np.clip(sharp, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 35])[1]
    return cv2.imdecode(encoded, cv2.IMREAD_COLOR), boxes
