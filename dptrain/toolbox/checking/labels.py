"""Label files: what training would refuse, and what it would accept although it cannot be meant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from ...datasets.sources import DataConfig
from ...errors import DataError
from ...support.words import counted
from .findings import Finding

_TWICE = 0.9  # overlap from which two boxes of one class are one object
_LEAST_PIXELS = 3.0
_OTHER_SHAPE = 0.02  # of width over height; resizing rounds less than that


Splits = Mapping[str, Sequence[Path]]


def read_all(splits: Splits, data: DataConfig) -> tuple[list[np.ndarray | None], list[Finding]]:
    """Return the boxes of each image, None where there are none to read, and an error for each file that is wrong."""
    rows: list[np.ndarray | None] = []
    found = []
    for split, images in splits.items():
        for image in images:
            try:
                rows.append(data.labels_of(split, image))
            except DataError as error:
                rows.append(None)
                found.append(Finding("label error", str(error), (image,)))
    return rows, found


def unsaid_keypoints(splits: Splits, data: DataConfig) -> list[Finding]:
    """Say where most polygons of a dataset look like boxes with keypoints, of which its data.yaml says nothing."""
    if data.keypoints:
        return []
    shapes: Counter[int] = Counter()
    first: dict[int, Path] = {}
    for split, images in splits.items():
        for image in images:
            with suppress(ValueError):  # told of elsewhere; a DataError is one
                for row in data.boxes_in(split).rows(image) or ():
                    values = [float(word) for word in row.words]
                    if len(values) > 5:
                        points = _visible_keypoints(values)
                        shapes[points] += 1
                        first.setdefault(points, image)
    points, count = max(shapes.items(), key=lambda item: item[1], default=(0, 0))
    if not points or 2 * count <= shapes.total():
        return []
    text = (
        f"{data.file}: most label lines look like a box with {counted(points, 'keypoint')}, and are read as polygons: "
        f"add kpt_shape: [{points}, 3] if that is what they are"
    )
    return [Finding("label error", text, (first[points],))]


def _visible_keypoints(values: Sequence[float]) -> int:
    """How many points of x, y and visibility (0, 1 or 2) follow a box within the image; 0 where it is none."""
    x, y, w, h = values[1:5]
    points = np.array(values[5:])
    if len(points) % 3 or min(w, h) <= 0 or min(x - w / 2, y - h / 2) < -0.01 or max(x + w / 2, y + h / 2) > 1.01:
        return 0
    return len(points) // 3 if np.isin(points[2::3], (0, 1, 2)).all() else 0


def doubtful(image: Path, rows: np.ndarray, size: tuple[int, int], names: dict[int, str]) -> list[Finding]:
    """Boxes of one image that overlap almost exactly, or are hardly there."""
    found = []
    corners = np.concatenate([rows[:, 1:3] - rows[:, 3:] / 2, rows[:, 1:3] + rows[:, 3:] / 2], axis=1)
    for first in range(len(rows)):
        for second in range(first + 1, len(rows)):
            if rows[first, 0] == rows[second, 0] and _overlap(corners[first], corners[second]) > _TWICE:
                text = f"{image}: two boxes of {names[int(rows[first, 0])]} overlap almost exactly"
                found.append(Finding("label error", text, (image,), (_marks(corners[[first, second]]),)))
    pixels = rows[:, 3:] * size
    for row in np.flatnonzero(pixels.min(axis=1) < _LEAST_PIXELS):
        width, height = pixels[row]
        text = f"{image}: a box of {names[int(rows[row, 0])]} is {width:.1f} x {height:.1f} pixels"
        found.append(Finding("label error", text, (image,), (_marks(corners[[row]]),)))
    return found


def other_sizes(splits: Splits, data: DataConfig, sizes: Mapping[Path, tuple[int, int]]) -> list[Finding]:
    """Boxes in pixels of an image of another shape, such as one that was turned since: they are elsewhere, then.

    Args:
        splits: The images by split.
        data: Their dataset.
        sizes: Width and height of every image that can be read.
    """
    found = []
    for split, images in splits.items():
        for image in images:
            with suppress(DataError):  # told of elsewhere
                stated = data.boxes_in(split).size(image)
                if stated is None or image not in sizes:
                    continue
                width, height = sizes[image]
                if abs(stated[0] / stated[1] / (width / height) - 1) > _OTHER_SHAPE:
                    text = (
                        f"{image}: is {width} x {height} pixels, and {data.boxes_in(split).place(image)} has its boxes "
                        f"in an image of {stated[0]:g} x {stated[1]:g}: was it turned or cropped since?"
                    )
                    found.append(Finding("label error", text, (image,)))
    return found


def orphans(splits: Splits, data: DataConfig) -> list[Finding]:
    """Label files whose image is not there: a split that was moved, or an image that was deleted for a reason."""
    known = {data.boxes_in(split).place(image) for split, images in splits.items() for image in images}
    places = {(file.parent, file.suffix) for file in known if file.suffix != ".json" and file.parent.is_dir()}
    lost = [file for folder, end in sorted(places) for file in sorted(folder.glob(f"*{end}")) if file not in known]
    lost = [file for file in lost if file.name != "classes.txt"]
    return [Finding("label error", f"{file}: labels of an image that is not there") for file in lost]


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    common = float(np.prod(np.clip(sides, 0, None)))
    return common / float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - common)


def _marks(corners: np.ndarray) -> tuple[tuple[float, float, float, float], ...]:
    return tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in corners)
