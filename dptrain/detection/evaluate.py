"""Ultralytics' own detection metrics, computed in memory: nothing is written, plotted or downloaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from ultralytics.engine.validator import BaseValidator
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.metrics import DetMetrics, box_iou
from ultralytics.utils.nms import non_max_suppression
from ultralytics.utils.ops import xywh2xyxy

from ..datasets.images import Letterbox, read_image
from ..errors import DataError, ModelError
from ..gradients.batches import UnitBatch
from ..privacy.sampling import Draw
from .data import DetectionDataset, to_rgb_planes
from .loader import StepLoader

KEYS = ("metrics/precisionB", "metrics/recallB", "metrics/mAP50B", "metrics/mAP50-95B")
CLASS_KEYS = ("precision", "recall", "mAP50", "mAP50-95")
SHOWN = 0.25  # confidence from which Ultralytics shows a box
_IOUS = torch.linspace(0.5, 0.95, 10)


@dataclass(frozen=True)
class Metrics:
    """How well a detector does on one split. **Not noised**: only for data that is declared public.

    Attributes:
        values: Means over the classes that have boxes, by ``KEYS``: Ultralytics' names without the parentheses, which
            MLflow does not take. All in [0, 1]; 0 where the split has no boxes.
        per_class: Class name to ``CLASS_KEYS``, for the classes that have boxes in the split.
        detections: Boxes of a confidence above :data:`SHOWN`, in all images; a box counts once for each such class.
        whole: What Ultralytics' own validation returns, with its curves.
    """

    values: dict[str, float]
    per_class: dict[str, dict[str, float]]
    detections: int = 0
    whole: DetMetrics | None = field(default=None, repr=False, compare=False)


def evaluate(
    model: DetectionModel,
    dataset: DetectionDataset,
    *,
    batch_size: int = 32,
    device: str | torch.device | None = None,
    workers: int = 0,
    conf: float = 0.001,
    iou: float = 0.7,
    max_det: int = 300,
) -> Metrics:
    """Compute what ``YOLO(weights).val(rect=False)`` reports, on the square canvas.

    A model with two heads answers with the one that ``model.end2end`` selects: by default the one-to-many head with
    non-maximum suppression, as stock ``val`` does; ``True`` is stock's ``nms=False``.

    Args:
        model: An Ultralytics detector; left as it was found (modes, device, head settings), its weights untouched.
        dataset: A split without augmentation.
        batch_size: Images at a time; changes nothing but speed and memory.
        device: Where to compute; ``None`` is where the model is.
        workers: Loader processes.
        conf: Predictions at or below this confidence do not count.
        iou: Overlap above which non-maximum suppression drops a box; end-to-end models need none.
        max_det: Most predictions an image; raised to the largest number of boxes in one image, as in Ultralytics.

    Raises:
        ModelError: The model has another number of classes than the dataset.
        DataError: An image cannot be read.
    """
    if dataset.augmentation is not None:
        raise DataError(f"the {dataset.split} split has augmentation switched on; evaluate it without")
    if model.model[-1].nc != dataset.data.num_classes:
        raise ModelError(
            f"the model has {model.model[-1].nc} classes, {dataset.data.file} names {dataset.data.num_classes}; load "
            "it with the dataset's number of classes"
        )
    target = torch.device(device) if device is not None else next(model.parameters()).device
    max_det = max(max_det, dataset.most_boxes)
    metrics = DetMetrics(names=dataset.data.names)
    loader = StepLoader(dataset, batch_size, workers, target)
    steps = loader.steps(iter([Draw(np.arange(len(dataset)), 0)]))
    done = shown = 0
    with _prepared(model, target, max_det):
        for batch in next(steps):
            assert not isinstance(batch, UnitBatch)  # images are served as they are without units
            detections = _detect(model, batch["img"], conf, iou, max_det, multi_label=True)
            boxes = (xywh2xyxy(batch["bboxes"]) * dataset.imgsz).cpu()
            classes, owners = batch["cls"].flatten().cpu(), batch["batch_idx"].cpu()
            for i, detection in enumerate(detections):
                mine = owners == i
                metrics.update_stats(_statistics(detection.cpu(), boxes[mine], classes[mine], str(done + i)))
                shown += int((detection[:, 4] > SHOWN).sum())
            done += len(detections)
        steps.close()
    metrics.process(plot=False)
    per_class = {
        dataset.data.names[int(number)]: dict(zip(CLASS_KEYS, map(float, metrics.class_result(row)), strict=True))
        for row, number in enumerate(metrics.ap_class_index)
    }
    return Metrics(dict(zip(KEYS, map(float, metrics.mean_results()), strict=True)), per_class, shown, metrics)


def predict(
    model: DetectionModel,
    image_paths: Sequence[str | Path],
    imgsz: int,
    conf: float = 0.25,
    *,
    iou: float = 0.7,
    max_det: int = 300,
    batch_size: int = 16,
) -> list[np.ndarray]:
    """Find objects in image files.

    Returns:
        For each image a float32 array of shape (k, 6): x1, y1, x2, y2 in pixels of the original image, confidence,
        class number; most confident first.

    Raises:
        DataError: An image cannot be read.
    """
    device = next(model.parameters()).device
    found: list[np.ndarray] = []
    with _prepared(model, device, max_det):
        for start in range(0, len(image_paths), batch_size):
            images = [read_image(Path(path)) for path in image_paths[start : start + batch_size]]
            places = [Letterbox.fit(image.shape[0], image.shape[1], imgsz) for image in images]
            canvases = [place.pad(place.resize(image)) for place, image in zip(places, images, strict=True)]
            batch = torch.from_numpy(np.stack([to_rgb_planes(canvas) for canvas in canvases])).to(device).float() / 255
            detections = _detect(model, batch, conf, iou, max_det, multi_label=False)
            for image, place, detection in zip(images, places, detections, strict=True):
                rows = detection.cpu().numpy()[:, :6]
                rows[:, :4] = place.to_image(rows[:, :4], image.shape[0], image.shape[1])
                found.append(rows[np.argsort(-rows[:, 4], kind="stable")])
    return found


@contextmanager
def _prepared(model: DetectionModel, device: torch.device, max_det: int) -> Iterator[None]:
    """The model in eval mode on ``device`` without gradients, then exactly as it was."""
    modes = {module: module.training for module in model.modules()}
    head, before = model.model[-1], next(model.parameters()).device
    limit = head.max_det
    try:
        model.to(device).eval()
        head.max_det = max_det
        with torch.no_grad():  # not inference_mode: the head keeps its anchors, and training may meet them again
            yield
    finally:
        head.max_det = limit
        for module, mode in modes.items():
            module.training = mode
        model.to(before)


def _detect(
    model: DetectionModel, images: torch.Tensor, conf: float, iou: float, max_det: int, multi_label: bool
) -> list[torch.Tensor]:
    """Per image (k, 6): xyxy in canvas pixels, confidence, class."""
    return non_max_suppression(
        model(images),
        conf,
        iou,
        multi_label=multi_label,
        max_det=max_det,
        end2end=getattr(model, "end2end", False),
        max_time_img=float("inf"),  # Ultralytics' limit would drop the rest of a batch on a slow machine
    )


def _statistics(detection: torch.Tensor, boxes: torch.Tensor, classes: torch.Tensor, name: str) -> dict:
    """One image's part of Ultralytics' metric, from detections (k, 6) and boxes (m, 4) in canvas pixels."""
    hits = torch.zeros(len(detection), len(_IOUS), dtype=torch.bool)
    if len(detection) and len(boxes):
        overlap = box_iou(boxes, detection[:, :4])
        # The method needs nothing of a validator but the thresholds; to build one would create folders.
        thresholds: BaseValidator = SimpleNamespace(iouv=_IOUS)  # type: ignore[assignment]
        hits = BaseValidator.match_predictions(thresholds, detection[:, 5], classes, overlap)
    return {
        "tp": hits.numpy(),
        "conf": detection[:, 4].numpy(),
        "pred_cls": detection[:, 5].numpy(),
        "target_cls": classes.numpy(),
        "target_img": np.unique(classes.numpy()),
        "im_name": name,
    }
