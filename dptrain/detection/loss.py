"""The detection losses of Ultralytics as one loss an image, each normalised by its own image only.

Ultralytics divides the loss of a batch by the summed target scores of the *whole* batch: giving one image more boxes
scales the gradients of all the others, and no clipping afterwards repairs that. Here image i is divided by
``max(1, sum of its own target scores)``, or by a public constant, so that its loss is a function of image i alone. On
a batch of one the first is Ultralytics' own number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.loss import v8DetectionLoss
from ultralytics.utils.metrics import bbox_iou
from ultralytics.utils.tal import TaskAlignedAssigner, bbox2dist, dist2bbox, make_anchors

from ..gradients.arithmetic import blank_of, everywhere_alike

Batch = Mapping[str, Any]

# Where YOLO26 starts and ends the weight of its one-to-many head (ultralytics.utils.loss.E2ELoss).
ONE2MANY_START, ONE2MANY_END = 0.8, 0.1


def one2many_weight(fraction: float) -> float:
    """Return the weight of the one-to-many head when ``fraction`` of the planned steps are done; depends on no data."""
    return ONE2MANY_START + (ONE2MANY_END - ONE2MANY_START) * min(max(fraction, 0.0), 1.0)


@dataclass(frozen=True)
class LossSettings:
    """What the loss is made of; the defaults are Ultralytics'. None of it is read from the data.

    Attributes:
        box, cls, dfl: Gains of the three parts; ``dfl`` is that of the L1 distance in models without DFL.
        normaliser: What an image's loss is divided by: ``image``, at least 1 and at most its own summed target
            scores; or ``constant``. Clipping undoes either for an image whose gradient is clipped.
        constant: That public constant.
        focal_gamma: Weighs the class loss at every place by ``|target - score| ** gamma`` (Li et al. 2020, equation
            3; for targets of 0 and 1 that is the focal loss of Lin et al. 2017): 0, or 1 and more, since between the
            two the gradient has no bound where a score is right.
    """

    box: float = 7.5
    cls: float = 0.5
    dfl: float = 1.5
    normaliser: str = "image"
    constant: float = 10.0
    focal_gamma: float = 0.0


class _Assigner(TaskAlignedAssigner):
    """Ultralytics' assigner, in which what it decides by is rounded alike wherever in the batch an image lies."""

    def get_box_metrics(
        self, pd_scores: Tensor, pd_bboxes: Tensor, gt_labels: Tensor, gt_bboxes: Tensor, mask_gt: Tensor, **_: Any
    ) -> tuple[Tensor, Tensor]:
        """Return how well every box and anchor fit, and their overlap, both (n, boxes, anchors)."""
        image, box, anchor = mask_gt.bool().nonzero(as_tuple=True)
        scores = pd_scores[image, anchor, gt_labels[image, box, 0].long()]
        own, predicted = gt_bboxes[image, box], pd_bboxes[image, anchor]
        # The pairs of an image lie where those of the images before it end.
        padded = F.pad(torch.cat((own, predicted, scores.unsqueeze(1)), 1), (0, 0, 0, blank_of(own, len(own))))
        iou = bbox_iou(padded[:, :4], padded[:, 4:8], xywh=False, CIoU=True).squeeze(-1).clamp_(0)
        values = padded[:, 8].contiguous().pow(self.alpha) * iou.pow(self.beta)
        overlaps, metrics = (t.new_zeros(mask_gt.shape) for t in (iou, values))
        overlaps[image, box, anchor] = iou[: len(own)]
        metrics[image, box, anchor] = values[: len(own)]
        return metrics, overlaps


