"""Precision, recall and mAP from noised counts. All of it is post-processing: it costs no privacy.

The counts are those of :mod:`dptrain.detection.tallies`, summed over images, each shortened to a norm. Where that is
small against what an image holds, every image has about the same weight, and the estimates are of what Ultralytics
would report if it weighed images and not objects.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..statement.results import NOISED
from .tallies import FALSE_WEIGHTS, FITS, OBJECT_WEIGHT, SCORES, THRESHOLDS

NAMES = ("precision", "recall", "F1", "mAP50", "mAP50-95")
NOISED_KEYS = tuple(f"{NOISED}{name}B" for name in NAMES)  # in tables and in MLflow; those of exact counts have others
SD_KEYS = tuple(f"{key}_sd" for key in NOISED_KEYS)
_STANDS_OUT = 2.0  # standard deviations of the noise that the objects of a class must be above 0
_REDRAWS = 40
_TINY = 1e-9


@dataclass(frozen=True)
class Estimates:
    """What noised counts say of a detector.

    Attributes:
        values: By :data:`NAMES`, all in [0, 1]. ``mAP50`` and ``mAP50-95`` are means over classes, as Ultralytics'.
            ``precision``, ``recall`` and ``F1`` are of all classes together, at the score where that F1 is highest.
        sd: By the same names, how far the noise moves each: a standard deviation, found by adding such noise anew.
        classes: Over how many classes the means are: those whose objects stand out from the noise.
    """

    values: dict[str, float]
    sd: dict[str, float]
    classes: int

    def row(self) -> dict[str, float]:
        """Return values and standard deviations by the names of tables and of MLflow."""
        return {
            **dict(zip(NOISED_KEYS, self.values.values(), strict=True)),
            **dict(zip(SD_KEYS, self.sd.values(), strict=True)),
        }


def estimate(noised: np.ndarray, noise: float) -> Estimates:
    """Return what noised counts say.

    Args:
        noised: Sum of the tallies of images, each shortened to a norm, with noise: (nc, ``tallies.CELLS``).
        noise: Standard deviation of the noise on every entry.
    """
    values, classes = _values(noised, noise)
    rng = np.random.default_rng(0)  # protects nothing: what it is added to is released
    again = [_values(noised + rng.normal(0.0, noise, noised.shape), noise)[0] for _ in range(_REDRAWS if noise else 0)]
    spread = np.std(again, axis=0) if again else np.zeros(len(NAMES))
    return Estimates(dict(zip(NAMES, values, strict=True)), dict(zip(NAMES, map(float, spread), strict=True)), classes)


def _values(noised: np.ndarray, noise: float) -> tuple[list[float], int]:
    """The estimates by ``NAMES``, and the number of classes in the means."""
    objects = noised[:, -1] / OBJECT_WEIGHT
    cells = noised[:, :-1].reshape(len(noised), len(SCORES), 1 + len(FITS))
    false, true = cells[:, :, 0] / FALSE_WEIGHTS, cells[:, :, 1:]
    seen = objects > _STANDS_OUT * noise / OBJECT_WEIGHT
    if not seen.any():
        seen = objects > 0
    precisions = [_average_precisions(false[i], true[i], float(objects[i])) for i in np.flatnonzero(seen)]
    means = np.mean(precisions, axis=0) if precisions else np.zeros(THRESHOLDS)
    curve = _curve(false.sum(0), true.sum(0), float(objects.sum()), 0)
    return [*_best_f1(*curve), float(means[0]), float(means.mean())], int(seen.sum())


def _average_precisions(false: np.ndarray, true: np.ndarray, objects: float) -> list[float]:
    """Average precision of one class at every threshold: the area below its precision-recall curve."""
    found = []
    for threshold in range(THRESHOLDS):
        precision, recall = _curve(false, true, objects, threshold)
        gained = np.diff(recall, prepend=0.0)
        falling = -_rising(-precision, np.maximum(gained, _TINY))
        before = np.concatenate([falling[:1], falling[:-1]])
        found.append(float(min(1.0, (gained * (falling + before)).sum() / 2)))
    return found


def _curve(false: np.ndarray, true: np.ndarray, objects: float, threshold: int) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall of the detections above each bound of the score, at one threshold of overlap.

    Counts that grow with more detections are made to: the sums are put right, not the cells, whose noise would not
    cancel any more once negative ones are cut off.
    """
    if objects <= 0:
        return np.zeros(len(SCORES)), np.zeros(len(SCORES))
    # Within a cell as many are taken to pass one threshold more as the next.
    passing = np.array([min(1.0, max(0.0, (last - threshold) / (last - first + 1))) for first, last in FITS])
    right = np.clip(_rising(np.cumsum(true @ passing)), 0.0, objects)
    all_found = np.maximum(_rising(np.cumsum(false + true.sum(1))), right)
    precision = np.where(all_found > _TINY, right / np.maximum(all_found, _TINY), 0.0)
    return precision, right / objects


def _best_f1(precision: np.ndarray, recall: np.ndarray) -> list[float]:
    """Precision, recall and F1 where F1 is highest."""
    f1 = 2 * precision * recall / np.maximum(precision + recall, _TINY)
    best = int(np.argmax(f1))
    return [float(precision[best]), float(recall[best]), float(f1[best])]


def _rising(values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """The nearest sequence that never falls, by weighted least squares (pool adjacent violators)."""
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(values, np.ones(len(values)) if weights is None else weights, strict=True):
        block = (float(value), float(weight), 1)
        while blocks and blocks[-1][0] > block[0]:
            mean, total, count = blocks.pop()
            both = total + block[1]
            block = ((mean * total + block[0] * block[1]) / both, both, count + block[2])
        blocks.append(block)
    return np.concatenate([np.full(count, mean) for mean, _, count in blocks])


def of_use(estimates: Estimates, most: float = 0.05) -> bool:
    """Whether the noise moves mAP50 by little enough to be read; what is shown says so where it does not."""
    return math.isfinite(estimates.sd["mAP50"]) and estimates.sd["mAP50"] <= most
