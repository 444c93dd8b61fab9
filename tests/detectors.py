"""Detectors, batches and reference gradients for the tests, from Ultralytics and torch alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.loss import E2ELoss, v8DetectionLoss

FAMILIES = ("yolov8n", "yolo11n", "yolo26n")


def stock_detector(name: str, names: Sequence[str], seed: int = 0) -> DetectionModel:
    """Return Ultralytics' own model, with batch statistics that are not those of a fresh layer."""
    torch.manual_seed(seed)
    model = DetectionModel(f"{name}.yaml", nc=len(names), verbose=False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.1, 0.4)
            with torch.no_grad():
                module.weight.uniform_(0.8, 1.2)
                module.bias.normal_(0, 0.1)
    model.names = dict(enumerate(names))
    model.args = get_cfg()
    return model


def write_checkpoint(model: nn.Module, file: Path) -> Path:
    """Write a checkpoint as Ultralytics' trainer does: half precision, under "ema"."""
    own = copy.deepcopy(model).half()
    own.args = {"task": "detect"}
    torch.save({"ema": own, "model": None, "train_args": {"task": "detect"}}, file)
    return file


def random_batch(
    boxes: Sequence[int], height: int = 64, width: int | None = None, classes: int = 3, seed: int = 0
) -> dict[str, Tensor]:
    """Return a batch of noise images, with ``boxes[i]`` boxes on image i; some are small, some overlap."""
    g = torch.Generator().manual_seed(seed)
    n, m = len(boxes), sum(boxes)
    size = 0.05 + 0.6 * torch.rand(m, 2, generator=g) ** 2
    centre = size / 2 + (1 - size) * torch.rand(m, 2, generator=g)
    return {
        "img": torch.rand(n, 3, height, width or height, generator=g),
        "batch_idx": torch.repeat_interleave(torch.arange(n), torch.tensor(boxes, dtype=torch.long)).float(),
        "cls": torch.randint(0, classes, (m, 1), generator=g).float(),
        "bboxes": torch.cat([centre, size], 1),
    }


def one_image(batch: dict[str, Tensor], index: int) -> dict[str, Tensor]:
    """Return image ``index`` and its boxes as a batch of one."""
    own = batch["batch_idx"] == index
    return {
        "img": batch["img"][index : index + 1],
        "batch_idx": torch.zeros(int(own.sum())),
        "cls": batch["cls"][own],
        "bboxes": batch["bboxes"][own],
    }


def ultralytics_loss(model: Any, batch: dict[str, Tensor], one2many: float | None = None) -> Tensor:
    """Return the loss of Ultralytics' own criterion, a scalar, in the model's mode."""
    end_to_end = getattr(model.model[-1], "one2one_cv2", None) is not None
    criterion: Any = E2ELoss(model) if end_to_end else v8DetectionLoss(model)
    for head in (criterion.one2many, criterion.one2one) if end_to_end else (criterion,):
        head.preprocess = _in_its_precision(head.preprocess)
    if one2many is not None:
        criterion.o2m, criterion.o2o = one2many, 1.0 - one2many
    return criterion(model(batch["img"]), batch)[0].sum()


def _in_its_precision(preprocess: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Ultralytics pads the boxes in single precision, and a model in double then computes its targets in that."""

    def wrapped(targets: Tensor, count: int, scale_tensor: Tensor) -> Tensor:
        padded = preprocess(targets, count, scale_tensor=scale_tensor)
        return padded.to(torch.promote_types(padded.dtype, scale_tensor.dtype))

    return wrapped


def ultralytics_gradients(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return ``{parameter name: (n, *shape)}``: Ultralytics' criterion and plain autograd, one image at a time."""
    own = copy.deepcopy(model)
    parameters = {k: p for k, p in own.named_parameters() if p.requires_grad}
    rows: list[tuple[Tensor, ...]] = []
    for index in range(len(batch["img"])):
        loss = ultralytics_loss(own, one_image(batch, index))
        # Older releases leave the box branch out of the graph of an image without objects: its gradient is zero.
        rows.append(torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True))
    return {
        name: torch.stack([row[i] for row in rows]) if rows else p.new_zeros((0, *p.shape))
        for i, (name, p) in enumerate(parameters.items())
    }
