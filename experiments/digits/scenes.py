"""Scenes: one to three digits on a cluttered background, with tight boxes, in the layout Ultralytics reads.

    python -m experiments.digits.scenes runs/demo/private            # real handwriting
    python -m experiments.digits.scenes runs/demo/public --public    # font-drawn digits only

In the private set (700 train scenes, and val from glyphs kept for it) every handwritten glyph is used in at most one
scene, and train and val share no glyph: a scene is one record, and adding or removing it changes nothing else. (The
set does not say who wrote what, so the unit that can be protected is a scene, not a writer.) The painter of
backgrounds is public; the handwriting is what is private.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from experiments.digits.glyphs import Glyph, enlarge, font_glyph, handwritten_glyphs

SIZE = 128  # pixels, square
TRAIN_SCENES = 700
VAL_GLYPHS = 0.24  # share of the handwriting kept for val
Image = NDArray[np.uint8]
Boxes = NDArray[np.float64]  # (m, 5): class, then centre x, centre y, width, height as shares of the image


def paint(glyphs: list[Glyph], rng: np.random.Generator) -> tuple[Image, Boxes]:
    """One RGB scene (SIZE, SIZE, 3) of the glyphs and its boxes; a glyph that finds no room is tried smaller."""
    canvas = _background(rng)
    paper = canvas.mean(axis=(0, 1))
    boxes: list[tuple[int, int, int, int]] = []
    rows = []
    for glyph in glyphs:
        mask, x, y = _place(glyph, boxes, rng)
        h, w = mask.shape
        patch = canvas[y : y + h, x : x + w]
        patch += (_ink_colour(paper, rng) - patch) * (mask * rng.uniform(0.8, 1.0))[:, :, None]
        boxes.append((x, y, w, h))
        rows.append([glyph.label, (x + w / 2) / SIZE, (y + h / 2) / SIZE, w / SIZE, h / SIZE])
    if rng.random() < 0.4:
        canvas = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.4, 1.0))
    canvas = canvas + rng.normal(0, rng.uniform(1, 9), canvas.shape)
    return np.clip(canvas, 0, 255).astype(np.uint8), np.array(rows)


def _place(
    glyph: Glyph, boxes: list[tuple[int, int, int, int]], rng: np.random.Generator
) -> tuple[NDArray[np.float32], int, int]:
    largest = 56.0
    while True:
        mask = enlarge(glyph.ink, round(rng.uniform(22, largest)), rng)
        h, w = mask.shape
        x, y = int(rng.integers(1, SIZE - w)), int(rng.integers(1, SIZE - h))
        if all(x + w < bx or bx + bw < x or y + h < by or by + bh < y for bx, by, bw, bh in boxes):
            return mask, x, y
        largest = max(24.0, largest - 1)


def _background(rng: np.random.Generator) -> NDArray[np.float64]:
    """A tinted sheet with a slope of light, blotches, ruled lines and stray shapes."""
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


def _ink_colour(paper: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Darker or lighter than the paper by 70 levels or more, whichever there is room for, and tinted."""
    sign = 1 if paper.mean() < rng.uniform(90, 165) else -1
    return np.clip(paper.mean() + sign * rng.uniform(70, 150) + rng.normal(0, 20, 3), 0, 255)


def public_scene(rng: np.random.Generator) -> tuple[Image, Boxes]:
    """A scene of one to three font-drawn digits."""
    return paint([font_glyph(rng) for _ in range(rng.integers(1, 4))], rng)


def split_handwriting(seed: int = 0) -> tuple[list[list[Glyph]], list[list[Glyph]]]:
    """Groups of one to three glyphs for the train scenes and for the val scenes; each glyph in at most one group."""
    rng = np.random.default_rng([seed, 0])
    glyphs = handwritten_glyphs()
    order = rng.permutation(len(glyphs))
    held = round(len(glyphs) * VAL_GLYPHS)
    train = _groups([glyphs[i] for i in order[held:]], rng)
    val = _groups([glyphs[i] for i in order[:held]], rng)
    if len(train) < TRAIN_SCENES:
        raise RuntimeError(f"{len(glyphs)} glyphs make only {len(train)} train scenes of the {TRAIN_SCENES} wanted")
    return train[:TRAIN_SCENES], val


def _groups(glyphs: list[Glyph], rng: np.random.Generator) -> list[list[Glyph]]:
    groups, start = [], 0
    while start < len(glyphs):
        size = int(rng.choice([1, 2, 3], p=[0.35, 0.4, 0.25]))
        groups.append(glyphs[start : start + size])
        start += size
    return groups


def write_private(root: Path, seed: int = 0, train_scenes: int = TRAIN_SCENES, val_scenes: int | None = None) -> Path:
    """Write the first scenes of real handwriting (all by default) under `root`; returns the path of their data.yaml."""
    train, val = split_handwriting(seed)
    train, val = train[:train_scenes], val[:val_scenes]
    for number, (split, groups) in enumerate((("train", train), ("val", val)), start=1):
        _write_split(root, split, (paint(g, np.random.default_rng([seed, number, i])) for i, g in enumerate(groups)))
    return _write_yaml(root, "scenes of real handwritten digits (scikit-learn's load_digits); private in the demo")


def write_public(root: Path, train_scenes: int = 64, val_scenes: int = 300, seed: int = 0) -> Path:
    """Write scenes of font-drawn digits under `root`; returns the path of their data.yaml."""
    for number, (split, count) in enumerate((("train", train_scenes), ("val", val_scenes)), start=3):
        _write_split(root, split, (public_scene(np.random.default_rng([seed, number, i])) for i in range(count)))
    return _write_yaml(root, "scenes of digits drawn from matplotlib's fonts; public")


def _write_split(root: Path, split: str, scenes: Iterator[tuple[Image, Boxes]]) -> None:
    images, labels = root / "images" / split, root / "labels" / split
    images.mkdir(parents=True, exist_ok=True)
    labels.mkdir(parents=True, exist_ok=True)
    for i, (image, boxes) in enumerate(scenes):
        cv2.imwrite(str(images / f"{i:04d}.png"), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        lines = [f"{int(c)} {x:.6f} {y:.6f} {w:.6f} {h:.6f}" for c, x, y, w, h in boxes]
        (labels / f"{i:04d}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_yaml(root: Path, what: str) -> Path:
    names = "".join(f"  {i}: '{i}'\n" for i in range(10))
    path = root / "data.yaml"
    path.write_text(f"# {what}\ntrain: images/train\nval: images/val\nnames:\n{names}", encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="write a set of digit scenes in Ultralytics layout")
    parser.add_argument("root", type=Path)
    parser.add_argument("--public", action="store_true", help="font-drawn digits instead of handwriting")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print((write_public if args.public else write_private)(args.root, seed=args.seed))


if __name__ == "__main__":
    main()
