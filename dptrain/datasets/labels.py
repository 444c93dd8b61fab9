"""Label files in Ultralytics' text format: one object a line, ``class x y w h`` or ``class x1 y1 x2 y2 x3 y3 ...``.

A row's width says what it is, so one file may hold both; Ultralytics leaves such an image out. Rows of a pose dataset
have keypoints after the box, which a detector does not read; how many, only ``kpt_shape`` of the data.yaml can tell,
since a polygon may be as long.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import DataError
from ..support.files import MOST_TEXT
from .contents import read_data

__all__ = [
    "ANY_CLASS",
    "DROP_BAD_ROWS",
    "LABELS",
    "STRICT",
    "TOLERANCE",
    "Row",
    "boxes_of",
    "label_path",
    "plain_labels",
    "read_labels",
    "row_keys",
    "text_rows",
]

#: What is done about a bad row: the file is refused, or the row is left out, by a rule for this file alone.
STRICT, DROP_BAD_ROWS = LABELS = ("strict", "drop_bad_rows")
#: For :func:`read_labels` where it does not matter which classes exist.
ANY_CLASS = 2**31
#: How far an edge may lie outside the image, in parts of its side. Ultralytics allows coordinates the same 1 %: tools
#: that count pixels from 1, or round, put an honest edge that far out.
TOLERANCE = 0.01


class Row(NamedTuple):
    """What a dataset says of one object of an image, before it is checked.

    Attributes:
        place: Where it says so, for a message: file and line.
        words: Class number, then centre, width and height in parts of the image, or a polygon; each as it is written.
        wrong: Why it is no box at all, and the fix; empty where ``words`` tell.
    """

    place: str
    words: Sequence[str]
    wrong: str = ""


def read_labels(
    path: Path, num_classes: int, keypoints: int = 0, dropped: list[str] | None = None
) -> np.ndarray | None:
    """Read and check one label file.

    Polygons become their bounding boxes, and a repeated line counts once, as in Ultralytics.

    Args:
        path: The ``.txt`` file.
        num_classes: Classes are the whole numbers from 0 to ``num_classes - 1``.
        keypoints: Columns of keypoints that may follow a box (``DataConfig.keypoints``); 0 where there are none.
        dropped: Where given, a bad row is left out, and the line about it, which may be private, is added here.

    Returns:
        float32 array of shape (m, 5): class, then the box's centre, width and height in parts of the image. ``None``
        where there is no such file: the image is background.

    Raises:
        DataError: A line has the wrong number of columns, a value that is not a finite number, a class out of range,
            or a box outside the image; it names file, line, value and fix.
    """
    rows = text_rows(path)
    return None if rows is None else boxes_of(rows, num_classes, keypoints, dropped)


def text_rows(path: Path) -> list[Row] | None:
    """Return the lines of a label file, unchecked; None where there is no such file.

    Raises:
        DataError: It cannot be read.
    """
    text = _text(path)
    if text is None:
        return None
    lines = enumerate(map(str.split, text.splitlines()), start=1)
    return [Row(f"{path}:{number}", words) for number, words in lines if words]


def plain_labels(path: Path, keypoints: int = 0) -> str:
    """Return the lines of a label file, which are numbers once they were checked; of any class.

    Raises:
        DataError: It cannot be read, or a line is none of :func:`read_labels`.
    """
    rows = text_rows(path)
    if rows is None:
        raise DataError(f"{path}: cannot read the label file (it is not there); check path and permission")
    boxes_of(rows, ANY_CLASS, keypoints)
    return "".join(f"{' '.join(row.words)}\n" for row in rows)


def row_keys(rows: Iterable[Row]) -> set[bytes]:
    """Return what each row says, whatever it means: numbers in one spelling, other words as they are."""
    return {_key(row.words) if not row.wrong else f"{row.wrong} {row.words}".encode() for row in rows}


def _key(words: Sequence[str]) -> bytes:
    """The same for lines that say the same."""
    try:
        with np.errstate(over="ignore"):
            return (np.array(list(map(float, words)), np.float32) + np.float32(0)).tobytes()  # -0 is 0
    except ValueError:
        return " ".join(words).encode()


def _text(path: Path) -> str | None:
    """What a label file says, read once; None where there is none."""
    try:
        return read_data(path, MOST_TEXT).decode("utf-8-sig")
    except FileNotFoundError:
        if path.is_symlink():  # boxes that were not fetched are not an image without objects
            raise DataError(f"{path}: links to a file that is not there; fetch it, or remove the link") from None
        return None
    except UnicodeDecodeError:
        raise DataError(f"{path}: the label file is not UTF-8 text; export it again as plain text") from None
    except OSError as error:
        raise DataError(f"{path}: cannot read the label file ({error.strerror}); check path and permission") from None


def boxes_of(rows: Iterable[Row], num_classes: int, keypoints: int = 0, dropped: list[str] | None = None) -> np.ndarray:
    """Check the rows of one image; arguments, return value and errors are those of :func:`read_labels`."""
    found: list[list[float]] = []
    seen: set[bytes] = set()
    for row in rows:
        try:
            if row.wrong:
                raise DataError(f"{row.place}: {row.wrong}")
            values = _row(row.words, num_classes, keypoints, row.place)
        except DataError as error:
            if dropped is None:
                raise
            dropped.append(str(error))
            continue
        # Rows that differ in their keypoints alone are one box.
        key = _key(row.words[:5] if keypoints else row.words)
        if key not in seen:
            seen.add(key)
            found.append(values)
    return np.array(found, np.float32).reshape(-1, 5) + np.float32(0)


def _row(words: Sequence[str], num_classes: int, keypoints: int, place: str) -> list[float]:
    values = [_number(words[0], place, "a class is the number that it has in data.yaml")]
    values += [_number(word, place, "write class x y w h") for word in words[1:]]
    width = len(values)
    if keypoints and width not in (5, 5 + keypoints):
        raise DataError(
            f"{place}: {width} columns, but with kpt_shape in data.yaml a row has 5 (class x y w h) or {5 + keypoints} "
            "(with its keypoints); correct the line, or kpt_shape"
        )
    if not keypoints and width != 5 and (width < 7 or width % 2 == 0):
        pose = ", or add kpt_shape to data.yaml if these are keypoints" if width > 7 else ""
        raise DataError(
            f"{place}: {width} columns, but a box has 5 (class x y w h) and a polygon 7, 9, 11, ... (class, "
            f"then x y pairs); correct the line{pose}"
        )
    return [_class(values[0], words[0], num_classes, place), *_box(values[1:5] if keypoints else values[1:], place)]


def _number(word: str, place: str, fix: str) -> float:
    try:
        value = float(word)
    except ValueError:
        fix = "separate numbers with spaces, and write 0.5" if "," in word else fix
        raise DataError(f"{place}: '{word}' is not a number; {fix}") from None
    if not math.isfinite(value):
        raise DataError(f"{place}: '{word}' is not a finite number; correct the line or delete it")
    return value


def _class(value: float, word: str, num_classes: int, place: str) -> float:
    if value != int(value) or not 0 <= value < num_classes:
        raise DataError(
            f"{place}: class '{word}' is not a whole number from 0 to {num_classes - 1}; correct it, or name the class "
            "in data.yaml"
        )
    return value


def _box(values: list[float], place: str) -> list[float]:
    """Centre, width and height of a box or of a polygon's extent, checked against the image."""
    if len(values) == 4:
        x, y, w, h = values
    else:
        x1, x2, y1, y2 = min(values[::2]), max(values[::2]), min(values[1::2]), max(values[1::2])
        x, y, w, h = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
    shown = f"box x={x:g} y={y:g} w={w:g} h={h:g}"
    if min(w, h) <= 0 or np.float32(min(w, h, 1.0)) == 0:  # nothing is left of it in single precision
        raise DataError(f"{place}: {shown} has no area; correct the line or delete it")
    if min(x - w / 2, y - h / 2) < -TOLERANCE or max(x + w / 2, y + h / 2) > 1 + TOLERANCE:
        raise DataError(
            f"{place}: {shown} reaches outside the image, from x {x - w / 2:g} to {x + w / 2:g} and y {y - h / 2:g} to "
            f"{y + h / 2:g}; coordinates are parts of the image in [0, 1]: divide pixels by its size, cut at the edge"
        )
    return [x, y, w, h]


def label_path(image: Path) -> Path:
    """The label file of an image: the last ``images`` folder of its path becomes ``labels``, the suffix ``.txt``."""
    head, sep, tail = str(image).rpartition(f"{os.sep}images{os.sep}")
    return Path(f"{head}{os.sep}labels{os.sep}{tail}" if sep else tail).with_suffix(".txt")
