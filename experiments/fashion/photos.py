"""Scenes of Fashion-MNIST's product photos: the private set of the benchmark, and public ones beside it.

    python -m experiments.fashion.photos runs/benchmark/fashion       # 20,000 scenes of Fashion-MNIST

In the private set every photo of Fashion-MNIST is in at most one scene: the train scenes are made of its train photos,
the val scenes of its test photos, so a scene is one unit, and adding or removing it changes nothing else. The painter
is public; the photos are what is private. Fashion-MNIST (Xiao, Rasul and Vollgraf 2017, MIT licence) comes as the
Debian package dataset-fashion-mnist.

The 20,052 train photos that are in no private scene play the public ones: half of them for trials of recipes
(:func:`write_spare`), a few for a public start that has seen photos (:func:`write_published`).
"""

from __future__ import annotations

import argparse
import gzip
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dptrain.run.pretraining.scenes import Scene, write_split, write_yaml
from experiments.fashion.drawings import NAMES
from experiments.fashion.scenes import SIZES, paint

FOLDER = Path("/usr/share/datasets/fashion-mnist")  # where the Debian package puts its files
MISSING = (
    "Fashion-MNIST is not there: apt-get install dataset-fashion-mnist, or give a folder with its four .gz files "
    "(github.com/zalandoresearch/fashion-mnist)"
)
TRAIN_SCENES, VAL_SCENES = 20_000, 1_500
PUBLISHED = 1_600  # most photos of one public set: a 25th of the private ones, as Nasr et al. (2023) take of CIFAR-10


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
    left = _left_over(len(photos), seed)
    groups = split_photos(len(left), train_scenes + val_scenes, np.random.default_rng([seed, 22]))
    for number, (split, part) in enumerate((("train", groups[:train_scenes]), ("val", groups[train_scenes:]))):
        write_split(root, split, _painted(photos, labels, [left[group] for group in part], [seed, 23, number]))
    return write_yaml(root, NAMES, "scenes of Fashion-MNIST's photos that are in no private scene")


def write_published(root: Path, folder: Path, count: int, train_scenes: int, val_scenes: int, seed: int = 0) -> Path:
    """Write public scenes of ``count`` photos, each in many scenes; returns the path of their data.yaml.

    The photos are in no private scene, and the last that :func:`write_spare` would come to, which takes the first;
    those of val, :data:`PUBLISHED`, are others.
    """
    if not 3 <= count <= PUBLISHED:  # a scene has up to three
        raise ValueError(f"{count} public photos: 3 to {PUBLISHED}")
    photos, labels = read_photos(folder, "train")
    last = np.random.default_rng([seed, 22]).permutation(_left_over(len(photos), seed))[-2 * PUBLISHED :]
    splits = (("train", last[:count], train_scenes), ("val", last[PUBLISHED:], val_scenes))
    for number, (split, own, scenes) in enumerate(splits):
        rng = np.random.default_rng([seed, 24, number])
        groups = [rng.choice(own, rng.choice([1, 2, 3], p=SIZES), replace=False) for _ in range(scenes)]
        write_split(root, split, _painted(photos, labels, groups, [seed, 25, number]))
    return write_yaml(root, NAMES, f"scenes of {count} of Fashion-MNIST's photos, none of them in a private scene")


def _left_over(photos: int, seed: int) -> NDArray[np.int64]:
    """Numbers of the train photos that are in no private scene."""
    private = split_photos(photos, TRAIN_SCENES, np.random.default_rng([seed, 20, 0]))
    return np.setdiff1d(np.arange(photos), np.concatenate(private))


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
