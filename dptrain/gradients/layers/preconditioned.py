"""Convolutions that train in other coordinates: the plain rule, with the input and the output gradient in those."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...layers import PreconditionedConv2d
from .base import Forward, Tape, as_autocast, full_precision, register, without_autocast
from .conv import conv_record, padded_geometry
from .conv_forms import Geometry


class _PreconditionedConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        module: PreconditionedConv2d,
        geometry: Geometry,
        tape: Tape,
    ) -> Tensor:
        # What trains is an input, so that backward runs wherever it does.
        x, filters, shift = as_autocast(x, module.filters(), module.shift())
        ctx.save_for_backward(x)  # the filters are made again: they would outweigh the maps of small images
        ctx.module, ctx.geometry, ctx.tape = module, geometry, tape
        with without_autocast(x):
            return geometry.forward(x, filters, shift)

    @staticmethod
    def backward(ctx: Any, b: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        module, geometry, tape = ctx.module, ctx.geometry, ctx.tape
        inside, outside = full_precision(x), _mix(module.left.t(), full_precision(b))
        if module.weight.requires_grad:
            inside = _mix(module.right, inside)
        tape.add(module, conv_record(module, geometry, inside, outside, tape))
        grad = geometry.input_gradient(b, x, module.filters().to(x.dtype)) if ctx.needs_input_grad[0] else None
        return grad, None, None, None, None, None, None


def _mix(matrix: Tensor, x: Tensor) -> Tensor:
    """Return the channels of every pixel times a matrix."""
    return torch.matmul(matrix.to(x.dtype), x.flatten(2)).view_as(x)


@register(PreconditionedConv2d)
def preconditioned_conv2d(module: PreconditionedConv2d, tape: Tape) -> Forward:
    geometry, pad = padded_geometry(module, tape)

    def forward(x: Tensor) -> Tensor:
        return _PreconditionedConv.apply(pad(x), module.weight, module.bias, module, geometry, tape)

    return forward
