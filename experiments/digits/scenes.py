"""Scenes: one to three digits on a cluttered background, with tight boxes, in the layout Ultralytics reads.

    python -m experiments.digits.scenes runs/demo/private            # real handwriting
    python -m experiments.digits.scenes runs/demo/public --public    # font-drawn digits only

In the private set (700 train scenes, and val from glyphs kept for it) every handwritten glyph is used in at most one
scene, and train and val share no glyph: a scene is one unit, and adding or removing it changes nothing else. (The
set does not say who wrote what, so the unit that can be protected is a scene, not a writer.) The painter of
backgrounds is public; the handwriting is what is private.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dptrain.run.pretraining.scenes import write_split, write_yaml
from experiments.digits.glyphs import Glyph, enlarge, font_glyph, handwritten_glyphs
from experiments.painting import SIZE, Box, Boxes, Image, background, finish, free_place, ink_colour

TRAIN_SCENES = 700
VAL_GLYPHS = 0.24  # share of the handwriting kept for val
NAMES = {i: str(i) for i in range(10)}


def paint(glyphs: list[Glyph], rng: np.random.Generator) -> tuple[Image, Boxes]:
    """One RGB scene (SIZE, SIZE, 3) of the glyphs and its boxes; a glyph that finds no room is tried smaller."""
    canvas = background(rng)
    paper = canvas.mean(axis=(0, 1))
    boxes: list[Box] = []
    rows = []
    for glyph in glyphs:

        def draw(largest: float, ink: NDArray[np.float64] = glyph.ink) -> NDArray[np.float32]:
            return enlarge(ink, round(rng.uniform(22, largest)), rng)

        mask, x, y = free_place(draw, boxes, 56.0, rng)
        h, w = mask.shape
        patch = canvas[y : y + h, x : x + w]
        patch += (ink_colour(paper, rng) - patch) * (mask * rng.uniform(0.8, 1.0))[:, :, None]
        boxes.append((x, y, w, h))
        rows.append([glyph.label, (x + w / 2) / SIZE, (y + h / 2) / SIZE, w / SIZE, h / SIZE])
    return finish(canvas, rng), np.array(rows)


def scene(rng: np.random.Generator) -> tuple[Image, Boxes]:
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
        write_split(root, split, (paint(g, np.random.default_rng([seed, number, i])) for i, g in enumerate(groups)))
    what = "scenes of real handwritten digits (scikit-learn's load_digits); private in the demo"
    return write_yaml(root, NAMES, what)


def write_public(root: Path, train_scenes: int = 64, val_scenes: int = 300, seed: int = 0) -> Path:
    """Write scenes of font-drawn digits under `root`; returns the path of their data.yaml."""
    for number, (split, count) in enumerate((("train", train_scenes), ("val", val_scenes)), start=3):
        write_split(root, split, (scene(np.random.default_rng([seed, number, i])) for i in range(count)))
    return write_yaml(root, NAMES, "scenes of digits drawn from matplotlib's fonts; public")


def main() -> None:
    parser = argparse.ArgumentParser(description="write a set of digit scenes in Ultralytics layout")
    parser.add_argument("root", type=Path)
    parser.add_argument("--public", action="store_true", help="font-drawn digits instead of handwriting")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print((write_public if args.public else write_private)(args.root, seed=args.seed))


if __name__ == "__main__":
    main()
