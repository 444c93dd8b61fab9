"""Made-up images on which a detector is tried before any private image is looked at."""

from __future__ import annotations

import copy

import torch
from torch import nn

from ..gradients import check_independence
from ..gradients.autotune import by_rule
from .loss import PerImageLoss

_SIDE = 64  # whether images depend on one another does not depend on their size
_BOXES = (2, 6, 1)
_tried: set[str] = set()  # detectors of this process that passed; a sweep trains the same one again and again


def refuse_coupled_images(model: nn.Module, engine: str = "fused", loss: PerImageLoss | None = None) -> None:
    """Refuse a detector in which one image changes the gradient of another, such as one with a layer of its own kind.

    It is tried on a copy in double precision, where rounding cannot move a box from one anchor to another, and on
    noise images: what comes out tells nothing about the data.

    Raises:
        ModelError: One line, see :func:`dptrain.check_independence`.
    """
    loss = loss or PerImageLoss()
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    # All that decides it; values do not.
    kind = f"{engine} {loss.settings} {trained} {getattr(model, 'yaml', None)} {model}"
    if kind in _tried:
        return
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator)

    boxes = sum(_BOXES)
    batch = {
        "img": noise(len(_BOXES), 3, _SIDE, _SIDE).double(),  # boxes stay as Ultralytics' loss needs them
        "batch_idx": torch.repeat_interleave(torch.arange(len(_BOXES)), torch.tensor(_BOXES)).float(),
        "cls": torch.zeros(boxes, 1),
        "bboxes": torch.cat((noise(boxes, 2) * 0.4 + 0.3, noise(boxes, 2) * 0.4 + 0.1), 1),
    }
    with by_rule():
        check_independence(copy.deepcopy(model).cpu().double(), loss, batch, engine)
    _tried.add(kind)
