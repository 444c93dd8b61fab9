"""Pictures and videos that the redaction tests make, and a detector that finds what is on them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from experiments.digits.glyphs import font_glyph
from experiments.digits.scenes import SIZE, paint
from experiments.digits.scenes import scene as drawn_digits

WEIGHTS = Path(__file__).resolve().parents[3] / "experiments/digits/public_start.pt"
GREY = 114


def textured(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Detail at every scale, with hardly a pixel of the grey that fills boxes."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((height, width, 3), np.float32)
    for size in (4, 12, 40, 120):
        grid = rng.normal(0, 30, (max(height // size, 2), max(width // size, 2), 3)).astype(np.float32)
        picture += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    picture += rng.normal(0, 10, picture.shape)
    return np.clip(picture + 150, 0, 255).astype(np.uint8)


def digit_scenes(folder: Path, count: int) -> list[np.ndarray]:
    """Write scenes of font-drawn digits as PNG; return their boxes in pixels, (m, 4) each: x1, y1, x2, y2."""
    folder.mkdir(parents=True)
    found = []
    for number in range(count):
        scene, rows = drawn_digits(np.random.default_rng([7, number]))
        cv2.imwrite(str(folder / f"{number:03}.png"), cv2.cvtColor(scene, cv2.COLOR_RGB2BGR))
        centre, size = rows[:, 1:3] * SIZE, rows[:, 3:] * SIZE
        found.append(np.concatenate([centre - size / 2, centre + size / 2], 1))
    return found


def moving_digit(count: int, step: int = 2) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Frames (SIZE, 2 SIZE, 3) BGR on which a digit moves to the right, and its box on each."""
    rng = np.random.default_rng(3)
    scene, rows = paint([font_glyph(rng)], rng)
    _, x, y, w, h = rows[0] * np.array([1, *[SIZE] * 4])
    x1, y1, x2, y2 = (int(v) for v in (x - w / 2 - 4, y - h / 2 - 4, x + w / 2 + 4, y + h / 2 + 4))
    x1, y1 = max(x1, 0), max(y1, 0)
    patch = cv2.cvtColor(scene, cv2.COLOR_RGB2BGR)[y1:y2, x1:x2]
    paper = np.median(patch.reshape(-1, 3), axis=0)
    frames, boxes = [], []
    for number in range(count):
        frame = np.full((SIZE, 2 * SIZE, 3), paper, np.uint8)
        left = 10 + step * number
        frame[y1 : y1 + patch.shape[0], left : left + patch.shape[1]] = patch
        frames.append(frame)
        boxes.append(np.array([left + 4, y1 + 4, left + patch.shape[1] - 4, y1 + patch.shape[0] - 4]))
    return frames, boxes


def write_video(file: Path, frames: list[np.ndarray], rate: float = 25) -> Path:
    """Write a video as OpenCV does."""
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"mp4v"), rate, (width, height))
    for frame in frames:
        writer.write(frame)
    writer.release()
    return file


def read_video(file: Path) -> list[np.ndarray]:
    """All frames of a video, through OpenCV."""
    capture, frames = cv2.VideoCapture(str(file)), []
    while True:
        there, frame = capture.read()
        if not there:
            return frames
        frames.append(frame)


def greyness(frame: np.ndarray, box: np.ndarray) -> float:
    """Share of a box's pixels that are the filling grey, within what a video codec changes."""
    x1, y1, x2, y2 = (int(v) for v in (np.floor(box[0]), np.floor(box[1]), np.ceil(box[2]), np.ceil(box[3])))
    inside = frame[max(y1, 0) : y2, max(x1, 0) : x2].astype(int)
    return float((np.abs(inside - GREY).max(axis=2) <= 8).mean())
