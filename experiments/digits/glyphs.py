"""Where the digits of a scene come from: real handwriting (private) or fonts anyone has (public).

A glyph is an (8, 8) float array, the share of each cell that is ink. That is the format of scikit-learn's handwritten
digits, whose documentation says how it was made: a 32 x 32 bitmap, fitted to its frame, counted in 4 x 4 blocks. Font
digits go the same way here. Nothing in the font half reads the handwriting: its distortions were chosen by common sense
and never tried against it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

CELLS = 8  # a glyph is CELLS x CELLS
FRAME = 32  # pixels of the bitmap it is counted from
FINE = 4  # font strokes are drawn this many times finer, so that their ink is not all-or-nothing

FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Italic.ttf",
    "STIXGeneral.ttf",
    "STIXGeneralItalic.ttf",
    "cmr10.ttf",
    "cmss10.ttf",
    "cmti10.ttf",
    "cmtt10.ttf",
)


@dataclass(frozen=True)
class Glyph:
    """One digit: its ink, its class (0 to 9), and where it came from (an index, for handwriting)."""

    ink: Array
    label: int
    source: int = -1


def handwritten_glyphs() -> list[Glyph]:
    """The 1,797 handwritten digits that scikit-learn ships (from UCI's Optical Recognition of Handwritten Digits)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return [
        Glyph(ink / 16.0, int(label), i)
        for i, (ink, label) in enumerate(zip(digits.images, digits.target, strict=True))
    ]


def font_glyph(rng: np.random.Generator) -> Glyph:
    """A digit written along the skeleton of a random font's, with a random pen and strong random distortion."""
    label = int(rng.integers(10))
    strokes = _habits(_skeleton(FONTS[rng.integers(len(FONTS))], label), label, rng)
    return Glyph(_ink(_distort(strokes, rng), rng), label)


def _habits(points: Array, label: int, rng: np.random.Generator) -> Array:
    """What pens do and fonts do not: a 1 without its foot or flag, a 7 with a bar, a stroke that misses another."""
    x, y = points[:, 0], points[:, 1]
    if label == 1:
        stem = np.median(x)
        if rng.random() < 0.7:  # no foot
            points = points[~((y > 0.7) & (np.abs(x - stem) > 0.15))]
        if rng.random() < 0.5:  # no flag
            points = points[~((points[:, 1] < 0.2) & (np.abs(points[:, 0] - stem) > 0.15))]
    if label == 7 and rng.random() < 0.4:
        height, half = rng.uniform(-0.1, 0.3), rng.uniform(0.3, 0.6)
        middle = x[np.argmin(np.abs(y - height))]
        bar = np.linspace(-half, half, 40)
        points = np.concatenate([points, np.stack([middle + bar, height + bar * rng.uniform(-0.3, 0.1)], axis=1)])
    if rng.random() < 0.3:  # a gap in the line
        hole = points[rng.integers(len(points))]
        points = points[np.hypot(*(points - hole).T) > rng.uniform(0.1, 0.25)]
    return points


def _distort(points: Array, rng: np.random.Generator) -> Array:
    """Slow waves through the plane, a taper, slant, rotation and stretch; points stay an (m, 2) array."""
    points = points.copy()
    for _ in range(3):
        direction = rng.normal(size=2)
        wave = np.sin(
            points @ direction / np.linalg.norm(direction) * rng.uniform(1.5, 3.5) + rng.uniform(0, 2 * np.pi)
        )
        points = points + wave[:, None] * rng.normal(0, 0.07, size=2)
    points[:, 0] *= 1 + rng.uniform(-0.35, 0.35) * points[:, 1]
    angle = rng.normal(0, 0.15)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shear = np.array([[1.0, rng.normal(0, 0.25)], [0.0, 1.0]])
    stretch = np.array([rng.uniform(0.65, 1.35), 1.0])
    return np.asarray(points @ rotation.T @ shear.T * stretch)


def _ink(points: Array, rng: np.random.Generator) -> Array:
    """Fit the strokes to the frame, draw them with a round pen, and count the ink of every cell."""
    pen = rng.uniform(1.2, 3.0)  # radius, in pixels of the frame
    low, high = points.min(axis=0), points.max(axis=0)
    room = FRAME - 2 * pen
    scale = min(room / (high[1] - low[1]), room / max(high[0] - low[0], 1e-6))
    points = (points - (low + high) / 2) * scale + FRAME / 2
    blank = np.full((FRAME * FINE, FRAME * FINE), 255, np.uint8)
    columns, rows = (points * FINE).astype(int).clip(0, FRAME * FINE - 1).T
    blank[rows, columns] = 0
    bitmap = cv2.distanceTransform(blank, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) < pen * FINE
    block = FRAME * FINE // CELLS
    return np.asarray(bitmap.reshape(CELLS, block, CELLS, block).mean(axis=(1, 3)), dtype=np.float64)


@cache
def _skeleton(font: str, label: int) -> Array:
    """Points (m, 2) of the middle line of a font's digit, scaled so that its height spans -1 to 1."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / font
    image = Image.new("L", (128, 128))
    ImageDraw.Draw(image).text((64, 64), str(label), fill=255, font=ImageFont.truetype(str(path), 88), anchor="mm")
    rows, columns = np.nonzero(_thin(np.asarray(image) > 127))
    points = np.stack([columns, rows], axis=1).astype(np.float64)
    points -= (points.max(axis=0) + points.min(axis=0)) / 2
    return np.asarray(points / points[:, 1].max())


def _thin(bitmap: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Lines one pixel wide with the same topology (Zhang and Suen, 1984)."""
    bitmap = bitmap.copy()
    ring = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))  # clockwise from the north
    changed = True
    while changed:
        changed = False
        for step in (0, 1):
            near = np.stack([np.roll(bitmap, (-dy, -dx), (0, 1)) for dy, dx in ring]).astype(int)
            count = near.sum(axis=0)
            turns = ((near == 0) & (np.roll(near, -1, axis=0) == 1)).sum(axis=0)
            n, e, s, w = near[0], near[2], near[4], near[6]
            open_sides = (n * e * s == 0) & (e * s * w == 0) if step == 0 else (n * e * w == 0) & (n * s * w == 0)
            drop = bitmap & (count >= 2) & (count <= 6) & (turns == 1) & open_sides
            if drop.any():
                bitmap &= ~drop
                changed = True
    return bitmap


def enlarge(ink: Array, height: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """The glyph as a smooth opacity mask, at most 1, about `height` pixels tall, slightly turned, cut to its ink."""
    width = max(4, round(height * rng.uniform(0.85, 1.15)))
    mask = cv2.resize(np.pad(ink, 1).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(-8, 8), 1.0)
    mask = np.clip(cv2.warpAffine(mask, turn, (width, height)) * 1.3, 0, 1)
    rows, columns = np.nonzero(mask > 0.3)
    return np.asarray(mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1], dtype=np.float32)
