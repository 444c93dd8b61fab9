"""Which folder ``path:`` of a data.yaml means. Ultralytics and people who write one beside the data do not agree."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..support.environment import ultralytics_folder
from .data_yaml import YAML_SUFFIXES, is_windows, shown

_ABSOLUTE = "write the absolute path that it has here"


def root_of(file: Path, data: Mapping[Any, Any]) -> Path:
    """Return the folder that relative splits of a data.yaml start from.

    Ultralytics takes a relative ``path`` from the current folder, and where that is not there, from the datasets folder
    of its settings. Where it would find none of the images, the folder of the data.yaml is what is meant.

    Raises:
        DataError: No such folder is there, or there are two with images: Ultralytics would read others.
    """
    entry = data.get("path") or "."
    if not isinstance(entry, str):
        raise DataError(f"{file}: path: {shown(entry)} is not a folder name")
    try:
        return _root(file, data, entry)
    except DataError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{file}: path: {entry} cannot be looked up ({reason}); correct it") from None


def shipped(file: Path) -> Path:
    """Return the ``data.yaml`` that Ultralytics takes for a bare name that is not here: one that comes with it."""
    if file.name != str(file) or file.suffix.lower() not in YAML_SUFFIXES or file.exists():
        return file
    theirs = _shipped_folder() / file.name
    return theirs if theirs.is_file() else file


def _shipped_folder() -> Path:
    found = find_spec("ultralytics")
    return Path(*(found.submodule_search_locations or ()) if found else (), "cfg", "datasets")


def _root(file: Path, data: Mapping[Any, Any], entry: str) -> Path:
    written = Path(entry).expanduser()
    beside = (file.parent / written).resolve()
    if not data.get("path") or written.is_absolute():
        places = [beside]
    else:
        places = [
            written.resolve() if written.exists() else (ultralytics_folder("datasets") / written).resolve(),
            beside,
        ]
    found = {place: _images(place, data) for place in places if place.is_dir()}
    if not found and file.parent == _shipped_folder():
        raise DataError(_how_to_get(file, data, places[0]))
    if not found:
        where = f" (looked for {' and '.join(map(str, dict.fromkeys(places)))})"
        if is_windows(entry):
            where = " here, but one of a Windows machine"
        is_beside = bool(_images(file.parent.resolve(), data))
        fix = "leave it out: the splits are there beside the data.yaml" if is_beside else _ABSOLUTE
        raise DataError(f"{file}: path: {entry} is not a folder{where}; {fix}")
    if len(found) > 1 and not any(found.values()):
        raise DataError(
            f"{file}: path: {entry} is {places[0]}, as Ultralytics reads it from here, or {beside}, and no split of it "
            "is in either; correct it, or write it absolute"
        )
    if len({*map(frozenset, found.values())}) == 1:
        return list(found)[-1]
    anyway = set.intersection(*found.values())  # absolute entries, which no folder decides
    holding = [place for place, images in found.items() if images - anyway]
    if len(holding) > 1:
        raise DataError(
            f"{file}: path: {entry} is {holding[0]}, as Ultralytics reads it from here, and {holding[1]}, beside the "
            "data.yaml, and both hold images: write it absolute, so that both read the same"
        )
    return holding[0]


def _how_to_get(file: Path, data: Mapping[Any, Any], place: Path) -> str:
    """What to do where the images of a dataset that Ultralytics knows are not there; nothing of it is done here."""
    source = data.get("download")
    if isinstance(source, str) and re.fullmatch(r"https?://\S+\.zip", source.strip()):
        how = f"get {source.strip()} and unpack it into {place.parent}"
    else:
        how = f"yolo val data={file.name} gets them"
    return f"{file.name}: its images are not there (looked for {place}), and dptrain downloads no data: {how}"


def _images(root: Path, data: Mapping[Any, Any]) -> set[Path]:
    """Those entries of the splits that are there."""
    entries = [data.get(split) for split in ("train", "val", "validation", "test")]
    items = [item for entry in entries for item in (entry if isinstance(entry, list) else [entry])]
    names = {name for item in items if isinstance(item, str) for name in (item, item.removeprefix("../")) if name}
    return {place for name in names if (place := (root / name).resolve()).exists()}
