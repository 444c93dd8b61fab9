"""What the scene painters share: sheets of paper to draw on and free places on them.

All of it is public: it draws on no image, private or not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import cv2
import numpy as np
from numpy.typing import NDArray

SIZE = 128  # pixels, square
Image = NDArray[np.uint8]  # (height, width, 3), RGB
Boxes = NDArray[np.float64]  # (m, 5): class, then centre x, centre y, width, height as shares of the image
Box = tuple[int, int, int, int]  # left, top, width, height in pixels


def background(rng: np.random.Generator) -> NDArray[np.float64]:
    """A tinted sheet of SIZE x SIZE with a slope of light, blotches, ruled lines and stray shapes."""
    base = np.full(3, rng.uniform(30, 225)) + rng.normal(0, 15, 3)
    ramp = np.linspace(-1, 1, SIZE)
    light = rng.uniform(-25, 25) * ramp[:, None] + rng.uniform(-25, 25) * ramp[None, :]
    blotches = cv2.resize(rng.normal(0, rng.uniform(2, 10), (8, 8, 3)), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    canvas = np.ascontiguousarray(base + light[:, :, None] + blotches)
    for _ in range(rng.integers(0, 6)):
        colour = tuple(float(c) for c in canvas.mean(axis=(0, 1)) + rng.uniform(-45, 45))
        start, end = ((int(a), int(b)) for a, b in rng.integers(0, SIZE, (2, 2)))
        kind = rng.integers(3)
        if kind == 0:
            cv2.line(canvas, start, end, colour, int(rng.integers(1, 4)))
        elif kind == 1:
            cv2.rectangle(canvas, start, end, colour, int(rng.choice([-1, 1, 2])))
        else:
            radii = (int(rng.integers(4, 30)), int(rng.integers(4, 30)))
            cv2.ellipse(
                canvas, start, radii, rng.uniform(0, 180), 0, rng.uniform(120, 360), colour, int(rng.integers(1, 4))
            )
    return canvas


def free_place(
    draw: Callable[[float], NDArray[np.float32]], taken: Iterable[Box], largest: float, rng: np.random.Generator
) -> tuple[NDArray[np.float32], int, int]:
    """A patch and its corner (x, y) clear of the boxes ``taken``; one that finds no room is drawn smaller and smaller.

    ``draw(largest)`` returns a patch, (h, w) or (h, w, k), no larger than asked for.
    """
    taken = list(taken)
    while True:
        patch = draw(largest)
        h, w = patch.shape[:2]
        x, y = int(rng.integers(1, SIZE - w)), int(rng.integers(1, SIZE - h))
        if all(x + w < bx or bx + bw < x or y + h < by or by + bh < y for bx, by, bw, bh in taken):
            return patch, x, y
        largest = max(24.0, largest - 1)


def ink_colour(paper: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Darker or lighter than the paper by 70 levels or more, whichever there is room for, and tinted."""
    sign = 1 if paper.mean() < rng.uniform(90, 165) else -1
    return np.clip(paper.mean() + sign * rng.uniform(70, 150) + rng.normal(0, 20, 3), 0, 255)


def finish(canvas: NDArray[np.float64], rng: np.random.Generator) -> Image:
    """A little blur, sometimes, and the camera's noise."""
    if rng.random() < 0.4:
        canvas = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.4, 1.0))
    canvas = canvas + rng.normal(0, rng.uniform(1, 9), canvas.shape)
    return np.clip(canvas, 0, 255).astype(np.uint8)