class _HeadLoss(v8DetectionLoss):
    """The loss of one head; Ultralytics' target padding, box decoding and assigner, with our own reductions."""

    def __init__(self, settings: LossSettings, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.settings = settings
        self.assigner.__class__ = _Assigner
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
        targets = targets.to(torch.promote_types(targets.dtype, dtype))  # of a model in double, all in double
        labels, boxes = targets.split((1, 4), 2)
        present = boxes.sum(2, keepdim=True).gt_(0.0)
        decoded = self.bbox_decode(anchors, distances)
        _, target_boxes, target_scores, foreground, _ = self.assigner(
            everywhere_alike(torch.sigmoid, scores.detach()),
            (decoded.detach() * strides).type(boxes.dtype),
            anchors * strides,
            labels,
            boxes,
            present,
        )
        anchor_weights = target_scores.sum(-1)
        class_loss = self._class_loss(scores, target_scores.to(dtype)).sum((1, 2))

        image, anchor = foreground.nonzero(as_tuple=True)
        weight = anchor_weights[image, anchor]
        target_boxes = target_boxes[image, anchor] / strides[anchor]
        iou = bbox_iou(decoded[image, anchor], target_boxes, xywh=False, CIoU=True).squeeze(-1)
        distance_loss = self._distance_loss(distances[image, anchor], target_boxes, anchors[anchor], strides[anchor],
                                            width, height)  # fmt: skip

        def by_image(values: Tensor) -> Tensor:
            return torch.zeros(count, dtype=values.dtype, device=device).index_add(0, image, values)

        total = (
            self.settings.box * by_image((1.0 - iou) * weight)
            + self.settings.cls * class_loss
            + self.settings.dfl * by_image(distance_loss * weight)
        )
        if self.settings.normaliser == "constant":
            return total / self.settings.constant
        return total / anchor_weights.sum(1).clamp(min=1)  # this image's own, never the batch's

    def bbox_decode(self, anchor_points: Tensor, pred_dist: Tensor) -> Tensor:
        """Return the predicted boxes, (n, anchors, 4); a row is summed by itself, and not in a matrix product."""
        if self.use_dfl:
            bins = pred_dist.unflatten(2, (4, -1)).softmax(3)
            pred_dist = (bins * self.proj.type(pred_dist.dtype)).sum(3)
        return dist2bbox(pred_dist, anchor_points, xywh=False)

    def _class_loss(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of every class at every anchor, (n, anchors, classes)."""
        loss = F.binary_cross_entropy_with_logits(scores, targets, reduction="none")
        gamma = self.settings.focal_gamma
        return loss * (targets - scores.sigmoid()).abs().pow(gamma) if gamma else loss

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
        one2many: Weight of the one-to-many branch of a model with two; the one-to-one branch has the rest. Set it
            from :func:`one2many_weight` as training goes on. Models with one branch have no use for it.
        settings: Gains, normaliser and focal weighting.
        precision: ``fp32``, or ``bf16``: the model's forward pass, and with it what goes back through it, is computed
            in bfloat16 by autocast. The loss itself is in single precision. See :mod:`dptrain.detection.precision`.
    """

    def __init__(
        self, one2many: float = ONE2MANY_START, settings: LossSettings | None = None, precision: str = "fp32"
    ) -> None:
        self.one2many, self.settings, self.precision = one2many, settings or LossSettings(), precision

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        images = batch["img"]
        if len(images) == 0:
            return images.new_zeros(0)
        preds = self._predicted(model, images)
        if "one2one" not in preds:
            return self._of_head(model, 10).per_image(preds, batch)
        one = self._of_head(model, 7, 1).per_image(preds["one2one"], batch)
        if not preds.get("one2many"):  # dropped
            return one
        many = self._of_head(model, 10).per_image(preds["one2many"], batch)
        return many * self.one2many + one * max(1.0 - self.one2many, 0.0)

    def _predicted(self, model: nn.Module, images: Tensor) -> Any:
        if self.precision == "fp32":
            preds = model(images)
            return preds[1] if isinstance(preds, tuple) else preds
        with torch.autocast(images.device.type, torch.bfloat16):
            preds = model(images)
        return _single(preds[1] if isinstance(preds, tuple) else preds)

    def _of_head(self, model: nn.Module, topk: int, topk2: int | None = None) -> _HeadLoss:
        return _HeadLoss(self.settings, _Holder(model), tal_topk=topk, tal_topk2=topk2)


def _single(preds: Any) -> Any:
    """What was predicted in bfloat16, in single precision: the loss decides by it, and adds up over thousands."""
    if isinstance(preds, Mapping):
        return {name: _single(value) for name, value in preds.items()}
    if isinstance(preds, list | tuple):
        return [_single(value) for value in preds]
    return preds.float() if isinstance(preds, Tensor) and preds.dtype == torch.bfloat16 else preds


class _Holder:
    """What ``v8DetectionLoss.__init__`` reads of a model."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.model
        self.args = None  # the gains are LossSettings'
        self.parameters = model.parameters
        self.class_weights = None  # weights from label counts would tell them


def per_image_losses(model: DetectionModel, batch: Batch) -> Tensor:
    """Return the loss of every image, shape (n,), as a fresh Ultralytics criterion would weigh the branches.

    See :class:`PerImageLoss` for shapes and the guarantee.
    """
    return PerImageLoss()(model, batch)
