"""The confidence threshold that covers a wanted share of labelled boxes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..datasets.images import read_image
from ..datasets.labels import label_path, read_labels
from ..datasets.sources import load_data
from ..errors import ConfigError, DataError
from .settings import grown, whole_pixels

if TYPE_CHECKING:
    from ..detection.finding import Finder

LEAST = 0.001  # confidence that is looked at
_STEP = 1e-4  # to which confidences are rounded
COVERED = 0.95  # share of a labelled box's pixels that must be redacted for it to count as covered


def choose_confidence(
    finder: Finder, data: str | Path, recall: float, margin: float, batch_size: int
) -> dict[str, Any]:
    """Set ``finder.conf`` to the greatest threshold that covers a share of the labelled boxes.

    A box is covered where :data:`COVERED` of its pixels lie under grown detections, of any class that is looked for.
    What is reached on these pictures is no promise for others.

    Args:
        finder: Its ``conf`` is set.
        data: A data.yaml; the boxes of its val split whose class the finder looks for count.
        recall: Wanted share, above 0 and at most 1.
        margin: As in the redaction.
        batch_size: Changes speed and memory only.

    Returns:
        What was asked and reached, for the report.

    Raises:
        DataError: The val split has no such boxes.
        ConfigError: The share is not reached at any threshold.
    """
    config = load_data(data)
    wanted = {number for number, name in config.names.items() if name in finder.names.values()}
    finder.conf = LEAST
    scores: list[float] = []
    for image in config.files("val"):
        rows = read_labels(label_path(image), config.num_classes)
        boxes = [] if rows is None else [row for row in rows if int(row[0]) in wanted]
        if boxes:
            scores += _scores(finder, read_image(image), boxes, margin)
    if not scores:
        raise DataError(f"{data}: no box of {', '.join(sorted(finder.names.values())[:20])} in its val split")
    scores.sort(reverse=True)
    score = scores[math.ceil(recall * len(scores)) - 1]
    if score <= LEAST:
        reached = sum(value > LEAST for value in scores) / len(scores)
        raise ConfigError(
            f"recall={recall:g} is not reached on {data}: {reached:.3f} of {len(scores)} boxes are covered at "
            f"confidence {LEAST}; use better weights, a larger imgsz or margin, or a smaller recall"
        )
    finder.conf = max(score - _STEP, LEAST)  # detections count above it
    return {
        "data": str(data),
        "asked": recall,
        "reached": sum(value > finder.conf for value in scores) / len(scores),
        "boxes": len(scores),
        "conf": finder.conf,
    }


def _scores(finder: Finder, image: np.ndarray, boxes: list[np.ndarray], margin: float) -> list[float]:
    """For each labelled box the greatest threshold at which it is covered; 0 where it never is."""
    height, width = image.shape[:2]
    best = np.zeros((height, width), np.float32)  # confidence of the most confident detection over each pixel
    found = grown(finder.find([finder.prepare(image)])[0], margin, height, width, finder.names)
    for box in reversed(found):
        best[box.y1 : box.y2, box.x1 : box.x2] = box.confidence
    scores = []
    for _, x, y, w, h in boxes:
        place = whole_pixels(
            (x - w / 2) * width,
            (y - h / 2) * height,
            (x + w / 2) * width,
            (y + h / 2) * height,
            height,
            width,
            "",
            0,
            "",
        )
        pixels = np.sort(best[place.y1 : place.y2, place.x1 : place.x2], axis=None)
        scores.append(float(pixels[math.floor((1 - COVERED) * pixels.size)]))
    return scores
