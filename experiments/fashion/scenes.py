"""Scenes of one to three garments on a cluttered background; by themselves public ones, of drawings only."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from experiments.fashion.drawings import NAMES, drawn_garment
from experiments.painting import SIZE, Box, Boxes, Image, background, finish, free_place

__all__ = ["NAMES", "SIZE", "paint", "scene"]

SIZES = (0.3, 0.4, 0.3)  # chances of one, two and three garments
Photo = tuple[NDArray[np.float64], int]  # grey values (28, 28) in [0, 1], 0 where there is no garment; its class


def scene(rng: np.random.Generator) -> tuple[Image, Boxes]:
    """A public scene: drawn garments only."""
    return paint([drawn_garment(rng) for _ in range(int(rng.choice([1, 2, 3], p=SIZES)))], rng)


def paint(garments: Sequence[Photo], rng: np.random.Generator) -> tuple[Image, Boxes]:
    """One RGB scene (SIZE, SIZE, 3) of the garments and its boxes; one that finds no room is tried smaller."""
    canvas = background(rng)
    boxes: list[Box] = []
    rows = []
    for grey, label in garments:

        def draw(largest: float, grey: NDArray[np.float64] = grey) -> NDArray[np.float32]:
            return _enlarged(grey, round(rng.uniform(min(28.0, largest), largest)), rng)

        layers, x, y = free_place(draw, boxes, 64.0, rng)
        h, w = layers.shape[:2]
        patch, value, cover = canvas[y : y + h, x : x + w], layers[..., :1], layers[..., 1:]
        patch += (_cloth_colour(value, rng) - patch) * cover
        boxes.append((x, y, w, h))
        rows.append([label, (x + w / 2) / SIZE, (y + h / 2) / SIZE, w / SIZE, h / SIZE])
    return finish(canvas, rng), np.array(rows)


def _enlarged(grey: NDArray[np.float64], side: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Grey value and cover, (h, w, 2), about ``side`` pixels along the longest edge, slightly turned, cut to them."""
    small = grey.astype(np.float32)
    layers = np.stack([small, np.clip(small * 6, 0, 1)], -1)
    width = max(4, round(side * rng.uniform(0.9, 1.1)))
    width = min(width, 64)
    layers = cv2.resize(np.pad(layers, ((1, 1), (1, 1), (0, 0))), (width, side), interpolation=cv2.INTER_CUBIC)
    turn = cv2.getRotationMatrix2D((width / 2, side / 2), rng.uniform(-8, 8), 1.0)
    layers = np.clip(cv2.warpAffine(layers, turn, (width, side)), 0, 1)
    rows, columns = np.nonzero(layers[..., 1] > 0.3)
    return np.asarray(layers[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1], dtype=np.float32)


def _cloth_colour(value: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float64]:
    """A cloth between two colours, (h, w, 3); the grey value says how far it is from the one to the other."""
    dark = rng.uniform(0, 90, 3)
    light = rng.uniform(130, 255) + rng.normal(0, 35, 3)
    if rng.random() < 0.5:
        dark, light = light, dark
    return np.clip(dark + (light - dark) * value, 0, 255)
