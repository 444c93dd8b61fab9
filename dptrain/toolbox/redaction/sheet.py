"""A contact sheet: small pictures of what was written, the doubtful ones first, to be looked at by a person."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from .images import write_image
from .settings import Box

SIDE, CAPTION, COLUMNS, MOST = 240, 22, 6, 48
_COLOURS = {"detected": (80, 200, 80), "held": (40, 160, 255), "region": (230, 160, 60), "frame": (60, 60, 230)}
_EVERY = 25  # frames of a video of which one may be shown


class ContactSheet:
    """Keeps the :data:`MOST` most doubtful of the pictures that it is shown, after redaction.

    Doubtful are those in which nothing was found, then those whose least confident box is the least confident.

    Args:
        searched: Whether a model looked for anything; else there are regions only, and no doubt about them.
    """

    def __init__(self, searched: bool = True) -> None:
        self._searched = searched
        self._kept: list[tuple[float, int, str, np.ndarray]] = []
        self._number = 0

    def wants(self, frame: int) -> bool:
        """Whether the picture of a video at this number may be shown."""
        return frame % _EVERY == 0

    def add(self, name: str, image: np.ndarray, boxes: Sequence[Box]) -> None:
        """Show a redacted picture with the outlines of its boxes."""
        found = [box.confidence for box in boxes if box.origin in ("detected", "held")]
        doubt = 1 - min(found) if found else 2.0
        self._number += 1
        if len(self._kept) == MOST and self._kept[0][0] >= doubt:
            return
        doubtful = f"{min(found):.2f} " if found else "none " if self._searched else ""
        entry = (doubt, -self._number, f"{doubtful}{name}", _tile(image, boxes))
        if len(self._kept) < MOST:
            heapq.heappush(self._kept, entry)
        else:
            heapq.heapreplace(self._kept, entry)

    def write(self, file: Path) -> bool:
        """Write the sheet, if there is anything on it."""
        if not self._kept:
            return False
        tiles = sorted(self._kept, key=lambda entry: entry[:2], reverse=True)
        columns = min(COLUMNS, len(tiles))
        rows = -(-len(tiles) // columns)
        sheet = np.full((rows * (SIDE + CAPTION), columns * SIDE, 3), 255, np.uint8)
        for place, (_, _, caption, tile) in enumerate(tiles):
            top, left = place // columns * (SIDE + CAPTION), place % columns * SIDE
            height, width = tile.shape[:2]
            sheet[top : top + height, left : left + width] = tile
            text = caption if len(caption) <= 34 else f"{caption[:14]}..{caption[-18:]}"
            printable = text.encode("ascii", "replace").decode()
            cv2.putText(
                sheet, printable, (left + 4, top + SIDE + 15), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA
            )
        write_image(file, sheet)
        return True


def _tile(image: np.ndarray, boxes: Sequence[Box]) -> np.ndarray:
    """The picture at most ``SIDE`` - 4 pixels wide and high, with outlines in the colours of :data:`_COLOURS`."""
    height, width = image.shape[:2]
    scale = (SIDE - 4) / max(height, width)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    tile = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
    for box in boxes:
        x1, y1, x2, y2 = (round(value * scale) for value in box[:4])
        cv2.rectangle(tile, (x1, y1), (x2 - 1, y2 - 1), _COLOURS[box.origin], 1)
    return tile
