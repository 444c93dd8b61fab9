"""A convolution and the frozen batch norm behind it, run as the one convolution that they are.

With scale s = weight / std and z = conv(x), the norm's output is s * z + shift: a convolution with the weight W' = s W.
From G, the gradient of W' of one example, all others follow without another look at the maps: that of W is s G; that of
the norm's weight is the sum over positions of b (z - mean) / std, where the sum of b z is <G, W>; that of its bias is
the sum of b. So the norm's maps are neither computed nor kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import ModelError
from ..modules import CentredConv2d, FrozenBatchNorm2d
from .base import Forward, PerExampleGradients, Record, Tape, as_autocast, full_precision, without_autocast
from .conv import centre, conv_record, forward_of, input_gradient_of, method_for, padded_geometry, record_of
from .conv_forms import Geometry

_CONVOLUTIONS = (nn.Conv2d, CentredConv2d)
_PAIRS: dict[type[nn.Module], tuple[str, str]] = {}


def register_pair(owner: type[nn.Module], conv: str, norm: str) -> None:
    """Tell that a module of exactly this type calls its child ``conv`` and hands the result to its child ``norm``.

    A norm that is given anything else is refused while gradients are recorded.
    """
    _PAIRS[owner] = (conv, norm)


def fold(module: nn.Module, tape: Tape, patched: list[nn.Module]) -> None:
    """Let the pairs of a module run as one; ``patched`` gets the layers whose ``forward`` was replaced."""
    for conv, norm in _pairs(module):
        trains = conv.weight.requires_grad
        if not trains and any(p.requires_grad for p in norm.parameters()):
            continue  # the norm's gradient alone is cheaper from its maps
        geometry, _ = padded_geometry(conv, tape)
        if conv.bias is not None or geometry.padding != list(conv.padding):
            continue
        conv_forward, norm_forward = _forwards(conv, norm, geometry, tape, trains)
        conv.__dict__["forward"], norm.__dict__["forward"] = conv_forward, norm_forward
        patched += [conv, norm]


def _pairs(module: nn.Module) -> Iterator[tuple[nn.Conv2d, FrozenBatchNorm2d]]:
    for owner in module.modules():
        names = _PAIRS.get(type(owner))
        if names is None:
            continue
        conv, norm = (owner._modules.get(name) for name in names)
        if not isinstance(conv, nn.Conv2d) or type(conv) not in _CONVOLUTIONS or type(norm) is not FrozenBatchNorm2d:
            continue
        if not any(layer._forward_hooks or layer._forward_pre_hooks for layer in (conv, norm)):
            yield conv, norm


def _forwards(
    conv: nn.Conv2d, norm: FrozenBatchNorm2d, geometry: Geometry, tape: Tape, trains: bool
) -> tuple[Forward, Forward]:
    """The functions that stand in for the two layers: the first does the work, the second lets its result through."""
    alone, behind = conv.forward, norm.forward  # by their own rules, where a rule has them
    waiting: list[Tensor] = []

    def conv_forward(x: Tensor) -> Tensor:
        if not _pays(conv, x):
            return alone(x)
        if trains:
            out = _Folded.apply(x, conv.weight, norm.weight, norm.bias, conv, norm, geometry, tape)
        else:
            scale, shift = _affine(conv, norm)
            out = F.conv2d(x, _scaled(conv, scale), shift, conv.stride, conv.padding, conv.dilation, conv.groups)
        waiting.append(out)
        return out

    def norm_forward(x: Tensor) -> Tensor:
        if not waiting:
            return behind(x)
        if waiting.pop() is not x or waiting:
            raise ModelError(f"this {type(norm).__name__} was given another input than its {type(conv).__name__} made")
        return x

    return conv_forward, norm_forward


def _pays(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether the maps that are saved are larger than the gradients that are gone over; shapes alone say it."""
    positions = x.shape[2] * x.shape[3] // (conv.stride[0] * conv.stride[1])
    return positions >= conv.weight[0].numel()


