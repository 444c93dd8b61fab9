"""Boxes for the frames in which a detector missed what it saw in the frames around them.

Everything that is detected is redacted, whatever the tracker makes of it; tracking only adds boxes. An object that is
matched wrongly, or not at all, therefore leads to more pixels that are redacted, never to fewer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from .settings import Box, whole_pixels

_LEAST_OVERLAP = 0.1  # intersection over union at which two boxes may be of one object
_STEADY = 2  # detections after which a miss is one; a single flicker of the detector holds its box and no more
_SAME = 0.7  # of a track's box, under a detection: another box of the same object, of another class perhaps
_MEMORY = 0.5  # of the velocity, a frame
_EDGE = 0.01  # of the picture's side


@dataclass
class _Track:
    box: np.ndarray  # x1, y1, x2, y2 where it was last detected
    velocity: np.ndarray  # of its centre, pixels a frame
    label: str
    confidence: float
    seen: int = 1
    missed: int = 0

    def expected(self) -> np.ndarray:
        """Where the object would be now if it moved on as it did."""
        return self.box + np.tile(self.velocity * self.missed, 2)

    def leaves(self, height: int, width: int) -> bool:
        """Whether it was last detected at an edge of the picture, on its way out."""
        x1, y1, x2, y2 = self.box
        dx, dy = self.velocity
        across, down = _EDGE * width, _EDGE * height
        return bool(
            (x1 <= across and dx < 0)
            or (x2 >= width - across and dx > 0)
            or (y1 <= down and dy < 0)
            or (y2 >= height - down and dy > 0)
        )


class BoxTracker:
    """Follows objects from frame to frame and says where those are that were not detected.

    Args:
        hold: Frames for which an object that is not detected any more is kept.
        height, width: Of the frames.
    """

    def __init__(self, hold: int, height: int, width: int) -> None:
        self._hold, self._height, self._width = hold, height, width
        self._tracks: list[_Track] = []

    def update(self, boxes: Sequence[Box]) -> tuple[list[Box], bool]:
        """Take the detections of the next frame.

        Returns:
            A box for each object that was detected in one of the ``hold`` frames before and is not in this one. It
            covers the place where the object was last seen, the place where its velocity takes it, and all between.
            And whether one of them is a miss: an object that was followed, has not just left the picture, and is not
            where another one is detected.
        """
        found = np.array([box[:4] for box in boxes], np.float64).reshape(-1, 4)
        for track in self._tracks:
            track.missed += 1
        free = set(range(len(boxes)))
        for number, index in _pairs(self._tracks, found):
            self._see(self._tracks[number], found[index], boxes[index])
            free.discard(index)
        new = [_Track(found[i], np.zeros(2), boxes[i].label, boxes[i].confidence) for i in sorted(free)]
        self._tracks = [track for track in self._tracks if track.missed <= self._hold] + new
        missing = [track for track in self._tracks if track.missed]
        missed = any(
            track.seen >= _STEADY
            and not track.leaves(self._height, self._width)
            and not _under(track.expected(), found)
            for track in missing
        )
        return [self._held(track) for track in missing], missed

    def _see(self, track: _Track, box: np.ndarray, detection: Box) -> None:
        moved = (_centre(box) - _centre(track.box)) / track.missed
        track.velocity = moved if track.seen == 1 else _MEMORY * track.velocity + (1 - _MEMORY) * moved
        track.box, track.label, track.confidence = box, detection.label, detection.confidence
        track.seen += 1
        track.missed = 0

    def _held(self, track: _Track) -> Box:
        expected = track.expected()
        low, high = np.minimum(track.box, expected)[:2], np.maximum(track.box, expected)[2:]
        return whole_pixels(
            low[0], low[1], high[0], high[1], self._height, self._width, track.label, track.confidence, "held"
        )


def fill_gaps(
    frames: Sequence[Sequence[Box]], forward: Sequence[list[Box]], count: int, hold: int, height: int, width: int
) -> list[list[Box]]:
    """Return the boxes of the first ``count`` frames: detected, held after, and held before their object was found.

    Args:
        frames: Detections of ``count`` frames, and of the frames after them that are known.
        forward: What :meth:`BoxTracker.update` returned for the first ``count``.
        count, hold, height, width: As there.
    """
    backward = BoxTracker(hold, height, width)
    before = [backward.update(boxes)[0] for boxes in reversed(frames)][::-1]
    return [[*frames[i], *forward[i], *before[i]] for i in range(count)]


def _centre(box: np.ndarray) -> np.ndarray:
    return (box[:2] + box[2:]) / 2


def _under(box: np.ndarray, found: np.ndarray) -> bool:
    """Whether one of the boxes (n, 4) covers most of ``box``."""
    low, high = np.maximum(found[:, :2], box[:2]), np.minimum(found[:, 2:], box[2:])
    return bool((np.clip(high - low, 0, None).prod(1) >= _SAME * (box[2:] - box[:2]).prod()).any())


def _pairs(tracks: Sequence[_Track], found: np.ndarray) -> list[tuple[int, int]]:
    """Tracks and detections that belong together: the assignment of the greatest total overlap (Kuhn 1955)."""
    if not tracks or not len(found):
        return []
    expected = np.array([track.expected() for track in tracks])
    low = np.maximum(expected[:, None, :2], found[None, :, :2])
    high = np.minimum(expected[:, None, 2:], found[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(2)
    areas = (expected[:, 2:] - expected[:, :2]).prod(1), (found[:, 2:] - found[:, :2]).prod(1)
    overlap = shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-9)
    rows, columns = linear_sum_assignment(-overlap)
    return [(int(r), int(c)) for r, c in zip(rows, columns, strict=True) if overlap[r, c] >= _LEAST_OVERLAP]
