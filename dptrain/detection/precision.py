"""In what the passes of a run compute: single precision, or bfloat16 where it is safe.

Only a model's forward pass, and what is handed back through it, is ever in bfloat16. Weights, the loss, per-image
gradients, their norms, clipped sums, noise and the optimizer are in single or double precision always.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError, DptrainError
from ..gradients import clipped_gradient_sum
from ..gradients.autotune import by_rule
from ..privacy.clip_rules import FlatClip
from .loss import PerImageLoss

_BOXES = (2, 6, 1)
_CLIP_NORM = 1e-3  # below the norm of any image's gradient


def settle_precision(
    wanted: str, model: nn.Module, loss: PerImageLoss, imgsz: int, at_once: int, engine: str = "fused"
) -> str:
    """Return ``fp32`` or ``bf16``: what is wanted, or of ``auto`` the faster one that is safe on the model's device.

    Nothing decides but the device, the model and made-up images.

    Args:
        wanted: ``auto``, ``fp32`` or ``bf16``.
        model: On the device where it will train.
        loss: Its loss.
        imgsz: Side of the images, in pixels.
        at_once: How many go through the model at once.
        engine: Of the run; bfloat16 is for ``fused``.

    Raises:
        ConfigError: ``bf16`` is wanted, and not safe here.
    """
    device = next(model.parameters()).device
    if wanted == "fp32" or (wanted == "auto" and not _has_bf16(device)):
        return "fp32"
    reason = _unsafe(model, loss, imgsz, at_once, engine)
    if reason and wanted == "bf16":
        raise ConfigError(f"precision=bf16 is not safe here ({reason}): use precision=fp32")
    return "fp32" if reason else "bf16"


def _has_bf16(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def _unsafe(model: nn.Module, loss: PerImageLoss, imgsz: int, at_once: int, engine: str) -> str:
    """Return why the passes may not be in bfloat16, or nothing; tried on made-up images, in passes of the run's shape.

    An image's predictions must be the same to the last bit in every place of a pass and beside other images, and its
    clipped gradient finite, in single precision and no longer than the clip norm.
    """
    if engine != "fused":
        return f"engine={engine} was not tried in it"
    tried = _Watched(loss.one2many, loss.settings, "bf16")
    found: list[tuple[dict[str, Tensor], list[Tensor]]] = []
    try:
        with by_rule():
            for place in (0, 1):
                sums = _trial(model, tried, imgsz, max(at_once, 2), place)
                found.append((sums, [tensor[place] for tensor in tried.seen]))
    except (RuntimeError, DptrainError) as error:
        return f"a pass fails: {' '.join(str(error).split())[:120]}"
    (one, predicted), (moved, as_moved) = found
    if not all(map(torch.equal, predicted, as_moved)):
        return "what is predicted for an image changes with its place and the images beside it"
    for sums in (one, moved):
        if any(value.dtype not in (torch.float32, torch.float64) for value in sums.values()):
            return "gradients are summed in less than single precision"
        norm = math.sqrt(sum(float(value.double().square().sum()) for value in sums.values()))
        if not 0.0 < norm <= _CLIP_NORM:
            return f"an image adds {norm:.9g} at clip_norm={_CLIP_NORM:g}"
    apart = math.sqrt(sum(float((one[name].double() - moved[name].double()).square().sum()) for name in one))
    if apart > 1e-3 * _CLIP_NORM:
        return (
            f"an image's gradient changes by {100 * apart / _CLIP_NORM:.2g} % with its place and the images beside it"
        )
    return ""


def _trial(model: nn.Module, loss: PerImageLoss, imgsz: int, size: int, place: int) -> dict[str, Tensor]:
    """Return the clipped gradient of one made-up image, at ``place`` of a pass, with others beside it at place 1."""
    parameter = next(model.parameters())
    generator = torch.Generator().manual_seed(0)

    def made_up(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    image = {
        "img": made_up(1, 3, imgsz, imgsz),
        "batch_idx": torch.full((_BOXES[1],), float(place)),
        "cls": torch.zeros(_BOXES[1], 1),
        "bboxes": torch.cat((made_up(_BOXES[1], 2) * 0.4 + 0.3, made_up(_BOXES[1], 2) * 0.4 + 0.1), 1),
    }
    if place:
        image["img"] = torch.cat((made_up(place, 3, imgsz, imgsz), image["img"]))
    batch = {name: value.to(parameter.device) for name, value in image.items()}
    return clipped_gradient_sum(model, loss, batch, _Only(place), examples_at_once=size)


class _Watched(PerImageLoss):
    """The loss, which keeps what was predicted in the last pass."""

    seen: list[Tensor]

    def _predicted(self, model: nn.Module, images: Tensor) -> Any:
        predicted = super()._predicted(model, images)
        self.seen = list(_tensors(predicted))
        return predicted


def _tensors(predicted: Any) -> Iterator[Tensor]:
    if isinstance(predicted, Tensor):
        yield predicted.detach()
    elif isinstance(predicted, Mapping | list | tuple):
        for value in predicted.values() if isinstance(predicted, Mapping) else predicted:
            yield from _tensors(value)


class _Only:
    """Flat clipping of the unit at one place; the others weigh nothing."""

    groups = None

    def __init__(self, place: int) -> None:
        self.place = place

    def weights(self, squared_norms: Tensor) -> Tensor:
        weights = FlatClip(_CLIP_NORM).weights(squared_norms)
        own = torch.zeros_like(weights)
        own[self.place] = weights[self.place]
        return own

    def sensitivity(self, relation: str = "add_or_remove_one") -> float:
        return _CLIP_NORM
