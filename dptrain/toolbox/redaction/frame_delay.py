"""The frames between the model and the writer, kept back until it is known what is found after them."""

from __future__ import annotations

import math
from collections.abc import Callable

from .settings import Box, RedactionSettings
from .tracking import BoxTracker, fill_gaps
from .video import Frame


class FrameDelay:
    """Keeps frames back until it is known what is found in the ``hold`` frames after them; then emits them in order."""

    def __init__(self, settings: RedactionSettings, emit: Callable[[Frame, list[Box]], None]) -> None:
        self._settings, self._emit = settings, emit
        self._frames: list[Frame] = []
        self._found: list[list[Box]] = []
        self._held: list[list[Box]] = []
        self._tracker: BoxTracker | None = None
        self.taken = 0

    def add(self, frame: Frame, boxes: list[Box]) -> None:
        """Take the next frame with what was detected in it."""
        height, width = frame.image.shape[:2]
        if self._tracker is None:
            self._tracker = BoxTracker(self._settings.hold, height, width)
        held, missed = self._tracker.update(boxes)
        if missed and self._settings.on_miss == "blur-all":
            held.append(Box(0, 0, width, height, "", math.nan, "frame"))
        self._frames.append(frame)
        self._found.append(boxes)
        self._held.append(held)
        self.taken += 1
        hold = self._settings.hold
        if len(self._frames) >= 2 * hold:
            self._release(max(hold, 1))

    def close(self) -> None:
        """Let the last frames go."""
        if self._frames:
            self._release(len(self._frames))

    def _release(self, count: int) -> None:
        height, width = self._frames[0].image.shape[:2]
        boxes = fill_gaps(self._found, self._held, count, self._settings.hold, height, width)
        for frame, found in zip(self._frames[:count], boxes, strict=True):
            self._emit(frame, found)
        del self._frames[:count], self._found[:count], self._held[:count]
