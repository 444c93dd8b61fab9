"""What one image adds to the counts from which precision, recall and mAP are estimated.

Of each class: its objects, and its detections by score and by how well they fit. A detection is in one cell: of its
score (:data:`SCORES`), and either false, at every threshold of overlap, or true up to one of :data:`FITS`. So both axes
of a precision-recall curve follow from sums of cells, at each of Ultralytics' ten thresholds.

Everything here is a function of one image's detections and boxes. Bounding and noise are in
:mod:`dptrain.privacy.counts`; what is estimated from noised sums is in :mod:`dptrain.detection.estimates`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

THRESHOLDS = 10  # of overlap: 0.50, 0.55, ..., 0.95
# Lower bounds of the score of each cell, from the highest down; lower scores are not counted. Even steps of the logit.
SCORES = 1.0 / (1.0 + np.exp(-np.linspace(2.0, -4.0, 8)))
FITS = ((1, 3), (4, 6), (7, 8), (9, 10))  # first and last number of thresholds that a detection of the cell passes
# Counts go into the sum times these. A unit's vector is cut to a norm, and false detections of low scores, of which
# there are hundreds, would leave little of it to the rest, while their sum is large and needs no exactness.
FALSE_WEIGHTS = np.geomspace(1.0, 0.03, len(SCORES))
OBJECT_WEIGHT = 0.25
CELLS = len(SCORES) * (1 + len(FITS)) + 1  # of a class; the last has its objects

_FIT_OF = np.zeros(THRESHOLDS + 1, dtype=np.int64)
for _place, (_first, _last) in enumerate(FITS):
    _FIT_OF[_first : _last + 1] = _place + 1


def norm_for(size: int | None, noise_multiplier: float) -> float:
    """Return the norm to which each unit's counts are shortened, from declared numbers alone.

    The noise grows with it. What is lost without it are objects of images that hold many, so that the metrics are those
    of an average image and not of an average object: an error that more images do not make smaller. So the norm grows
    with the images that there are for a given noise, from 1, where all but empty images are cut, to 4.

    Args:
        size: Declared number of units; None gives 1.
        noise_multiplier: Of a release.
    """
    return 1.0 if size is None else min(4.0, max(1.0, math.sqrt(size / noise_multiplier / 250)))


def tally(statistics: dict[str, Any], classes: int) -> np.ndarray:
    """Return the weighted counts of one image.

    Args:
        statistics: Of the image, as Ultralytics' metric takes them: ``tp`` bool (k, 10), ``conf`` (k,), ``pred_cls``
            (k,), ``target_cls`` (m,).
        classes: Number of classes, nc.

    Returns:
        float64 of shape (nc, :data:`CELLS`).
    """
    found = np.zeros((classes, CELLS))
    scores = np.asarray(statistics["conf"], dtype=np.float64)
    cell = (~(scores[:, None] > SCORES)).sum(1)  # NaN is above nothing
    counted = cell < len(SCORES)
    cell = cell[counted]
    fit = _FIT_OF[np.asarray(statistics["tp"], dtype=bool)[counted].sum(1)]
    weight = np.where(fit == 0, FALSE_WEIGHTS[cell], 1.0)
    predicted = np.asarray(statistics["pred_cls"]).astype(np.int64)[counted]
    np.add.at(found, (predicted, cell * (1 + len(FITS)) + fit), weight)
    objects = np.bincount(np.asarray(statistics["target_cls"]).astype(np.int64), minlength=classes)
    found[:, -1] = OBJECT_WEIGHT * objects
    return found
