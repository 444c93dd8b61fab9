"""One look at every image: whether it can be read, what it tells, and a few numbers to compare it by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from os import cpu_count
from pathlib import Path

import cv2
import numpy as np

from ...datasets.identity import identity
from ...datasets.images import read_image
from ...datasets.near import SIDE
from ...errors import DataError
from ...support.files import read_file
from ..scrubbing.clean import clean, suffix_of
from ..scrubbing.cleaned import Damaged

_WINDOW, _PATTERN = 10, 15.0  # pixels, and grey levels
_CORNERS = 64
_LONGEST = 1024
_AHEAD = 256


@dataclass(frozen=True)
class ImageSummary:
    """What is kept of one image, 8 kB.

    Attributes:
        image: The file.
        error: Why it cannot be read; the rest is then empty.
        told: What its metadata would give away.
        size: Width and height in pixels.
        picture: The picture's identity, however it is turned.
        small: uint8 (SIDE, SIDE), grey.
        windows: uint8 (n, 10, 10): the pixels around its n sharpest corners.
        corners: float32 (n, 2): where they are, in parts of the image.
    """

    image: Path
    error: str | None = None
    told: tuple[str, ...] = ()
    size: tuple[int, int] = (0, 0)
    picture: bytes | None = None
    small: np.ndarray | None = None
    windows: np.ndarray | None = None
    corners: np.ndarray | None = None


def summarize(images: Sequence[Path]) -> Iterator[ImageSummary]:
    """ImageSummary at images in threads, in their order, holding a few hundred at a time."""
    waiting = iter(images)
    with ThreadPoolExecutor(min(8, cpu_count() or 1)) as pool:
        while part := list(islice(waiting, _AHEAD)):
            yield from pool.map(look, part)


def look(image: Path) -> ImageSummary:
    """ImageSummary at one image."""
    try:
        pixels = read_image(image, strict=True)
    except DataError as error:
        return ImageSummary(image, str(error))
    height, width = pixels.shape[:2]
    grey = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)
    if max(height, width) > _LONGEST:
        scale = _LONGEST / max(height, width)
        grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    small = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    windows, corners = _corners(grey)
    return ImageSummary(image, None, _told(image), (width, height), identity(pixels), small, windows, corners)


def _told(image: Path) -> tuple[str, ...]:
    data = read_file(image)
    if suffix_of(data) not in (".jpg", ".png", ".webp", ".tif"):
        return ()
    try:
        return clean(data).found
    except Damaged as error:  # OpenCV reads on where its structure is broken
        return (f"not looked at: {error}",)


def _corners(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The windows around the sharpest corners: identical pixels have identical corners, wherever they are pasted."""
    height, width = grey.shape
    half = _WINDOW // 2
    empty = np.zeros((0, _WINDOW, _WINDOW), np.uint8), np.zeros((0, 2), np.float32)
    if min(height, width) < 2 * _WINDOW:
        return empty
    found = cv2.goodFeaturesToTrack(grey, _CORNERS, 0.05, 5, blockSize=3)
    if found is None:
        return empty
    places = np.rint(found.reshape(-1, 2)).astype(int)
    x, y = places.T
    inside = (x >= half) & (y >= half) & (x < width - half) & (y < height - half)
    places = places[inside]
    if not len(places):
        return empty
    windows = np.stack([grey[y - half : y + half, x - half : x + half] for x, y in places])
    patterned = _beside_an_edge(windows) > _PATTERN
    return windows[patterned], (places / (width, height)).astype(np.float32)[patterned]


def _beside_an_edge(windows: np.ndarray) -> np.ndarray:
    """Standard deviation (n,) of each window beside what stays the same along its rows, or along its columns.

    The edge of a redacted region, or of a frame, has the same pixels in many images, and tells nothing.
    """
    values = windows.astype(np.float32)
    rests = [values - values.mean(axis=axis, keepdims=True) for axis in (1, 2)]
    return np.minimum(*(rest.std(axis=(1, 2)) for rest in rests))
