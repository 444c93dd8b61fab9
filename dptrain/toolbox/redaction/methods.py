"""Pixels that are taken out of a picture, and what is put in their place.

What ``fill`` and ``inpaint`` write does not depend on what was under the boxes. What ``gaussian`` and ``pixelate``
write depends on it through the mean colours of a few cells, rounded to 8 bits, and through nothing else: two faces with
the same cell means give the same pixels, so no sharpening tells them apart. None of this is differential privacy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from .settings import Box

GREY = 114  # what Ultralytics pads with
LEAST_CELL = 8  # pixels of a cell's longer side; boxes of fewer pixels become one cell
_SMOOTH = 8  # pixels a cell of the small picture on which a blur is made
_INPAINT_SIDE = 384  # pixels of the longer side on which surroundings are continued
_INPAINT_RADIUS = 3


def redact_pixels(image: np.ndarray, boxes: Sequence[Box], method: str, cells: int) -> None:
    """Redact boxes of a picture, in place.

    Args:
        image: uint8 BGR pixels (height, width, 3).
        boxes: What to redact; they may overlap.
        method: Of :data:`dptrain.toolbox.redaction.settings.METHODS`.
        cells: Along the longer side of a box, for ``gaussian`` and ``pixelate``.
    """
    if method == "inpaint":
        _inpaint(image, boxes)
        return
    for box in boxes:
        patch = image[box.y1 : box.y2, box.x1 : box.x2]
        patch[:] = GREY if method == "fill" else _from_cells(patch, cells, smooth=method == "gaussian")


def cell_means(patch: np.ndarray, cells: int) -> np.ndarray:
    """Return all that is kept of a patch: the mean colours of its cells, uint8 (rows, columns, 3).

    The cells grow with the patch: there are at most ``cells`` along its longer side, and as many along the other as
    make them about square.
    """
    height, width = patch.shape[:2]
    cell = max(max(height, width) / cells, LEAST_CELL)
    size = max(int(width / cell), 1), max(int(height / cell), 1)
    return cv2.resize(patch, size, interpolation=cv2.INTER_AREA)


def _from_cells(patch: np.ndarray, cells: int, smooth: bool) -> np.ndarray:
    means = cell_means(patch, cells)
    height, width = patch.shape[:2]
    if not smooth:
        return cv2.resize(means, (width, height), interpolation=cv2.INTER_NEAREST)
    # On a picture of a few pixels a cell: the kernel is as wide as a cell, and cells may be hundreds of pixels.
    rows, columns = means.shape[:2]
    small = cv2.resize(means, (columns * _SMOOTH, rows * _SMOOTH), interpolation=cv2.INTER_LINEAR)
    small = cv2.GaussianBlur(small, (0, 0), _SMOOTH / 2, borderType=cv2.BORDER_REPLICATE)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def _inpaint(image: np.ndarray, boxes: Sequence[Box]) -> None:
    """Continue the surroundings of all boxes at once (Telea 2004), on a smaller copy that holds nothing of them."""
    if not boxes:
        return
    height, width = image.shape[:2]
    mask = np.zeros((height, width), np.uint8)
    for box in boxes:
        mask[box.y1 : box.y2, box.x1 : box.x2] = 255
    image[mask > 0] = GREY
    if mask.all():
        return
    scale = min(_INPAINT_SIDE / max(height, width), 1.0)
    size = max(math.ceil(width * scale), 1), max(math.ceil(height * scale), 1)
    # Averages round a box hold some of the grey above, and are painted over as well.
    holes = (cv2.resize(mask, size, interpolation=cv2.INTER_AREA) > 0).astype(np.uint8)
    if scale < 1:
        holes = cv2.dilate(holes, np.ones((3, 3), np.uint8))
    if holes.all():
        return
    painted = cv2.inpaint(
        cv2.resize(image, size, interpolation=cv2.INTER_AREA), holes, _INPAINT_RADIUS, cv2.INPAINT_TELEA
    )
    painted = cv2.resize(painted, (width, height), interpolation=cv2.INTER_LINEAR)
    for box in boxes:
        image[box.y1 : box.y2, box.x1 : box.x2] = painted[box.y1 : box.y2, box.x1 : box.x2]
