"""The text of a ``data.yaml``: what it says, and which classes it names; nothing of it is taken in silence."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from ..errors import DataError, is_control
from ..support.files import MOST_TEXT
from .contents import read_data

#: Suffixes by which a file is taken for a data.yaml; in small letters.
YAML_SUFFIXES = (".yaml", ".yml")
#: How boxes may be written, which ``labels`` says where the files do not.
FORMATS = ("yolo", "coco", "voc")
MOST_CLASSES = 100_000
_MOST_KEYPOINTS = 100_000

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 3, 100, 100


class _Loader(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys: a split or a class would be gone without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for item, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if item.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(item, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{shown(key)} is given twice", item.start_mark)
            seen |= {key} if isinstance(key, Hashable) else set()
        return super().construct_mapping(node, deep)


def read_yaml(file: Path) -> Mapping[Any, Any]:
    """Return the keys and values of a ``data.yaml``.

    Raises:
        DataError: It cannot be read, is not YAML, gives a key twice, or holds something else than keys and values.
    """
    try:
        content = read_data(file, MOST_TEXT)
        if content.startswith(b"PK\x03\x04"):
            raise DataError(f"{file}: is a ZIP archive; unpack it, and give the data.yaml inside")
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{file}: no such data.yaml; nothing is downloaded, so give the path of a local file") from None
    except IsADirectoryError:
        raise DataError(f"{file}: is a folder; give the data.yaml inside it") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{file}: cannot be read as text ({reason}); save it as UTF-8") from None
    try:
        data = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{file}:{mark.line + 1}" if mark else str(file)
        raise DataError(f"{place}: not valid YAML ({getattr(error, 'problem', None) or 'unreadable'})") from None
    except Exception as error:  # a day 99, 10,000 brackets: PyYAML makes such values in ways that fail in many kinds
        reason = error if isinstance(error, ValueError) else type(error).__name__
        raise DataError(f"{file}: holds a value that YAML cannot make ({reason})") from None
    if not isinstance(data, Mapping):
        kind = "nothing" if data is None else type(data).__name__
        raise DataError(f"{file}: holds {kind}, not 'key: value' lines; it needs train, val and names")
    return data


def class_names(file: Path, data: Mapping[Any, Any]) -> dict[int, str]:
    """Return class number to class name, numbers 0, 1, 2, ...

    Raises:
        DataError: A name or a number is not one, is there twice, or ``nc`` does not match.
    """
    names, count = data.get("names"), data.get("nc")
    other = next((key for key in ("classes", "class_names") if data.get(key) is not None), None)
    if names is None and other is not None:
        raise DataError(
            f"{file}: {other}: {shown(data[other])} is not read, the class names are called names: rename it"
        )
    if count is not None and ((number := _whole(count)) is None or number < 1):
        raise DataError(f"{file}: nc: {shown(count)} is not a whole number above 0; correct it or leave it out")
    classes = _whole(count) or 0
    if names is None:
        if count is None:
            raise DataError(f"{file}: neither names nor nc is given; add 'names: [first class, second class]'")
        if classes > MOST_CLASSES:
            raise DataError(f"{file}: nc: {shown(count)} is more than {MOST_CLASSES} classes; correct it")
        return {i: f"class_{i}" for i in range(classes)}
    if not isinstance(names, (list, Mapping)) or not names:
        raise DataError(
            f"{file}: names: {shown(names)} is not a list of class names, nor 'number: name' lines; correct it"
        )
    if len(names) > MOST_CLASSES:
        raise DataError(f"{file}: names: {len(names)} are more than {MOST_CLASSES} classes; correct it")
    given = dict(enumerate(names)) if isinstance(names, list) else names
    numbers = [_whole(key) for key in given]
    if set(numbers) != set(range(len(given))):
        raise DataError(
            f"{file}: names: the class numbers {shown(list(given))} are not 0 to {len(given) - 1}; renumber them"
        )
    first: dict[str, int] = {}
    found: dict[int, str] = {}
    for number, value in sorted(zip(numbers, given.values(), strict=True), key=lambda pair: pair[0] or 0):
        name = _class_name(value)
        if not name or first.setdefault(name, number or 0) != number:
            raise DataError(
                f"{file}: names: class {number} is named {shown(value)}; give each class its own name, in quotes "
                "where YAML takes it for something else"
            )
        found[number or 0] = name
    if count is not None and classes != len(found):
        raise DataError(f"{file}: nc: {count} but names has {len(found)} classes; make them agree or leave nc out")
    return found


def keypoint_shape(file: Path, data: Mapping[Any, Any]) -> tuple[int, int] | None:
    """Return how many keypoints follow each box, and how many numbers each has (2, or 3 with its visibility).

    Raises:
        DataError: ``kpt_shape`` is something else.
    """
    shape = data.get("kpt_shape")
    if shape is None:
        return None
    found = tuple(map(_whole, shape)) if isinstance(shape, (list, tuple)) else ()
    if len(found) != 2 or not found[0] or not 0 < found[0] <= _MOST_KEYPOINTS or found[1] not in (2, 3):
        raise DataError(
            f"{file}: kpt_shape: {shown(shape)} is not [number of keypoints, 2 or 3 (x, y and perhaps visibility)]; "
            "correct it, or leave it out if the labels have no keypoints"
        )
    return found[0], found[1]


def channel_count(file: Path, data: Mapping[Any, Any]) -> int:
    """Return how many channels a detector for these images has in Ultralytics: 3 where nothing is said.

    Raises:
        DataError: ``channels`` is not a number of them.
    """
    count = data.get("channels")
    if count is None:
        return 3
    if (number := _whole(count)) is None or number < 1:
        raise DataError(
            f"{file}: channels: {shown(count)} is not a whole number above 0; leave it out for colour images"
        )
    return number


def refuse_unread_val(file: Path, data: Mapping[Any, Any]) -> None:
    """Refuse a validation split under a name that nobody reads: the run would go without it.

    Raises:
        DataError: There is one, and no ``val``.
    """
    if data.get("val") is None and data.get("validation") is None and data.get("valid") is not None:
        raise DataError(f"{file}: valid: {shown(data['valid'])} is not read, the split is called val: rename it")


def boxes_written(file: Path, data: Mapping[Any, Any]) -> str | None:
    """Return how the boxes are written, one of :data:`FORMATS`; None where the files must tell.

    Raises:
        DataError: ``labels`` is none of them.
    """
    written = data.get("labels")
    if written is not None and written not in FORMATS:
        known = ", ".join(FORMATS)
        raise DataError(f"{file}: labels: {shown(written)} is not one of {known}; correct it or leave it out")
    return written


def refuse_no_yaml(file: Path) -> None:
    """Refuse a COCO or an NDJSON file in the place of a ``data.yaml``.

    Raises:
        DataError: It is one; the line says what to do.
    """
    refuse_ndjson(file)
    if file.suffix.lower() == ".json":
        raise DataError(
            f"{file}: is the annotation of one split: write a data.yaml with 'train: {file.name}', 'val: ...' and "
            "'path: <folder of both>', and give that"
        )


def refuse_ndjson(file: Path) -> None:
    """Refuse a dataset in Ultralytics' NDJSON, which holds addresses to download from.

    Raises:
        DataError: It is one; the line says how Ultralytics makes a ``data.yaml`` of it.
    """
    if file.suffix.lower() == ".ndjson":
        raise DataError(
            f"{file}: NDJSON lists images to download, and dptrain downloads no data: let Ultralytics make a data.yaml "
            'of it, asyncio.run(ultralytics.data.converter.convert_ndjson_to_yolo("' + file.name + '")), and give that'
        )


def windows_hint(path: str) -> str:
    """Return what to add where a path is not there and is spelled as on Windows."""
    if is_windows(path):
        return "; it is the path of a Windows machine: write the one that it has here"
    return "; write / in place of \\" if "\\" in path else ""


def is_windows(path: str) -> bool:
    """Whether a path begins with a drive or a server, as on Windows."""
    return re.match(r"[A-Za-z]:[\\/]|\\\\", path) is not None


def _whole(value: Any) -> int | None:
    """The whole number that a value or its text is, None where it is none."""
    try:
        return int(float(value)) if not isinstance(value, bool) and float(value) == int(float(value)) else None
    except (TypeError, ValueError, OverflowError):
        return None


def _class_name(value: Any) -> str:
    """The name as text, empty where it is none: YAML's ``no`` is a truth value, and a name is one line."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return ""
    try:
        name = str(value).strip()
    except ValueError:  # a number of too many digits
        return ""
    return "" if any(map(is_control, name)) else name


def shown(value: Any) -> str:
    """A value for a message; a few lines of YAML can stand for gigabytes."""
    try:
        return _SHORT.repr(value)
    except ValueError:
        return "a number of thousands of digits"


def data_name(file: Path) -> str:
    """Return what people call the dataset: ``pets`` for pets.yaml, the folder for a plain data.yaml."""
    return file.resolve().parent.name if file.stem in ("data", "dataset") else file.stem