def _affine(conv: nn.Conv2d, norm: FrozenBatchNorm2d) -> tuple[Tensor, Tensor]:
    """What the norm multiplies each channel by, and the bias of both layers as one convolution."""
    with torch.no_grad():
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        return scale, norm.bias + scale * (_bias(conv) - norm.running_mean)


def _bias(conv: nn.Conv2d) -> Tensor:
    if isinstance(conv, CentredConv2d):
        return conv.whole_bias().detach()
    return conv.weight.new_zeros(())


def _scaled(conv: nn.Conv2d, scale: Tensor) -> Tensor:
    return conv.weight.detach() * scale.view(-1, 1, 1, 1)


class _Folded(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, _weight: Tensor, _scale: Tensor, _bias: Tensor, conv: nn.Conv2d, norm: FrozenBatchNorm2d,
        geometry: Geometry, tape: Tape,
    ) -> Tensor:  # fmt: skip
        scale, shift = _affine(conv, norm)
        x, weight, bias = as_autocast(x, _scaled(conv, scale), shift)
        ctx.save_for_backward(x, weight)
        ctx.layers, ctx.geometry, ctx.tape = (conv, norm), geometry, tape
        with without_autocast(x):
            return forward_of(x, weight, bias, geometry)

    @staticmethod
    def backward(ctx: Any, b: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        conv, norm = ctx.layers
        for layer, record in folded_records(conv, norm, ctx.geometry, x, b, ctx.tape).items():
            ctx.tape.add(layer, record)
        grad = input_gradient_of(b, x, weight, ctx.geometry) if ctx.needs_input_grad[0] else None
        return grad, *[None] * 7


def folded_records(
    conv: nn.Conv2d, norm: FrozenBatchNorm2d, geometry: Geometry, x: Tensor, b: Tensor, tape: Tape,
    method: str | None = None,
) -> dict[nn.Module, Record]:  # fmt: skip
    """Form the records of both layers from the input of the first and the output gradient of the second."""
    x, b = full_precision(x), full_precision(b)
    weight = conv.weight.detach().to(x.dtype)
    scale, bias = _affine(conv, norm)[0].to(x.dtype), _bias(conv).to(x.dtype)
    sums = tape.sums(norm, b.sum((2, 3)))
    x, b = tape.even(conv, x), tape.even(conv, b)
    tape.freed += b.nbytes  # the norm's input, which is not kept
    method = method or method_for(geometry, x, b, weight, tape)
    offset = bias - norm.running_mean.to(x.dtype)
    if method.startswith("booked"):
        record = conv_record(conv, geometry, x, b * scale.view(-1, 1, 1), Tape(), method)
        products = (b * geometry.forward(x, weight, None)).sum((2, 3)).unflatten(0, (-1, geometry.per_unit)).sum(1)
    else:
        record = record_of(geometry, x, b, weight, None, method)
        assert isinstance(record, PerExampleGradients)
        gradient = record.gradients["weight"]
        last = "weight" in record.arrange
        own = weight.permute(0, 2, 3, 1) if last else weight
        products = _inner(gradient, own)
        gradient *= scale.view(1, -1, *[1] * (gradient.dim() - 2))
        if isinstance(conv, CentredConv2d):
            centre(conv, record, sums * scale)
    std = (norm.running_var + norm.eps).sqrt().to(x.dtype)
    of_norm = {"weight": (products + offset * sums) / std, "bias": sums}
    kept = {name: rows for name, rows in of_norm.items() if getattr(norm, name).requires_grad}
    return {conv: record, **({norm: PerExampleGradients(kept)} if kept else {})}


def _inner(gradients: Tensor, weight: Tensor) -> Tensor:
    """The product of every output channel's gradient with its weights, (n, p)."""
    return torch.einsum("npd,pd->np", gradients.flatten(2), weight.flatten(1))
