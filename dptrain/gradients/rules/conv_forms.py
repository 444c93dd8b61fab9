"""The ways to form the weight gradients of a convolution example by example, and the record that never holds them.

Per example and group the weight gradient is B U^T, with B (p, T) the output gradient and U (d, T) the unfolded input,
d = C_in / groups * k * k, p = C_out / groups and T output positions. None of the forms is always cheapest:

* ``bmm``: for 1 x 1 convolutions, where U is the input itself.
* ``unfold``: U of a few examples at a time, in channels-last order, then matrix products.
* ``fold``: one library call that computes the weight gradient of a convolution with the batch folded into the groups.
* ``loop``: the library's weight gradient one example at a time, for few examples with large maps.

A gradient is *held* until the factors of all examples are known, or *booked*: input and output gradient are held in its
place, and the weighted sum is one ordinary weight gradient (book-keeping, Bu et al. 2023). A booked norm comes from a
gradient that is formed and let go, or by ``gram`` from <U^T U, B^T B> (ghost norm, Bu, Mao and Xu 2022), where U^T U is
added up from products of pixels, so that U is never formed.

Where a unit has several examples, its gradient is that of one with the positions of all of them: the sum is formed in
the products themselves, and no example has a gradient of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import squared_norm, weigh, zero_rows

Conv = nn.Conv2d | nn.ConvTranspose2d

_CHUNK = 4 << 20  # bytes of unfolded input at a time: what a core's cache holds serves the product at once
_FORMED = 8 << 20  # bytes of gradients formed at a time where they are let go again
_GRAM = 16 << 20  # bytes of pixel products at a time


class Geometry:
    """The static arguments of a convolution, as ``aten.convolution`` takes them, and how many examples are one unit."""

    def __init__(self, module: Conv, padding: list[int], output_padding: list[int], per_unit: int = 1) -> None:
        self.stride, self.dilation = list(module.stride), list(module.dilation)
        self.kernel = list(module.kernel_size)
        self.padding, self.output_padding = padding, output_padding
        self.transposed = isinstance(module, nn.ConvTranspose2d)
        self.groups = module.groups
        self.per_unit = per_unit
        # Whether U is one matrix an example, and whether that is the input as it is.
        self.dense = self.groups == 1 and not self.transposed
        self.pointwise = self.dense and (self.kernel, self.stride, self.padding) == ([1, 1], [1, 1], [0, 0])
        self.key = (*self.stride, *padding, *self.dilation, *output_padding, self.groups, self.transposed)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.convolution(
            x, weight, bias, self.stride, self.padding, self.dilation, self.transposed, self.output_padding,
            self.groups,
        )  # fmt: skip

    def input_gradient(self, b: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return self._backward(b, x, weight, self.groups, (True, False, False))[0]

    def weight_gradient(self, b: Tensor, x: Tensor, weight: Tensor, groups: int | None = None) -> Tensor:
        return self._backward(b, x, weight, groups or self.groups, (False, True, False))[1]

    def _backward(
        self, b: Tensor, x: Tensor, weight: Tensor, groups: int, mask: tuple[bool, bool, bool]
    ) -> tuple[Any, Any, Any]:
        return torch.ops.aten.convolution_backward(
            b, x, weight, None, self.stride, self.padding, self.dilation, self.transposed, self.output_padding, groups,
            mask,
        )  # fmt: skip


# --- every unit's gradient; x and b are (units * per_unit, ...) ------------------------------------------------------


def bmm(geometry: Geometry, x: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    gradient = x.new_empty(len(x) // geometry.per_unit, weight.shape[0], weight.shape[1])
    _products(b.flatten(2), x.flatten(2).transpose(1, 2), geometry.per_unit, gradient)
    return gradient.view(-1, *weight.shape)


def _products(left: Tensor, right: Tensor, per_unit: int, out: Tensor) -> None:
    """Write the sum over every unit's examples of ``left[i] @ right[i]`` into ``out``."""
    torch.bmm(left[::per_unit], right[::per_unit], out=out)
    for first in range(1, per_unit):
        out.baddbmm_(left[first::per_unit], right[first::per_unit])


