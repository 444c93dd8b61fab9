"""Evaluation on private images: counts of bounded contributions, noised once, and what is estimated from them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.ops import xywh2xyxy

from ..errors import ModelError
from ..gradients.batches import UnitBatch
from ..privacy import counts
from ..privacy.sampling import Draw
from ..privacy.streams import NoiseStream
from ..privacy.units import UnitExamples
from .data import DetectionDataset
from .estimates import Estimates, estimate
from .evaluate import _detect, _prepared, _statistics
from .loader import StepLoader
from .tallies import CELLS, norm_for, tally

# As Ultralytics' own validation has them. The last is a constant here: it raises it to the most boxes of an image.
_CONFIDENCE, _OVERLAP, _MOST_DETECTIONS = 0.001, 0.7, 300


def evaluate_noised(
    model: DetectionModel,
    dataset: DetectionDataset,
    units: UnitExamples,
    *,
    noise_multiplier: float,
    stream: NoiseStream,
    size: int | None = None,
    device: str | torch.device | None = None,
) -> Estimates:
    """Evaluate a detector on private images, and release noised counts and what follows from them alone.

    Formal guarantee: one Gaussian mechanism of ``noise_multiplier`` for adding or removing one unit of the dataset,
    with all its images and boxes, whatever they are (:func:`dptrain.privacy.counts.release`).

    Args:
        model: An Ultralytics detector, made without these images; left as it was found.
        dataset: A split without augmentation.
        units: Which images are of which unit; one more unit changes none of the others.
        noise_multiplier: Standard deviation of the noise, over the most that a unit adds.
        stream: Where the noise comes from.
        size: Declared number of units, by which the most that a unit adds is chosen; never counted.
        device: Where to compute; ``None`` is where the model is.

    Raises:
        ModelError: The model has another number of classes than the dataset.
        DataError: An image cannot be read; nothing is released.
    """
    classes = dataset.data.num_classes
    if model.model[-1].nc != classes:
        raise ModelError(
            f"the model has {model.model[-1].nc} classes, {dataset.data.file} names {classes}; load it with the "
            "dataset's number of classes"
        )
    target = torch.device(device) if device is not None else next(model.parameters()).device
    norm = norm_for(size, noise_multiplier)
    total = bounded_sum(model, dataset, units, target, norm)
    return estimate(norm * counts.release(total, noise_multiplier, stream), norm * noise_multiplier)


def bounded_sum(
    model: DetectionModel, dataset: DetectionDataset, units: UnitExamples, device: torch.device, norm: float = 1.0
) -> Tensor:
    """Return the sum over units of their tallies, each of norm ``norm`` at most. **Not noised.**

    int64 of shape (nc, ``CELLS``), in parts of ``norm / exact.SENSITIVITY``.

    Images go through the model one at a time, in eval mode: in a batch, rounding would let one image change what is
    found in another. The tallies of a unit's images are added first, and bounded as one.
    """
    classes = dataset.data.num_classes
    total = torch.zeros((classes, CELLS), dtype=torch.int64)
    loader = StepLoader(dataset, 1, 0, device)
    with _prepared(model, device, _MOST_DETECTIONS):
        for unit in range(len(units)):
            of_unit = np.zeros((classes, CELLS))
            steps = loader.steps(iter([Draw(units.examples(unit), 0)]))
            for batch in next(steps):
                assert not isinstance(batch, UnitBatch)  # images are served as they are without units
                found = _detect(model, batch["img"], _CONFIDENCE, _OVERLAP, _MOST_DETECTIONS, multi_label=True)[0]
                boxes = (xywh2xyxy(batch["bboxes"]) * dataset.imgsz).cpu()
                of_unit += tally(_statistics(found.cpu(), boxes, batch["cls"].flatten().cpu(), ""), classes)
            steps.close()
            total += counts.bounded(of_unit / norm)
    return total
