"""Conv2d and ConvTranspose2d, with any groups, stride, dilation and padding.

Per example and group the weight gradient is B U^T, with B (p, T) the output gradient and U (d, T) the unfolded input,
d = C_in / groups * k * k, p = C_out / groups and T output positions. Four ways to form it, none always cheapest:

* ``bmm``: unfold, then one batched matrix product. For 1 x 1 convolutions there is nothing to unfold.
* ``fold``: one library call that computes the weight gradient of a convolution with the batch folded into the groups.
* ``loop``: the library's weight gradient one example at a time, for few examples with large maps.
* ``ghost``: the norm from two T x T products, the sum from one product over all examples; nothing of size n x p x d.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Forward, Instantiated, Record, Tape, full_precision, register
from .linear import GhostRecord

METHODS = ("bmm", "fold", "loop", "ghost")


class _Geometry:
    """The static arguments of a convolution, as ``aten.convolution`` takes them."""

    def __init__(self, module: nn.Conv2d | nn.ConvTranspose2d, padding: list[int], output_padding: list[int]) -> None:
        self.stride, self.dilation = list(module.stride), list(module.dilation)
        self.padding, self.output_padding = padding, output_padding
        self.transposed = isinstance(module, nn.ConvTranspose2d)
        self.groups = module.groups

    def backward(
        self, b: Tensor, x: Tensor, weight: Tensor, groups: int, mask: tuple[bool, bool, bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        return torch.ops.aten.convolution_backward(
            b, x, weight, None, self.stride, self.padding, self.dilation, self.transposed, self.output_padding, groups,
            mask,
        )  # fmt: skip


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, module: Any, geometry: _Geometry, tape: Tape
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.module, ctx.geometry, ctx.tape = module, geometry, tape
        g = geometry
        return torch.convolution(
            x, weight, bias, g.stride, g.padding, g.dilation, g.transposed, g.output_padding, g.groups
        )

    @staticmethod
    def backward(ctx: Any, b: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        ctx.tape.add(ctx.module, conv_record(ctx.module, ctx.geometry, x, b))
        grad = None
        if ctx.needs_input_grad[0]:
            grad, _, _ = ctx.geometry.backward(b, x, weight, ctx.geometry.groups, (True, False, False))
        return grad, None, None, None, None, None


def conv_record(
    module: nn.Conv2d | nn.ConvTranspose2d, geometry: _Geometry, x: Tensor, b: Tensor, method: str | None = None
) -> Record:
    """Form the record of one convolution from its input and output gradient, by the cheapest method."""
    x, b = full_precision(x), full_precision(b)
    bias = b.sum((2, 3)) if module.bias is not None and module.bias.requires_grad else None
    if not module.weight.requires_grad:
        assert bias is not None
        return Instantiated({"bias": bias})
    method = method or choose(module, x, b)
    if method == "ghost":
        return GhostRecord(module, b.flatten(2), _unfold(module, geometry, x), bias)
    gradient = _FORMS[method](module, geometry, x, b)
    return Instantiated({"weight": gradient} if bias is None else {"weight": gradient, "bias": bias})


def choose(module: nn.Conv2d | nn.ConvTranspose2d, x: Tensor, b: Tensor) -> str:
    """Choose a method from shapes alone, by the rule that fits what was timed on two CPU cores.

    It depends on no value of x or b: choosing by values would make run time tell something about the images.
    """
    if isinstance(module, nn.ConvTranspose2d) or module.groups > 1:
        return "fold"
    positions, outputs = b.shape[2] * b.shape[3], b.shape[1]
    inputs = module.weight[0].numel()
    if 16 * positions * positions <= outputs * inputs:
        return "ghost"
    if module.kernel_size == (1, 1) and module.stride == (1, 1):
        return "bmm"
    if positions <= 128 and x.shape[1] >= 128:
        return "bmm"
    if x.shape[1] < 8 and positions >= 4096:
        return "loop"
    return "fold"


def _unfold(module: nn.Conv2d | nn.ConvTranspose2d, geometry: _Geometry, x: Tensor) -> Tensor:
    """Return U of every example, (n, d, T); for a convolution of one group."""
    if module.kernel_size == (1, 1) and module.stride == (1, 1) and not any(geometry.padding):
        return x.flatten(2)
    return F.unfold(x, module.kernel_size, module.dilation, tuple(geometry.padding), module.stride)


def _by_bmm(module: Any, geometry: _Geometry, x: Tensor, b: Tensor) -> Tensor:
    product = b.flatten(2) @ _unfold(module, geometry, x).transpose(1, 2)
    return product.view(len(x), *module.weight.shape)


def _by_fold(module: Any, geometry: _Geometry, x: Tensor, b: Tensor) -> Tensor:
    n, weight = len(x), module.weight.detach()
    # Only the shape of the weight matters here.
    shaped = weight.expand(n, *weight.shape).reshape(-1, *weight.shape[1:]).to(x.dtype)
    _, gradient, _ = geometry.backward(
        b.reshape(1, -1, *b.shape[2:]),
        x.reshape(1, -1, *x.shape[2:]),
        shaped,
        geometry.groups * n,
        (False, True, False),
    )
    assert gradient is not None
    return gradient.view(n, *weight.shape)


def _by_loop(module: Any, geometry: _Geometry, x: Tensor, b: Tensor) -> Tensor:
    weight = module.weight.detach().to(x.dtype)
    gradient = x.new_empty(len(x), *weight.shape)
    for i in range(len(x)):
        _, one, _ = geometry.backward(b[i : i + 1], x[i : i + 1], weight, geometry.groups, (False, True, False))
        assert one is not None
        gradient[i] = one
    return gradient


_FORMS = {"bmm": _by_bmm, "fold": _by_fold, "loop": _by_loop}


@register(nn.Conv2d)
def conv2d(module: nn.Conv2d, tape: Tape) -> Forward:
    before = module._reversed_padding_repeated_twice  # what nn.Conv2d itself pads with
    symmetric = before[0] == before[1] and before[2] == before[3]
    outside = module.padding_mode != "zeros" or not symmetric
    padding = [0, 0] if outside else [before[2], before[0]]
    geometry = _Geometry(module, padding, [0, 0])
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode

    def forward(x: Tensor) -> Tensor:
        padded = F.pad(x, before, mode=mode) if outside else x
        return _Conv.apply(padded, module.weight, module.bias, module, geometry, tape)

    return forward


@register(nn.ConvTranspose2d)
def conv_transpose2d(module: nn.ConvTranspose2d, tape: Tape) -> Forward:
    assert not isinstance(module.padding, str)  # only nn.Conv2d takes "same"
    padding = list(module.padding)

    def forward(x: Tensor, output_size: list[int] | None = None) -> Tensor:
        output_padding = module._output_padding(
            x, output_size, list(module.stride), padding, list(module.kernel_size), 2, list(module.dilation)
        )
        geometry = _Geometry(module, padding, list(output_padding))
        return _Conv.apply(x, module.weight, module.bias, module, geometry, tape)

    return forward
