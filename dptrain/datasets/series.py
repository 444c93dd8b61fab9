"""Images that are of one photo, scan, video or patient, told from their names and from pictures that look alike.

An image is then not what people want protected: with k images of one thing, the guarantee for the thing is about k
times as wide as the epsilon for an image. All of it is as private as the images.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# What comes last in a name; Roboflow puts a part of its own there, copy by copy: x_jpg.rf.HASH.jpg.
_SUFFIX, _ROBOFLOW = r"\.\w+$", r"(?:(?:_[A-Za-z]+)?\.rf\.\w+)?\.\w+$"
_COPIES, _FRAMES = "^(.+?)", r"^(.+?)(?:[_-]+|(?<=\D))\d*"
_TILES = r"^(.+?)(?:[_-]+[A-Za-z]{0,3}\d+[_-]+[A-Za-z]{0,3}\d+)?"
_PLACE = re.compile(rf"^(.+?)[_-]+[A-Za-z]{{0,3}}(\d+)[_-]+[A-Za-z]{{0,3}}(\d+){_ROBOFLOW}")
_YEAR = re.compile(r"(?<!\d)(?:19|20)\d\d$")
_LEAST_STEP = 16  # pixels between tiles
_MOST = 0.8  # of the pairs that look alike, for a key that is to explain them
_FEW, _SEVERAL = 0.02, 0.2  # of the images look like another one: enough for names, and for folders to tell


@dataclass(frozen=True)
class Series:
    """Images that belong together.

    Attributes:
        what: What those of one group seem to be.
        key: The setting that makes each group a unit, as it is typed.
        images: How many images are in a group with others.
        groups: How many groups there are, those of a single image included.
        example: Two of one group.
        pattern: What finds the group in a file's name; None where the folder is the group.
    """

    what: str
    key: str
    images: int
    groups: int
    example: tuple[Path, Path]
    pattern: str | None = None

    def group(self, image: Path) -> str | None:
        """Return the group that the key puts an image in; None where its name has none."""
        if self.pattern is None:
            return image.parent.name
        found = re.match(self.pattern, image.name)
        return None if found is None else found[1]

    def __str__(self) -> str:
        return (
            f"{self.images} images are {self.what}, such as {self.example[0].name} and {self.example[1].name}, and all "
            f"are in {self.groups} groups: epsilon for an image is not epsilon for a group; protect groups "
            f"with privacy.unit=group {self.key}, and declare their number as privacy.dataset_size"
        )


def find_series(images: Sequence[Path], alike: Sequence[tuple[int, int]]) -> Series | None:
    """Return what the images of a split are copies, tiles or frames of, None where nothing tells.

    Args:
        images: All of the split.
        alike: Pairs of numbers of images that look alike (:func:`dptrain.datasets.near.pairs`).
    """
    names = [image.name for image in images]
    exported = any(".rf." in name for name in names)
    end = _ROBOFLOW if exported else _SUFFIX
    by_name = _named(images, "copies of one photo", _COPIES + end) if exported else None
    if by_name is None and _tiled(names):
        by_name = _named(images, "tiles of one picture", _TILES + end)
    if by_name is not None and _explains(by_name[1], alike):
        return by_name[0]
    many = len({number for pair in alike for number in pair}) / max(1, len(images))
    frames, folders = _named(images, "pictures of one series", _FRAMES + end), _in_folders(images)
    for found, least in ((frames, _FEW), (folders, _SEVERAL)):
        if found is not None and alike and many >= least and len(set(found[1])) > 1 and _explains(found[1], alike):
            return found[0]
    return None if by_name is None else by_name[0]


def _explains(groups: Sequence[str], alike: Sequence[tuple[int, int]]) -> bool:
    """Whether most of the images that look alike are in one group."""
    return sum(groups[one] == groups[other] for one, other in alike) >= _MOST * len(alike)


def _named(images: Sequence[Path], what: str, pattern: str) -> tuple[Series, list[str]] | None:
    matches = [re.match(pattern, image.name) for image in images]
    groups = [match[1] for match in matches if match is not None]
    if len(groups) < len(images):  # some image would have no group
        return None
    return _series(images, what, f"privacy.groups.regex='{pattern}'", groups, pattern)


def _in_folders(images: Sequence[Path]) -> tuple[Series, list[str]] | None:
    return _series(images, "pictures of one folder", "privacy.groups.folder=1", [image.parent.name for image in images])


def _series(
    images: Sequence[Path], what: str, key: str, groups: list[str], pattern: str | None = None
) -> tuple[Series, list[str]] | None:
    members: dict[str, list[Path]] = defaultdict(list)
    for image, group in zip(images, groups, strict=True):
        members[group].append(image)
    several = [files for files in members.values() if len(files) > 1]
    if not several:
        return None
    example = several[0][0], several[0][1]
    return Series(what, key, sum(map(len, several)), len(members), example, pattern), groups


def _tiled(names: Sequence[str]) -> bool:
    """Whether two numbers at the end of most names are places in a grid: multiples of a step, or of a rectangle."""
    places: dict[str, set[tuple[int, int]]] = defaultdict(set)
    for name in names:
        if (match := _PLACE.match(name)) is not None and not _YEAR.search(match[1]):  # a date is no place
            places[match[1]].add((int(match[2]), int(match[3])))
    if 2 * sum(map(len, places.values())) <= len(names):
        return False
    numbers = {number for found in places.values() for place in found for number in place}
    if len(numbers) > 1 and math.gcd(*numbers) >= _LEAST_STEP:
        return True
    full = [p for p in places.values() if len(p) >= 4 and 2 * len(p) >= _sides(p)]
    return 2 * sum(map(len, full)) > len(names)


def _sides(places: set[tuple[int, int]]) -> int:
    across, down = {x for x, _ in places}, {y for _, y in places}
    return len(across) * len(down) if min(len(across), len(down)) > 1 else 4 * len(places)
