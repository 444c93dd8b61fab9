"""Filters trained in coordinates that were measured on public images (``privacy.precondition``)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import ConfigError, DataError
from ..layers import PreconditionedConv2d
from .data import DetectionDataset
from .loader import collate, to_device
from .loss import PerImageLoss

_POWER = 0.25  # on either side of a filter's step: the inverse square root of the factors, as Adam and Shampoo have it
_FLOOR = 0.01  # in parts of the mean eigenvalue; 0.001 was no better


def precondition(model: nn.Module, loss: PerImageLoss, images: DetectionDataset) -> None:
    """Put the convolutions that train in other coordinates; nothing of what the detector computes changes.

    With A, the mean of x x^T over the pixels of a convolution's input, and G, that of b b^T over the pixels of the
    loss's gradient for its output, a step of the filters W is one of the inverse square roots of G and A, on either
    side of W: directions in which the detector hardly changes get longer steps, and more of the noise. A and G are of
    the start's weights and the given images, and fixed from then on (K-FAC, Martens and Grosse 2015, with channels in
    the place of patches; the square root: Shampoo, Gupta, Koren and Singer 2018).

    Convolutions with groups stay as they are, and so do those with a bias, which are the last of the head: with them
    it helped less. Nothing of this is noised: the images must be public. The same weights and images give the same.

    Raises:
        ConfigError: None can be.
        DataError: No image has finite gradients.
    """
    moments = {name: _Moments(conv) for name, conv in convolutions(model).items()}
    device = next(model.parameters()).device
    gradients = {name: p.grad for name, p in model.named_parameters()}
    used = 0
    try:
        for index in range(len(images)):
            model.zero_grad()
            loss(model, to_device(collate([images.sample(index)]), device)).sum().backward()
            if all(moment.is_finite() for moment in moments.values()):
                used += 1
                for moment in moments.values():
                    moment.keep()
    finally:
        for moment in moments.values():
            moment.hook.remove()
        for name, parameter in model.named_parameters():
            parameter.grad = gradients[name]
    if not used:
        raise DataError(
            f"none of the {len(images)} public images of privacy.clip_scales has finite gradients: name others"
        )
    put_in_coordinates(model, lambda name, _: moments[name].coordinates())


def as_preconditioned(model: nn.Module) -> None:
    """Put the same layers in, for weights and coordinates to be read into."""
    put_in_coordinates(model, lambda _, conv: (torch.eye(conv.out_channels), torch.eye(conv.in_channels)))


def convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    """Return the convolutions that :func:`precondition` replaces, by name.

    Raises:
        ConfigError: There are none.
    """
    found = {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Conv2d and module.groups == 1 and module.weight.requires_grad and module.bias is None
    }
    if not found:
        raise ConfigError(
            "privacy.precondition=true and no plain convolution trains: leave it out, or train others than these layers"
        )
    return found


class _Moments:
    """Second moments of the input of a convolution and of the gradient for its output, over images that were kept."""

    def __init__(self, conv: nn.Conv2d) -> None:
        self.inputs, self.gradients = (torch.zeros(n, n).double() for n in (conv.in_channels, conv.out_channels))
        self._seen = self.inputs, self.gradients
        self.hook = conv.register_forward_hook(self._see)

    def _see(self, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._seen = _moment(inputs[0].detach()), torch.zeros_like(self.gradients)  # zero: it may have no gradient
        output.register_hook(self._see_gradient)

    def _see_gradient(self, gradient: Tensor) -> None:
        self._seen = self._seen[0], _moment(gradient)

    def is_finite(self) -> bool:
        return all(bool(seen.isfinite().all()) for seen in self._seen)

    def keep(self) -> None:
        """Count the last image."""
        self.inputs, self.gradients = self.inputs + self._seen[0], self.gradients + self._seen[1]
        self._seen = self.inputs * 0, self.gradients * 0  # the next one may not reach it

    def coordinates(self) -> tuple[Tensor, Tensor]:
        """Return what :class:`PreconditionedConv2d` calls left and right."""
        return _root(self.gradients), _root(self.inputs).t()


def _moment(x: Tensor) -> Tensor:
    pixels = x.double().transpose(0, 1).flatten(1)
    return (pixels @ pixels.t() / pixels.shape[1]).cpu()


def _root(moment: Tensor) -> Tensor:
    """Return R with R R^T the inverse square root of the moment, whose mean eigenvalue is made 1."""
    if not float(moment.trace()) > 0.0:
        return torch.eye(len(moment), dtype=moment.dtype)  # no image reached it
    values, vectors = torch.linalg.eigh(moment)
    values = values.clamp(min=0.0) / values.mean() + _FLOOR
    return vectors * values**-_POWER


def put_in_coordinates(model: nn.Module, coordinates: Callable[[str, nn.Conv2d], tuple[Tensor, Tensor]]) -> None:
    """Replace every convolution of :func:`convolutions` by one with the left and right that it is given."""
    for name, conv in convolutions(model).items():
        owner, _, child = name.rpartition(".")
        setattr(model.get_submodule(owner), child, PreconditionedConv2d.from_conv(conv, *coordinates(name, conv)))
