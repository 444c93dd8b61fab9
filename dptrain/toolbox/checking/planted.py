"""A screen for planted triggers: what few images have in common, and the others have not.

It finds a mark pasted anywhere at any size, a pattern laid over the whole image, and a wave. It finds neither a trigger
without pixels of its own, such as flipped labels, nor one in fewer than three images.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from os import cpu_count
from pathlib import Path

import numpy as np

from ...datasets.images import read_image
from .marks import Box, Keypoints, find_marks, keypoints, resized
from .overlays import find_overlays, small_grey

_PART = 1600  # images that are compared with one another, drawn at random: 25 s of one core at most
_LEAST = 3  # groups of near-duplicates
_MOST, _MOST_SHARE = 10, 0.1  # images, and share of those compared
_KEPT = 256  # resized images, 150 kB each


@dataclass(frozen=True)
class Planted:
    """What some images share.

    Attributes:
        images: Their numbers, sorted.
        places: The place of a mark in each, x1, y1, x2, y2 in parts of the image; none where it is all over it.
    """

    images: tuple[int, ...]
    places: tuple[Box, ...] = ()


def find_planted(images: Sequence[Path], groups: Sequence[int]) -> list[Planted]:
    """Find marks and overlays that few images share.

    Args:
        images: Files that can be read.
        groups: For each the number of its group of near-duplicates, which count as one image.

    Returns:
        Marks first, each with those in most images first. Beyond 1,600 images random parts are searched one by one, so
        that what is in a given share of the images is found as well among many.
    """
    order = np.random.default_rng(0).permutation(len(images))
    parts = [np.sort(part) for part in np.array_split(order, max(1, -(-len(images) // _PART)))]
    found = [one for part in parts for one in _in_part([images[i] for i in part], [groups[i] for i in part], part)]
    return sorted(found, key=lambda one: (not one.places, -len(one.images)))


def _in_part(images: Sequence[Path], groups: Sequence[int], numbers: np.ndarray) -> list[Planted]:
    with ThreadPoolExecutor(min(8, cpu_count() or 1)) as pool:
        looks = list(pool.map(_look, images))
    grey = lru_cache(_KEPT)(lambda number: resized(read_image(images[number])))
    most = max(_MOST, int(_MOST_SHARE * len(images)))
    marks = find_marks([points for points, _ in looks], groups, grey, _LEAST, most)
    overlays = find_overlays(np.stack([small for _, small in looks]), groups, _LEAST, most) if looks else []
    return [
        *(Planted(tuple(numbers[list(mark)].tolist()), tuple(mark.values())) for mark in marks),
        *(Planted(tuple(numbers[members].tolist())) for members in overlays),
    ]


def _look(image: Path) -> tuple[Keypoints, np.ndarray]:
    pixels = read_image(image)
    return keypoints(resized(pixels)), small_grey(pixels)
