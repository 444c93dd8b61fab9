"""Labels that are tied to the last digit: which anchor a box goes to then hangs on how a prediction was rounded.

Whoever may write the labels of every image but one finds them by bisection. A box is moved until it goes to another
anchor, and then a float at a time, until it goes to one anchor without the newcomer and to another with it.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from ultralytics.utils.tal import TaskAlignedAssigner

from dptrain import PrivacyPlan
from dptrain.detection.loss import PerImageLoss
from dptrain.gradients.batches import take_examples
from dptrain.training.clipped_sum import ClippedSum

_NEAR = 24  # floats on either side of a tie that are looked at
_SIDE = 0.3  # of a box


def batch_of(pixels: Tensor, boxes: list[Tensor]) -> dict[str, Tensor]:
    """Return a batch whose image i has ``boxes[i]``, (m, 4), all of class 0."""
    counts = torch.tensor([len(rows) for rows in boxes])
    return {
        "img": pixels,
        "batch_idx": torch.arange(len(boxes)).repeat_interleave(counts).float(),
        "cls": torch.zeros(int(counts.sum()), 1),
        "bboxes": torch.cat(boxes),
    }


class _Spy(PerImageLoss):
    """The loss, which keeps what the model predicted in every pass."""

    def __init__(self) -> None:
        super().__init__()
        self.predictions: list[dict[str, Any]] = []

    def __call__(self, model: Any, batch: Any) -> Tensor:
        hook = model.register_forward_hook(lambda _module, _inputs, output: self._keep(output))
        try:
            return super().__call__(model, batch)
        finally:
            hook.remove()

    def _keep(self, output: Any) -> None:
        predicted = output[1] if isinstance(output, tuple) else output
        predicted = predicted.get("one2one", predicted)
        self.predictions.append(
            {name: [t.detach() for t in v] if isinstance(v, list) else v.detach() for name, v in predicted.items()}
        )


class Step:
    """The sum of one step over images, in their order, in passes of ``size``.

    Args:
        newcomer: The number of the image whose boxes are given, if one is; each of the others has one box.
    """

    def __init__(self, model: Any, plan: PrivacyPlan, pixels: Tensor, size: int, newcomer: int | None, boxes: Tensor):
        self.model, self.plan, self.pixels, self.size = model, plan, pixels, size
        self.newcomer, self.boxes = newcomer, boxes
        start = torch.full((len(pixels) - (newcomer is not None), 4), 0.5)
        self.spy = _Spy()
        self.sum(start, self.spy)  # predictions do not depend on labels

    def _passes(self, boxes: Tensor) -> list[dict[str, Tensor]]:
        rows = list(boxes.unsqueeze(1))
        if self.newcomer is not None:
            rows.insert(self.newcomer, self.boxes)
        whole = batch_of(self.pixels, rows)
        return [take_examples(whole, at, min(at + self.size, len(rows))) for at in range(0, len(rows), self.size)]

    def sum(self, boxes: Tensor, loss: PerImageLoss | None = None) -> dict[str, Tensor]:
        """Return the clipped sum with these boxes of the others, (n, 4)."""
        clipped = ClippedSum(self.plan, self.model, loss or PerImageLoss(), examples_at_once=self.size)
        parts = [clipped.over(batch) for batch in self._passes(boxes)]
        return {name: sum((part[name].double() for part in parts[1:]), parts[0][name].double()) for name in parts[0]}

    def assigned(self, boxes: Tensor) -> Tensor:
        """Return which anchors the boxes of the others go to, (n, anchors)."""
        topk = (7, 1) if self.model.model[-1].end2end else (10, None)
        head = PerImageLoss()._of_head(self.model, *topk)
        found: list[Tensor] = []
        real = TaskAlignedAssigner.forward
        with pytest.MonkeyPatch.context() as patch:

            def note(assigner: Any, *values: Any) -> Any:
                result = real(assigner, *values)
                found.append(result[3].bool().clone())
                return result

            patch.setattr(TaskAlignedAssigner, "forward", note)
            for predicted, batch in zip(self.spy.predictions, self._passes(boxes), strict=True):
                head.per_image(predicted, batch)
                found[-1] = found[-1][: len(batch["img"])]
        rows = torch.cat(found)
        if self.newcomer is not None:
            rows = torch.cat((rows[: self.newcomer], rows[self.newcomer + 1 :]))
        return rows


def tied_boxes(one: Step, other: Step, count: int) -> tuple[Tensor, int]:
    """Return boxes (n, 4) that go to different anchors in the two steps, wherever any do, and how many do."""
    side = one.pixels.shape[-1]

    def boxes(at: Tensor) -> Tensor:
        return torch.stack((at, torch.full_like(at, 0.4), *[torch.full_like(at, _SIDE)] * 2), 1)

    low, high = torch.full((count,), 0.4), torch.full((count,), 0.4 + 16 / side)
    start = one.assigned(boxes(low))
    for _ in range(26):
        middle = (low + high) / 2
        same = (one.assigned(boxes(middle)) == start).all(1)
        low, high = torch.where(same, middle, low), torch.where(same, high, middle)
    best, flipped = low.clone(), torch.zeros(count, dtype=torch.bool)
    infinity = torch.full_like(low, torch.inf)
    for direction in (infinity, -infinity):
        at = low.clone()
        for _ in range(_NEAR):
            differ = (one.assigned(boxes(at)) != other.assigned(boxes(at))).any(1) & ~flipped
            best, flipped = torch.where(differ, at, best), flipped | differ
            at = torch.nextafter(at, direction)
    return boxes(best), int(flipped.sum())
