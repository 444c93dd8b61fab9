"""Augmentations that use one image only, so that one image enters one gradient."""

from __future__ import annotations

from dataclasses import dataclass, fields

import cv2
import numpy as np

from ..datasets.images import PADDING, Letterbox
from ..errors import ConfigError

_MIN_SIDE = 2.0  # pixels; a thinner rest of a box is not an object any more (Ultralytics' box_candidates)
_MIN_AREA = 0.1  # of the box before it was cut
_MAX_RATIO = 100.0


@dataclass(frozen=True)
class Augmentation:
    """What is done to one image, each drawn anew for each step; 0 turns a part off.

    The names and ranges are Ultralytics', but ``crop``.

    Attributes:
        fliplr: Chance of a left-right flip, in [0, 1].
        flipud: Chance of an upside-down flip, in [0, 1].
        hsv_h: Hue moves by up to this part of the colour circle's half turn (180 degrees), in [0, 1].
        hsv_s: Saturation is multiplied by 1 plus or minus up to this, in [0, 1].
        hsv_v: Brightness is multiplied by 1 plus or minus up to this, in [0, 1].
        scale: The image is scaled by 1 plus or minus up to this, in [0, 1).
        translate: The image moves by up to this part of the canvas, in [0, 1].
        crop: A window of at least ``1 - crop`` of each side is cut out of the image first, in [0, 1).
    """

    fliplr: float = 0.0
    flipud: float = 0.0
    hsv_h: float = 0.0
    hsv_s: float = 0.0
    hsv_v: float = 0.0
    scale: float = 0.0
    translate: float = 0.0
    crop: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            open_end = field.name in {"scale", "crop"}
            if not (0 <= value < 1 or (value == 1 and not open_end)):
                allowed = "[0, 1)" if open_end else "[0, 1]"
                raise ConfigError(f"augment.{field.name}={value} is not in {allowed}; 0 turns it off")

    @property
    def active(self) -> bool:
        """Whether any part is on."""
        return any(getattr(self, field.name) for field in fields(self))

    def apply(
        self, image: np.ndarray, labels: np.ndarray, imgsz: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Augment one image and letterbox it.

        Args:
            image: uint8 BGR pixels as read, shape (height, width, 3); not changed.
            labels: Class and xywh box in parts of the image, shape (m, 5).
            imgsz: Side of the square canvas in pixels.
            rng: The only source of chance. The number of values taken does not depend on the settings.

        Returns:
            The canvas, shape (imgsz, imgsz, 3), and the labels left on it in parts of the canvas, shape (k, 5). A box
            goes when less than a tenth of it, or a sliver of two pixels, is left.
        """
        u = rng.random(12)
        boxes = labels[:, 1:]
        full = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)  # xyxy, uncut
        kept = full
        if self.crop:
            image, origin, size = self._window(image, u[:4])
            full = (full - np.tile(origin, 2)) / np.tile(size, 2)
            kept = np.clip(full, 0, 1)
        place = Letterbox.fit(image.shape[0], image.shape[1], imgsz)
        canvas = place.resize(image)
        gain, shift = np.array([place.width, place.height]), np.array([place.left, place.top])
        if self.scale or self.translate:
            canvas, gain, shift = self._move(canvas, imgsz, u[4:7])
        else:
            canvas = place.pad(canvas)
        full, kept = (b * np.tile(gain, 2) + np.tile(shift, 2) for b in (full, kept))  # canvas pixels
        if self.crop or self.scale or self.translate:
            kept = np.clip(kept, 0, imgsz)
            stays = _still_objects(full, kept)
            labels, kept = labels[stays], kept[stays]
        if self.hsv_h or self.hsv_s or self.hsv_v:
            canvas = self._colour(canvas, u[7:10])
        centre, size = (kept[:, :2] + kept[:, 2:]) / 2 / imgsz, (kept[:, 2:] - kept[:, :2]) / imgsz
        if u[10] < self.flipud:
            canvas, centre[:, 1] = cv2.flip(canvas, 0), 1 - centre[:, 1]
        if u[11] < self.fliplr:
            canvas, centre[:, 0] = cv2.flip(canvas, 1), 1 - centre[:, 0]
        return canvas, np.concatenate([labels[:, :1], centre, size], 1).astype(np.float32)

    def _window(self, image: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Cut a window out of the image; also its corner and its size, (x, y), in parts of the image."""
        whole = np.array([image.shape[1], image.shape[0]])
        side = np.maximum(np.rint(whole * (1 - self.crop * u[:2])), 1).astype(int)
        corner = np.rint((whole - side) * u[2:]).astype(int)
        window = image[corner[1] : corner[1] + side[1], corner[0] : corner[0] + side[0]]
        return window, corner / whole, side / whole

    def _move(self, resized: np.ndarray, imgsz: int, u: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Scale about the centre and move; also gain and shift, (x, y), from parts of the image to canvas pixels."""
        size = np.array([resized.shape[1], resized.shape[0]])
        factor = 1 + self.scale * (2 * u[0] - 1)
        centre = (0.5 + self.translate * (2 * u[1:] - 1)) * imgsz
        shift = centre - factor * size / 2
        half = (factor - 1) / 2  # OpenCV counts from the middle of the first pixel, boxes from its edge
        matrix = np.array([[factor, 0, shift[0] + half], [0, factor, shift[1] + half]])
        moved = cv2.warpAffine(resized, matrix, (imgsz, imgsz), borderValue=(PADDING,) * 3)
        return moved, factor * size, shift

    def _colour(self, image: np.ndarray, u: np.ndarray) -> np.ndarray:
        """Move hue, saturation and brightness by look-up tables, as Ultralytics does."""
        hue, saturation, brightness = (2 * u - 1) * [self.hsv_h, self.hsv_s, self.hsv_v]
        level = np.arange(256)
        table = np.stack(
            [
                (level + hue * 180) % 180,
                np.clip(level * (1 + saturation), 0, 255),
                np.clip(level * (1 + brightness), 0, 255),
            ],
            -1,
        ).astype(np.uint8)
        changed = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_BGR2HSV), table[None])
        return cv2.cvtColor(changed, cv2.COLOR_HSV2BGR)


def _still_objects(full: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Which boxes, shape (m, 4) xyxy in pixels, are still objects after the cut from ``full`` to ``kept``."""
    (w, h), (fw, fh) = (kept[:, 2:] - kept[:, :2]).T, (full[:, 2:] - full[:, :2]).T
    long, short = np.maximum(w, h), np.minimum(w, h)
    return (short > _MIN_SIDE) & (w * h > _MIN_AREA * fw * fh) & (long < _MAX_RATIO * short)
