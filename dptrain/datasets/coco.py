"""COCO's annotation files (``instances_train2017.json``), one for all images of a split.

A box is what ``ultralytics.data.converter.convert_coco`` writes for it, to the last digit: crowds are left out, and
numbers have six digits. A class is found by its name, so numbers may have gaps.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

from ..errors import DataError, is_control
from .contents import read_data
from .data_yaml import shown, windows_hint
from .labels import Row

_MOST = 1 << 30  # bytes
_FINITE = 1e15  # beyond are no pixels
_LISTS = ("images", "annotations", "categories")
_UNREAD = ("segmentation", "keypoints", "licenses", "info")  # may be most of the file


@dataclass(frozen=True)
class CocoFile:
    """One file, checked as far as it goes without the class names of the dataset.

    Attributes:
        file: Where it is.
        categories: Name of every category, by its identifier.
        images: The place of every image, in the file's order.
        annotations: Of every image, its annotations that are no crowds: their number in the file, and what they say.
        sizes: Width and height of every image.
    """

    file: Path
    categories: Mapping[Any, str]
    images: tuple[Path, ...]
    annotations: Mapping[Path, list[tuple[str, Mapping[str, Any]]]]
    sizes: Mapping[Path, tuple[float, float]]

    @property
    def names(self) -> dict[int, str]:
        """Class names where the data.yaml gives none: those of the categories, numbered by their identifiers' order.

        Raises:
            DataError: Two have one name.
        """
        ordered = sorted(self.categories.items(), key=lambda item: (isinstance(item[0], str), item[0]))
        first: dict[str, Any] = {}
        for number, name in ordered:
            if first.setdefault(name, number) != number:
                raise DataError(
                    f"{self.file}: categories {shown(first[name])} and {shown(number)} are both named {shown(name)}; "
                    "give names: in data.yaml, and both are that class"
                )
        return {rank: name for rank, (_, name) in enumerate(ordered)}

    def rows(self, names: Mapping[int, str]) -> dict[Path, list[Row]]:
        """Return the rows of every image, for the class names of the dataset."""
        numbers = {name: number for number, name in names.items()}
        return {
            image: [self._row(place, item, self.sizes[image], numbers) for place, item in self.annotations[image]]
            for image in self.images
        }

    def _row(self, place: str, item: Mapping[str, Any], size: tuple[float, float], numbers: Mapping[str, int]) -> Row:
        place = f"{self.file}: annotation {place}"
        name, box = self.categories[item["category_id"]], item.get("bbox")
        if name not in numbers:
            return Row(place, (name,), f"category {shown(name)} is not one of names in data.yaml; add it there")
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            said = f"bbox {shown(box)} is not [left, top, width, height] in pixels; correct it or delete it"
            return Row(place, (name,), said)
        # In the order of the converter's own operations, which decides the last bit.
        left, top, wide, high = map(float, box)
        across, down = size
        values = ((left + wide / 2) / across, (top + high / 2) / down, wide / across, high / down)
        return Row(place, (str(numbers[name]), *(f"{value:g}" for value in values)))


def read_coco(file: Path, root: Path) -> CocoFile:
    """Read a COCO file and find its images.

    Args:
        file: The JSON file.
        root: Folder of the dataset. ``file_name`` starts there, in ``images`` below it, in the file's own folder, or
            in the folder that the file is called after (``instances_train2017.json``: ``train2017``,
            ``images/train2017``); one of them has all images.

    Raises:
        DataError: One line with the file, what is wrong and the fix.
    """
    data = _parsed(file)
    for name in _LISTS:
        if not isinstance(data.get(name), list) or not all(isinstance(item, dict) for item in data[name]):
            raise DataError(f"{file}: has no list '{name}' of COCO's kind; export it as COCO, with {', '.join(_LISTS)}")
    categories = _categories(file, data["categories"])
    images = _images(file, data["images"])
    places = _places(file, root, [str(item["file_name"]) for item in images.values()])
    of_image = dict(zip(images, places, strict=True))
    annotations: dict[Path, list[tuple[str, Mapping[str, Any]]]] = {place: [] for place in places}
    for number, item in enumerate(data["annotations"]):
        place = shown(item.get("id", f"number {number}"))
        image, category = _identifier(item.get("image_id")), _identifier(item.get("category_id"))
        if image not in of_image:
            raise DataError(
                f"{file}: annotation {place} is of image {shown(item.get('image_id'))}, which 'images' does not list; "
                "add the image, or delete the annotation"
            )
        if category not in categories:
            raise DataError(
                f"{file}: annotation {place} is of category {shown(item.get('category_id'))}, which 'categories' does "
                "not list; add the category, or delete the annotation"
            )
        if not item.get("iscrowd", False):
            annotations[of_image[image]].append((place, {"category_id": category, "bbox": item.get("bbox")}))
    sizes = {of_image[key]: (float(item["width"]), float(item["height"])) for key, item in images.items()}
    return CocoFile(file, categories, tuple(places), annotations, sizes)


def _parsed(file: Path) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            keys = [key for key, _ in pairs]
            raise ValueError(f"{shown(next(key for key in keys if keys.count(key) > 1))} is given twice")
        for key in _UNREAD:
            found.pop(key, None)
        return found

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is not a number of JSON")

    try:
        text = read_data(file, _MOST).decode("utf-8-sig")
        data = json.loads(text, object_pairs_hook=once, parse_constant=refuse)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); check path and permission") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{file}:{error.lineno}: not valid JSON ({error.msg}); export it again") from None
    except RecursionError:
        raise DataError(f"{file}: not COCO (nested too deeply); export it again") from None
    except ValueError as error:
        raise DataError(f"{file}: not COCO ({error}); export it again") from None
    if not isinstance(data, dict):
        raise DataError(f"{file}: holds a {type(data).__name__}, not COCO's {', '.join(_LISTS)}; export it as COCO")
    return data


def _categories(file: Path, items: list[dict[str, Any]]) -> dict[Any, str]:
    found: dict[Any, str] = {}
    for item in items:
        number, name = _identifier(item.get("id")), item.get("name")
        if number is None or number in found:
            raise DataError(f"{file}: category {shown(item)} has no 'id' of its own; correct it")
        if not isinstance(name, str) or not name.strip() or any(map(is_control, name)):
            raise DataError(f"{file}: category {shown(item.get('id'))} has the name {shown(name)}; give it one")
        found[number] = name.strip()
    return found


def _images(file: Path, items: list[dict[str, Any]]) -> dict[Any, dict[str, Any]]:
    found: dict[Any, dict[str, Any]] = {}
    for item in items:
        number, name = _identifier(item.get("id")), item.get("file_name")
        if number is None or not isinstance(name, str) or not name:
            raise DataError(f"{file}: image {shown(item)} has no 'id' or no 'file_name'; correct it")
        if number in found:
            raise DataError(
                f"{file}: images {shown(found[number]['file_name'])} and {shown(name)} both have the id "
                f"{shown(number)}: their annotations cannot be told apart; renumber one of them"
            )
        sides = item.get("width"), item.get("height")
        if not all(_is_number(side) and side > 0 for side in sides):
            raise DataError(
                f"{file}: image {shown(name)} is {shown(sides[0])} x {shown(sides[1])}; write its width and height in "
                "pixels"
            )
        found[number] = item
    if not found:
        raise DataError(f"{file}: 'images' lists none; export it with its images")
    return found


def _places(file: Path, root: Path, names: list[str]) -> list[Path]:
    """Where the images are: in the one folder that has the first of them."""
    called = file.stem.removeprefix("instances_")
    folders = [root, root / "images", file.parent, root / called, root / "images" / called]
    folders = list(dict.fromkeys(folder.resolve() for folder in folders))
    holding = list(dict.fromkeys(_inside(folder, names[0]) for folder in folders if _is_file(folder, names[0])))
    if not holding:
        where = " and ".join(map(str, folders))
        raise DataError(
            f"{file}: no such image {shown(names[0])} (looked in {where}); correct 'file_name', or 'path:' in data.yaml"
            f"{windows_hint(names[0])}"
        )
    if len(holding) > 1:
        raise DataError(
            f"{file}: image {shown(names[0])} is {holding[0]} and {holding[1]}: set 'path:' in data.yaml, or write "
            "more of the path in 'file_name', so that one is meant"
        )
    folder = next(folder for folder in folders if _is_file(folder, names[0]))
    first: dict[Path, str] = {}
    for name in names:
        if not _is_file(folder, name):
            raise DataError(
                f"{file}: no such image {shown(name)} (looked for {folder / name}); fetch it, or take it out of "
                "'images' with its annotations"
            )
        if first.setdefault(_inside(folder, name), name) is not name:
            raise DataError(f"{file}: image {shown(name)} is listed twice, under two ids; keep one")
    return list(first)


def _inside(folder: Path, name: str) -> Path:
    return Path(os.path.normpath(folder / PurePosixPath(name)))


def _is_file(folder: Path, name: str) -> bool:
    try:
        return (folder / name).is_file()
    except (OSError, ValueError):
        return False


def _identifier(value: Any) -> Any:
    """An identifier, which is a whole number or a text; None for anything else."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _FINITE
