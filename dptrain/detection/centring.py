"""The usual mean of what every convolution takes in, from the start's public weights alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from ultralytics.nn.modules import Conv
from ultralytics.nn.tasks import DetectionModel

from ..gradients.modules import CentredConv2d, FrozenBatchNorm2d

_IMAGES, _SIDE = 16, 128  # made up of noise


def centre_inputs(detector: DetectionModel) -> None:
    """Let the convolutions that train, train as if the usual mean of their input were zero.

    What the detector computes stays as it is. See :class:`~dptrain.gradients.modules.CentredConv2d` for what changes;
    ``docs/results.md`` has what it is worth. Only layers whose shift has a place in stock weights are centred: with a
    bias, or before a batch norm that is frozen.
    """
    places = list(_places(detector))
    means = usual_inputs(detector, [conv for _, _, conv in places])
    for (owner, name, conv), mean in zip(places, means, strict=True):
        setattr(owner, name, CentredConv2d.of(conv, mean))


def _places(detector: DetectionModel) -> Iterator[tuple[nn.Module, str, nn.Conv2d]]:
    for path, owner in detector.named_modules():
        if path.endswith(".dfl"):
            continue
        for name, conv in owner.named_children():
            if type(conv) is not nn.Conv2d or not conv.weight.requires_grad:
                continue
            before_norm = isinstance(owner, Conv) and isinstance(getattr(owner, "bn", None), FrozenBatchNorm2d)
            if conv.bias is not None or (before_norm and name == "conv"):
                yield owner, name, conv


def usual_inputs(detector: DetectionModel, convolutions: Sequence[nn.Conv2d]) -> list[Tensor]:
    """Return the mean of every input channel of some layers, (in_channels,) each, from weights alone.

    Made-up images of noise go through the detector with every batch norm by the statistics of that pass. So each norm
    puts out the means and spreads that its scale and shift stand for, as it did on the images it was trained on.
    """
    place = next(detector.parameters())
    generator = torch.Generator().manual_seed(0)  # of its own: a run's random numbers stay as they are
    images = torch.rand(_IMAGES, 3, _SIDE, _SIDE, generator=generator).to(place)
    found: dict[nn.Module, Tensor] = {}

    def note(conv: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        found[conv] = inputs[0].mean((0, 2, 3))

    hooks = [conv.register_forward_hook(note) for conv in convolutions]
    try:
        with torch.no_grad(), _by_batch(detector):
            detector(images)
    finally:
        for hook in hooks:
            hook.remove()
    return [found.get(conv, torch.zeros(conv.in_channels, device=place.device)) for conv in convolutions]


@contextmanager
def _by_batch(detector: nn.Module) -> Iterator[None]:
    norms = [layer for layer in detector.modules() if isinstance(layer, FrozenBatchNorm2d)]
    try:
        for norm in norms:
            norm.__dict__["forward"] = partial(
                F.batch_norm, running_mean=None, running_var=None, weight=norm.weight, bias=norm.bias, training=True,
                eps=norm.eps,
            )  # fmt: skip
        yield
    finally:
        for norm in norms:
            norm.__dict__.pop("forward", None)
