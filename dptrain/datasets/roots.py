"""Which folder ``path:`` of a data.yaml means. Ultralytics and people who write one beside the data do not agree."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import DataError
from .data_yaml import is_windows, shown

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


def datasets_folder() -> Path:
    """Return the datasets folder of Ultralytics' settings; before there are any, the one it would choose."""
    base = os.environ.get("YOLO_CONFIG_DIR")
    if base is None and sys.platform == "darwin":
        base = "~/Library/Application Support"
    settings = Path(base or os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "Ultralytics/settings.json"
    try:
        return Path(json.loads(settings.read_text(encoding="utf-8"))["datasets_dir"])
    except (OSError, ValueError, KeyError, TypeError):
        return Path("datasets").absolute()


def _root(file: Path, data: Mapping[Any, Any], entry: str) -> Path:
    written = Path(entry).expanduser()
    beside = (file.parent / written).resolve()
    if not data.get("path") or written.is_absolute():
        places = [beside]
    else:
        places = [written.resolve() if written.exists() else (datasets_folder() / written).resolve(), beside]
    found = {place: _images(place, data) for place in places if place.is_dir()}
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


def _images(root: Path, data: Mapping[Any, Any]) -> set[Path]:
    """Those entries of the splits that are there."""
    entries = [data.get(split) for split in ("train", "val", "validation", "test")]
    items = [item for entry in entries for item in (entry if isinstance(entry, list) else [entry])]
    names = {name for item in items if isinstance(item, str) for name in (item, item.removeprefix("../")) if name}
    return {place for name in names if (place := (root / name).resolve()).exists()}
