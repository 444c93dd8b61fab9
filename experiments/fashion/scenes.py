"""Scenes of one to three garments on a cluttered background: real product photos (private) or drawings (public).

    python -m experiments.fashion.scenes runs/benchmark/fashion       # 20,000 scenes of Fashion-MNIST

In the private set every photo of Fashion-MNIST is in at most one scene: the train scenes are made of its train photos,
the val scenes of its test photos, so a scene is one record, and adding or removing it changes nothing else. The painter
is public; the photos are what is private. Fashion-MNIST (Xiao, Rasul and Vollgraf 2017, MIT licence) comes as the
Debian package dataset-fashion-mnist.
"""

from __future__ import annotations

import argparse
import gzip
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from dptrain.pretraining.scenes import Scene, write_split, write_yaml
from experiments.fashion.drawings import NAMES, drawn_garment
from experiments.painting import SIZE, Box, Boxes, Image, background, finish, free_place

__all__ = ["NAMES", "find_photos", "paint", "read_photos", "scene", "split_photos", "write_private"]

FOLDER = Path("/usr/share/datasets/fashion-mnist")  # where the Debian package puts its files
MISSING = (
    "Fashion-MNIST is not there: apt-get install dataset-fashion-mnist, or give a folder with its four .gz files "
    "(github.com/zalandoresearch/fashion-mnist)"
)
TRAIN_SCENES, VAL_SCENES = 20_000, 1_500
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


def find_photos(folder: Path = FOLDER) -> Path | None:
    """The folder with Fashion-MNIST's files, if it is there."""
    files = [
        folder / f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
    ]
    return folder if all(file.is_file() for file in files) else None


def read_photos(folder: Path, part: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Photos (n, 28, 28) and classes (n,) of the part ``train`` or ``t10k``, from the files' IDX format."""
    found = []
    for kind, header in (("images-idx3", 16), ("labels-idx1", 8)):
        with gzip.open(folder / f"{part}-{kind}-ubyte.gz") as stream:
            found.append(np.frombuffer(stream.read()[header:], np.uint8))
    return found[0].reshape(-1, 28, 28), found[1]


def split_photos(photos: int, scenes: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Numbers of the photos of each scene, each number at most once; fewer scenes where the photos do not reach."""
    order = rng.permutation(photos)
    ends = np.cumsum(rng.choice([1, 2, 3], size=scenes, p=SIZES))
    return [part for part in np.split(order, ends)[:scenes] if len(part)][: int((ends <= photos).sum())]


def _painted(
    photos: NDArray[np.uint8], labels: NDArray[np.uint8], groups: Sequence[NDArray[np.int64]], seed: list[int]
) -> Iterator[Scene]:
    """The scene of each group of photos, each with a random state of its own."""
    for i, group in enumerate(groups):
        yield paint([(photos[j] / 255.0, int(labels[j])) for j in group], np.random.default_rng([*seed, i]))


def write_private(
    root: Path, folder: Path, train_scenes: int = TRAIN_SCENES, val_scenes: int = VAL_SCENES, seed: int = 0
) -> Path:
    """Write scenes of real photos under ``root``; returns the path of their data.yaml."""
    for number, (split, part, count) in enumerate((("train", "train", train_scenes), ("val", "t10k", val_scenes))):
        photos, labels = read_photos(folder, part)
        groups = split_photos(len(photos), count, np.random.default_rng([seed, 20, number]))
        if len(groups) < count:
            raise ValueError(f"{len(photos)} photos make only {len(groups)} {split} scenes of the {count} wanted")
        write_split(root, split, _painted(photos, labels, groups, [seed, 21, number]))
    return write_yaml(root, NAMES, "scenes of Fashion-MNIST's product photos; private in the benchmark")


def write_spare(root: Path, folder: Path, train_scenes: int, val_scenes: int, seed: int = 0) -> Path:
    """Write scenes of train photos that :func:`write_private` leaves over; returns the path of their data.yaml."""
    photos, labels = read_photos(folder, "train")
    private = split_photos(len(photos), TRAIN_SCENES, np.random.default_rng([seed, 20, 0]))
    left = np.setdiff1d(np.arange(len(photos)), np.concatenate(private))
    groups = split_photos(len(left), train_scenes + val_scenes, np.random.default_rng([seed, 22]))
    for number, (split, part) in enumerate((("train", groups[:train_scenes]), ("val", groups[train_scenes:]))):
        write_split(root, split, _painted(photos, labels, [left[group] for group in part], [seed, 23, number]))
    return write_yaml(root, NAMES, "scenes of Fashion-MNIST's photos that are in no private scene")


def main() -> None:
    parser = argparse.ArgumentParser(description="write scenes of Fashion-MNIST in Ultralytics layout")
    parser.add_argument("root", type=Path)
    parser.add_argument("--photos", type=Path, default=FOLDER, help="folder with Fashion-MNIST's four .gz files")
    parser.add_argument("--scenes", type=int, default=TRAIN_SCENES)
    parser.add_argument("--val", type=int, default=VAL_SCENES)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folder = find_photos(args.photos)
    if folder is None:
        sys.exit(MISSING)
    print(write_private(args.root, folder, args.scenes, args.val, args.seed))


if __name__ == "__main__":
    main()
