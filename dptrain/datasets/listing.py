"""Which image files a split holds: folders, lists and COCO files, each image once."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import DataError
from ..support.files import MOST_TEXT
from .coco import CocoFile, read_coco
from .contents import read_data
from .data_yaml import refuse_ndjson, shown, windows_hint
from .voc import listed, with_annotations

#: Suffixes that count as images inside a folder or a list, as in Ultralytics.
IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".dng", ".heic", ".heif", ".jp2", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp"}
)


def public_images(place: str | Path) -> list[Path]:
    """List the images of a folder (searched to any depth) or of a ``.txt`` list, relative to the current folder.

    Raises:
        DataError: There is no such folder or list, it names what is no image, or it holds none.
    """
    path = Path(place).expanduser()
    if not path.exists():
        raise DataError(f"public_images={place} does not exist: give the folder, or a .txt list, of the start's images")
    images = list(_images_under(path) if path.is_dir() else _images_listed(path))
    if not images:
        raise DataError(f"public_images={place} holds no images, so there is nothing to compare with: correct the path")
    return images


def folder_images(folder: Path) -> list[Path]:
    """List the images of a folder, searched to any depth, in path order.

    Raises:
        DataError: It holds none, or something in it cannot be listed.
    """
    try:
        images = sorted(_images_under(folder))
    except OSError as error:
        raise DataError(f"{error.filename or folder} cannot be looked up ({_reason(error)}); correct it") from None
    if not images:
        raise DataError(f"{folder}: holds no images; suffixes that count: {' '.join(sorted(IMAGE_SUFFIXES))}")
    return images


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def list_split(file: Path, split: str, root: Path, entry: Any, coco: list[CocoFile]) -> tuple[Path, ...]:
    """Return every image file of a split, sorted by path, each once.

    Args:
        file: The ``data.yaml``.
        split: One of its splits.
        root: Folder that relative entries start from.
        entry: What it says of the split.
        coco: COCO files that list images are added here.

    Raises:
        DataError: About the first entry that names no images.
    """
    if entry is None or entry == []:
        raise DataError(f"{file}: split '{split}' is not declared; add '{split}: <folder of images>'")
    entries = entry if isinstance(entry, list) else [entry]
    found: list[Path] = []
    for item in entries:
        if not isinstance(item, str) or not item.strip():
            raise DataError(f"{file}: {split}: {shown(item)} is not a folder or a .txt file; write a path")
        try:
            found += _images_of(file, split, root, item, coco)
        except DataError:
            raise
        except (OSError, RuntimeError, ValueError) as error:
            place = getattr(error, "filename", None) or item
            raise DataError(f"{file}: {split}: {place} cannot be looked up ({_reason(error)}); correct it") from None
    if not found:
        raise DataError(
            f"{file}: {split}: no images in {', '.join(map(str, entries))} (looked in {root}); suffixes that count: "
            f"{' '.join(sorted(IMAGE_SUFFIXES))}"
        )
    return _each_once(file, split, sorted(found))


def _images_of(file: Path, split: str, root: Path, item: str, coco: list[CocoFile]) -> list[Path]:
    place = (root / item).resolve()
    if not place.exists() and item.startswith("../"):
        place = (root / item[3:]).resolve()  # Roboflow exports write ../train/images for train/images
    if place.is_dir():
        return list(_images_under(with_annotations(place)))
    if place.is_file() and place.suffix.lower() == ".json":
        coco.append(read_coco(place, root))
        return list(coco[-1].images)
    refuse_ndjson(place)
    if place.is_file() and place.suffix.lower() in IMAGE_SUFFIXES:
        return [place]
    if place.is_file():
        return _images_listed(place)
    raise DataError(
        f"{file}: {split}: {item} does not exist (looked for {root / item}); correct it or 'path:', nothing is "
        f"downloaded{windows_hint(item)}"
    )


def _images_under(folder: Path) -> Iterator[Path]:
    """As Ultralytics searches: to any depth, through links, without hidden files. What cannot be listed is an error."""
    first: dict[tuple[int, int], Path] = {}
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        status = here.stat()
        other = first.setdefault((status.st_dev, status.st_ino), here)
        if other is not here:
            raise DataError(f"{here}: is a link to {other}, whose images would count twice; remove the link")
        with os.scandir(here) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    waiting.append(here / entry.name)
                elif Path(entry.name).suffix.lower() in IMAGE_SUFFIXES:
                    yield here / entry.name


def _images_listed(file: Path) -> list[Path]:
    try:
        lines = read_data(file, MOST_TEXT).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as a list of image files ({_reason(error)})") from None
    images = []
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line:
            continue
        image = listed(file, line) or (file.parent / line[2:] if line.startswith("./") else Path(line).absolute())
        if image.suffix.lower() not in IMAGE_SUFFIXES:
            raise DataError(f"{file}:{number}: '{line}' is not an image file name; correct the line or delete it")
        try:
            there = image.is_file()
        except (OSError, ValueError) as error:
            raise DataError(f"{file}:{number}: '{line}' cannot be looked up ({_reason(error)}); correct it") from None
        if not there:
            raise DataError(f"{file}:{number}: no such image '{line}' (looked for {image}); {_here(file.parent, line)}")
        images.append(image)
    return images


def _here(folder: Path, line: str) -> str:
    """How to write a line of a list that was made elsewhere: as what of it is there, from the list's own folder."""
    parts = PurePosixPath(re.sub(r"\\+", "/", line)).parts
    for start in range(len(parts)):
        end = "/".join(parts[start:])
        if (folder / end).is_file():
            return f"write ./{end}, which is there, and so in the other lines"
    return f"begin it with ./ to start from the list's folder{windows_hint(line)}"


def _each_once(file: Path, split: str, images: Iterable[Path]) -> tuple[Path, ...]:
    first: dict[Path, Path] = {}
    for image in images:
        other = first.setdefault(image.resolve(), image)
        if other is not image:
            raise DataError(
                f"{file}: {split}: {image} is listed twice (also as {other}); a photo counts as one unit, so keep one"
            )
    return tuple(first.values())