def unfold(geometry: Geometry, x: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """Return the gradients as (n, p, k, k, C): :func:`channels_first` puts them right."""
    p, channels, kh, kw = weight.shape
    n, per_unit = len(x) // geometry.per_unit, geometry.per_unit
    gradient = x.new_empty(n, p, kh * kw * channels)
    left = b.flatten(2)
    pixels = _channels_last(geometry, x)
    step = max(1, _CHUNK // (4 * per_unit * left.shape[2] * channels * kh * kw))
    for i in range(0, n, step):
        own = slice(i * per_unit, (i + step) * per_unit)
        _products(left[own], _patches(geometry, pixels[own], b.shape[2:]), per_unit, gradient[i : i + step])
    return gradient.view(n, p, kh, kw, channels)


def channels_first(gradient: Tensor) -> Tensor:
    """Turn (n, p, k, k, C) into (n, p, C, k, k)."""
    return gradient.permute(0, 1, 4, 2, 3)


def _channels_last(geometry: Geometry, x: Tensor) -> Tensor:
    top, left = geometry.padding
    padded = F.pad(x, (left, left, top, top)) if top or left else x
    return padded.permute(0, 2, 3, 1).contiguous()


def _patches(geometry: Geometry, pixels: Tensor, size: torch.Size) -> Tensor:
    """Return U^T of channels-last examples, (m, T, k * k * C)."""
    (m, _, _, channels), (oh, ow), (kh, kw) = pixels.shape, size, geometry.kernel
    (sh, sw), (dh, dw) = geometry.stride, geometry.dilation
    image, row, column, _ = pixels.stride()
    window = pixels.as_strided(
        (m, oh, ow, kh, kw, channels), (image, sh * row, sw * column, dh * row, dw * column, 1), pixels.storage_offset()
    )
    return window.reshape(m, oh * ow, kh * kw * channels)


def fold(geometry: Geometry, x: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    n = len(x) // geometry.per_unit
    shaped = weight.new_empty(n * len(weight), *weight.shape[1:])  # only its shape matters here
    # The examples of a unit are the batch, over which a weight gradient is summed anyway.
    b, x = (t.unflatten(0, (n, -1)).transpose(0, 1).reshape(geometry.per_unit, -1, *t.shape[2:]) for t in (b, x))
    return geometry.weight_gradient(b, x, shaped, geometry.groups * n).view(n, *weight.shape)


def loop(geometry: Geometry, x: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    gradient = x.new_empty(len(x) // geometry.per_unit, *weight.shape)
    for i in range(len(gradient)):
        own = slice(i * geometry.per_unit, (i + 1) * geometry.per_unit)
        gradient[i] = geometry.weight_gradient(b[own], x[own], weight)
    return gradient


FORMS: dict[str, Callable[[Geometry, Tensor, Tensor, Tensor], Tensor]] = {
    "bmm": bmm,
    "unfold": unfold,
    "fold": fold,
    "loop": loop,
}


# --- every unit's squared norm ---------------------------------------------------------------------------------------


def gram(geometry: Geometry, x: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """Return the squared norms from <U^T U, B^T B>, in double precision, since the sum can cancel."""
    pixels = x.permute(0, 2, 3, 1) if geometry.pointwise else _channels_last(geometry, x)
    height, width = pixels.shape[1:3]
    step = geometry.per_unit * max(1, _GRAM // (8 * (geometry.per_unit * height * width) ** 2))
    norms = [_gram(geometry, pixels[i : i + step].double(), b[i : i + step].double()) for i in range(0, len(x), step)]
    return torch.cat(norms)


def _gram(geometry: Geometry, pixels: Tensor, b: Tensor) -> Tensor:
    (height, width, _), (oh, ow), r = pixels.shape[1:], b.shape[2:], geometry.per_unit
    m = len(b) // r
    (kh, kw), (sh, sw), (dh, dw) = geometry.kernel, geometry.stride, geometry.dilation
    flat = pixels.reshape(m, r * height * width, -1)
    rows = b.flatten(2) if r == 1 else b.unflatten(0, (m, r)).transpose(1, 2).flatten(2)
    products = torch.bmm(flat, flat.transpose(1, 2))
    if geometry.pointwise:
        return torch.bmm(rows.transpose(1, 2), rows).mul_(products).sum((1, 2)).clamp_(min=0.0)
    products = products.view(m, r, height, width, r, height, width)
    patches = products.new_zeros(m, r, oh, ow, r, oh, ow)
    for i in range(kh):
        for j in range(kw):
            down = slice(i * dh, i * dh + sh * (oh - 1) + 1, sh)
            right = slice(j * dw, j * dw + sw * (ow - 1) + 1, sw)
            patches += products[:, :, down, right, :, down, right]
    patches = patches.view(m, r * oh * ow, r * oh * ow)
    return torch.bmm(rows.transpose(1, 2), rows).mul_(patches).sum((1, 2)).clamp_(min=0.0)


def formed(geometry: Geometry, x: Tensor, b: Tensor, weight: Tensor, form: str) -> Tensor:
    """Return the squared norms from gradients that are formed a few at a time and let go."""
    step = geometry.per_unit * max(1, _FORMED // (4 * weight.numel()))
    norms = [
        squared_norm(FORMS[form](geometry, x[i : i + step], b[i : i + step], weight)) for i in range(0, len(x), step)
    ]
    return torch.cat(norms)


class GhostConvRecord:
    """Holds the input and the output gradient in place of every unit's weight gradient."""

    def __init__(
        self, geometry: Geometry, x: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None, norms: Tensor
    ) -> None:
        self.geometry, self.x, self.b, self.weight, self.bias, self.norms = geometry, x, b, weight, bias, norms

    @classmethod
    def make(
        cls, geometry: Geometry, x: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None, form: str
    ) -> GhostConvRecord:
        norms = gram(geometry, x, b, weight) if form == "gram" else formed(geometry, x, b, weight, form)
        # The weighted sum below comes from another computation than the norm, and rounds off a few units of
        # |B|^2 |U|^2 (Cauchy-Schwarz) in its own way. They are added, so that the norm errs upwards and the clipped
        # gradient never exceeds the clip norm.
        rounding = 4 * torch.finfo(b.dtype).eps * geometry.kernel[0] * geometry.kernel[1]
        size_x, size_b = (squared_norm(t).view(-1, geometry.per_unit).sum(1) for t in (x, b))
        norms = norms + rounding * size_x * size_b
        return cls(geometry, x, b, weight, bias, norms)

    def squared_norms(self) -> Tensor:
        return self.norms if self.bias is None else self.norms + squared_norm(self.bias)

    def weighted_sum(self, weights: Tensor) -> dict[str, Tensor]:
        scaled = self.b * weights.to(self.b.dtype).repeat_interleave(self.geometry.per_unit).view(-1, 1, 1, 1)
        sums = {"weight": self.geometry.weight_gradient(scaled, self.x, self.weight)}
        if self.bias is not None:
            sums["bias"] = weigh(weights, self.bias)
        return sums

    def per_example(self) -> dict[str, Tensor]:
        gradients = {"weight": fold(self.geometry, self.x, self.b, self.weight)}
        if self.bias is not None:
            gradients["bias"] = self.bias
        return gradients

    def without(self, dropped: Tensor) -> GhostConvRecord:
        bias = None if self.bias is None else zero_rows(self.bias, dropped)
        x, b = (zero_rows(t, dropped.repeat_interleave(self.geometry.per_unit)) for t in (self.x, self.b))
        return GhostConvRecord(self.geometry, x, b, self.weight, bias, zero_rows(self.norms, dropped))
