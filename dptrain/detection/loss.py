"""The detection losses of Ultralytics as one loss an image, each normalised by its own image only.

Ultralytics divides the loss of a batch by the summed target scores of the *whole* batch: giving one image more boxes
scales the gradients of all the others, and no clipping afterwards repairs that. Here image i is divided by
``max(1, sum of its own target scores)``, so that its loss is a function of image i alone. On a batch of one the two
are the same number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import IterableSimpleNamespace
from ultralytics.utils.loss import v8DetectionLoss
from ultralytics.utils.metrics import bbox_iou
from ultralytics.utils.tal import bbox2dist, make_anchors

Batch = Mapping[str, Any]

# Where YOLO26 starts and ends the weight of its one-to-many head (ultralytics.utils.loss.E2ELoss).
ONE2MANY_START, ONE2MANY_END = 0.8, 0.1


def one2many_weight(fraction: float) -> float:
    """Return the weight of the one-to-many head when ``fraction`` of the planned steps are done; depends on no data."""
    return ONE2MANY_START + (ONE2MANY_END - ONE2MANY_START) * min(max(fraction, 0.0), 1.0)


class _HeadLoss(v8DetectionLoss):
    """The loss of one head; Ultralytics' target padding, box decoding and assigner, with our own reductions."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Out of memory, the assigner goes on image by image, and would first print the largest number of boxes.
        self.assigner._oom_warned = True

    def per_image(self, preds: Mapping[str, Any], batch: Batch) -> Tensor:
        """Return the loss of every image, shape (n,)."""
        distances = preds["boxes"].permute(0, 2, 1).contiguous()
        scores = preds["scores"].permute(0, 2, 1).contiguous()
        count, dtype, device = len(scores), scores.dtype, scores.device
        anchors, strides = make_anchors(preds["feats"], self.stride, 0.5)
        height, width = (float(side * self.stride[0]) for side in preds["feats"][0].shape[2:])

        targets = torch.cat((batch["batch_idx"].view(-1, 1), batch["cls"].view(-1, 1), batch["bboxes"]), 1)
        scale = torch.tensor([width, height, width, height], device=device, dtype=dtype)
        targets = self.preprocess(targets.to(device), count, scale_tensor=scale)
        labels, boxes = targets.split((1, 4), 2)
        present = boxes.sum(2, keepdim=True).gt_(0.0)
        decoded = self.bbox_decode(anchors, distances)
        _, target_boxes, target_scores, foreground, _ = self.assigner(
            scores.detach().sigmoid(),
            (decoded.detach() * strides).type(boxes.dtype),
            anchors * strides,
            labels,
            boxes,
            present,
        )
        anchor_weights = target_scores.sum(-1)
        normaliser = anchor_weights.sum(1).clamp(min=1)  # this image's own, never the batch's
        class_loss = F.binary_cross_entropy_with_logits(scores, target_scores.to(dtype), reduction="none").sum((1, 2))

        image, anchor = foreground.nonzero(as_tuple=True)
        weight = anchor_weights[image, anchor]
        target_boxes = target_boxes[image, anchor] / strides[anchor]
        iou = bbox_iou(decoded[image, anchor], target_boxes, xywh=False, CIoU=True).squeeze(-1)
        distance_loss = self._distance_loss(distances[image, anchor], target_boxes, anchors[anchor], strides[anchor],
                                            width, height)  # fmt: skip

        def by_image(values: Tensor) -> Tensor:
            return torch.zeros(count, dtype=values.dtype, device=device).index_add(0, image, values)

        total = (
            self.hyp.box * by_image((1.0 - iou) * weight)
            + self.hyp.cls * class_loss
            + self.hyp.dfl * by_image(distance_loss * weight)
        )
        return total / normaliser

    def _distance_loss(
        self, distances: Tensor, target_boxes: Tensor, anchors: Tensor, strides: Tensor, width: float, height: float
    ) -> Tensor:
        """Return the DFL loss, or the L1 loss of a model without DFL, of every foreground anchor, shape (k,)."""
        if self.use_dfl:
            target = bbox2dist(anchors, target_boxes, self.reg_max - 1)
            return self.bbox_loss.dfl_loss(distances.reshape(-1, self.reg_max), target).squeeze(-1)
        sides = strides.new_tensor([width, height, width, height])
        target = bbox2dist(anchors, target_boxes) * strides / sides
        return (distances * strides / sides - target).abs().mean(-1)


class PerImageLoss:
    """The training loss of a detector as a vector of one loss an image.

    Guarantee: entry i depends on image i and its boxes only. Shapes: ``batch["img"]`` (n, 3, h, w) float in [0, 1],
    ``batch_idx`` (m,), ``cls`` (m, 1), ``bboxes`` (m, 4) as centre, width and height in [0, 1]; result (n,).

    Args:
        one2many: Weight of the one-to-many head of an end-to-end model; the one-to-one head has the rest. Set it
            from :func:`one2many_weight` as training goes on. Models with one head have no use for it.
    """

    def __init__(self, one2many: float = ONE2MANY_START) -> None:
        self.one2many = one2many

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        images = batch["img"]
        if len(images) == 0:
            return images.new_zeros(0)
        preds = model(images)
        preds = preds[1] if isinstance(preds, tuple) else preds
        if "one2many" not in preds:
            return _head_loss(model, 10).per_image(preds, batch)
        many = _head_loss(model, 10).per_image(preds["one2many"], batch)
        one = _head_loss(model, 7, 1).per_image(preds["one2one"], batch)
        return many * self.one2many + one * max(1.0 - self.one2many, 0.0)


def _head_loss(model: nn.Module, topk: int, topk2: int | None = None) -> _HeadLoss:
    # Ultralytics wants its hyperparameters as attributes; DetectionModel keeps them as a dict.
    holder = _Holder(model)
    return _HeadLoss(holder, tal_topk=topk, tal_topk2=topk2)


class _Holder:
    """What ``v8DetectionLoss.__init__`` reads of a model."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.model
        arguments = getattr(model, "args", {})
        arguments = dict(arguments) if isinstance(arguments, Mapping) else dict(vars(arguments))
        gains = {"box": 7.5, "cls": 0.5, "dfl": 1.5}
        self.args = IterableSimpleNamespace(**{key: arguments.get(key, value) for key, value in gains.items()})
        self.parameters = model.parameters
        self.class_weights = None  # weights from label counts would tell them


def per_image_losses(model: DetectionModel, batch: Batch) -> Tensor:
    """Return the loss of every image, shape (n,), as a fresh Ultralytics criterion would weigh the heads.

    See :class:`PerImageLoss` for shapes and the guarantee.
    """
    return PerImageLoss()(model, batch)
