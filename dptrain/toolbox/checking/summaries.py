"""One look at every image: whether it can be read, what it tells, and a few numbers to compare it by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from os import cpu_count
from pathlib import Path

import numpy as np

from ...datasets.identity import identity
from ...datasets.images import read_image
from ...datasets.near import small_copy
from ...errors import DataError
from ...support.files import read_file
from ..scrubbing.clean import clean, suffix_of
from ..scrubbing.cleaned import Damaged

_AHEAD = 256


@dataclass(frozen=True)
class ImageSummary:
    """What is kept of one image, 1 kB.

    Attributes:
        image: The file.
        error: Why it cannot be read; the rest is then empty.
        told: What its metadata would give away.
        size: Width and height in pixels.
        picture: The picture's identity, however it is turned.
        small: uint8 (SIDE, SIDE), grey.
    """

    image: Path
    error: str | None = None
    told: tuple[str, ...] = ()
    size: tuple[int, int] = (0, 0)
    picture: bytes | None = None
    small: np.ndarray | None = None


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
    return ImageSummary(image, None, _told(image), (width, height), identity(pixels), small_copy(pixels))


def _told(image: Path) -> tuple[str, ...]:
    data = read_file(image)
    if suffix_of(data) not in (".jpg", ".png", ".webp", ".tif"):
        return ()
    try:
        return clean(data).found
    except Damaged as error:  # OpenCV reads on where its structure is broken
        return (f"not looked at: {error}",)
