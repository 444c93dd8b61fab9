"""Which picture an image file holds, however it is turned, mirrored, named or stored."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from ..support.threads import bar, in_threads
from .images import read_image
from .near import small_copy


def pictures_in(files: Iterable[Path], small: list[np.ndarray] | None = None) -> dict[Path, bytes]:
    """Decode image files, each once and strictly, and return the identity of the picture in each.

    Args:
        files: The files.
        small: Where given, the small copy of each is added (:func:`dptrain.datasets.near.small_copy`).

    Raises:
        DataError: About the first file, in their order, that cannot be read or is damaged.
    """
    files = list(files)
    found: dict[Path, bytes] = {}
    with bar("images read", len(files)) as progress:
        look = _picture_and_copy if small is not None else lambda file: (picture_in(file), None)
        for file, (picture, copy) in zip(files, in_threads(look, files), strict=True):
            found[file] = picture
            if small is not None and copy is not None:
                small.append(copy)
            progress(len(found), len(files))
    return found


def picture_in(file: Path) -> bytes:
    """Return the identity of the picture in a file, decoded as training decodes it.

    Raises:
        DataError: The file cannot be read, or is damaged.
    """
    return identity(read_image(file, strict=True))


def _picture_and_copy(file: Path) -> tuple[bytes, np.ndarray]:
    image = read_image(file, strict=True)
    return identity(image), small_copy(image)


def identity(image: np.ndarray) -> bytes:
    """Return the SHA-256 hash of a picture, 32 bytes: the same for its four turns and for their mirror images.

    So a photo keeps its identity when its EXIF orientation is cut out, changed or applied. Two pictures that differ in
    one value of one pixel differ here. The hash is not keyed: keep it in memory only.

    Args:
        image: Decoded pixels, uint8 of shape (height, width, 3).
    """
    upright = canonical(image)
    height, width = upright.shape[:2]
    found = hashlib.sha256(f"{height}x{width}:".encode())
    found.update(upright.data)
    return found.digest()


def canonical(image: np.ndarray) -> np.ndarray:
    """Return the turn or mirror image of a picture that is wide rather than high, and first in the order of its bytes.

    The views are compared row by row, and as a rule the first row decides.
    """
    height, width = image.shape[:2]
    # What takes the upright view to each of the eight: whether to transpose it, then how OpenCV flips it.
    views = [(turned, flip) for turned in (False, True) for flip in (None, 0, 1, -1)]
    if height != width:
        views = [view for view in views if view[0] == (height > width)]
    start, rows = 0, 1
    while len(views) > 1 and start < min(height, width):
        strips = [_view(image, view)[start : start + rows].tobytes() for view in views]
        first = min(strips)
        views = [view for view, strip in zip(views, strips, strict=True) if strip == first]
        start, rows = start + rows, 2 * rows
    turned, flip = views[0]  # those that are left are equal
    upright = cv2.transpose(image) if turned else image
    return np.ascontiguousarray(upright if flip is None else cv2.flip(upright, flip))


def _view(image: np.ndarray, view: tuple[bool, int | None]) -> np.ndarray:
    """The same as a view, which copies nothing."""
    turned, flip = view
    upright = image.swapaxes(0, 1) if turned else image
    down = slice(None, None, -1 if flip in (0, -1) else None)
    across = slice(None, None, -1 if flip in (1, -1) else None)
    return upright[down, across]
