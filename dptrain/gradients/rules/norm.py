"""GroupNorm, LayerNorm and batch normalisation by fixed statistics.

The affine parameters of a norm layer are few, so their per-example gradients are always instantiated: with xhat the
normalised input and b the gradient of the output, the gradient of the scale is the sum of b * xhat over an example's
positions and that of the shift is the sum of b.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import ModelError
from ..modules import FrozenBatchNorm2d
from .base import Forward, PerExampleGradients, Tape, full_precision, register


def _record(module: nn.Module, tape: Tape, **gradients: Tensor) -> None:
    kept = {name: g for name, g in gradients.items() if getattr(module, name).requires_grad}
    tape.add(module, PerExampleGradients({name: tape.sums(module, g) for name, g in kept.items()}))


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, module: nn.GroupNorm, tape: Tape) -> Tensor:
        n, c = x.shape[:2]
        x = x.contiguous().to(weight.dtype)  # as autocast does: statistics over a map want single precision
        positions = x.shape[2:].numel()
        out, mean, rstd = torch.native_group_norm(x, weight, bias, n, c, positions, module.num_groups, module.eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.module, ctx.tape = module, tape
        return out

    @staticmethod
    def backward(ctx: Any, b: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, mean, rstd = ctx.saved_tensors
        module, b = ctx.module, b.contiguous()
        n, c = x.shape[:2]
        positions = x.shape[2:].numel()
        # One example of n * c channels in n * groups groups is the same function, and has a scale and a shift for each.
        grad, scale, shift = torch.ops.aten.native_group_norm_backward(
            b.view(1, n * c, -1), x.view(1, n * c, -1), mean.view(1, -1), rstd.view(1, -1),
            weight.expand(n, c).flatten(), 1, n * c, positions, n * module.num_groups,
            [ctx.needs_input_grad[0], True, True],
        )  # fmt: skip
        ctx.tape.freed += x.nbytes
        scale, shift = full_precision(scale).view(n, c), full_precision(shift).view(n, c)
        _record(module, ctx.tape, weight=scale, bias=shift)
        return None if grad is None else grad.view(x.shape), None, None, None, None


@register(nn.GroupNorm)
def group_norm(module: nn.GroupNorm, tape: Tape) -> Forward:
    return lambda x: _GroupNorm.apply(x, module.weight, module.bias, module, tape)


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, module: nn.LayerNorm, tape: Tape) -> Tensor:
        shape = list(module.normalized_shape)
        out, mean, rstd = torch.native_layer_norm(x, shape, weight, bias, module.eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.module, ctx.tape = module, tape
        return out

    @staticmethod
    def backward(ctx: Any, b: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, bias, mean, rstd = ctx.saved_tensors
        module, shape = ctx.module, list(ctx.module.normalized_shape)
        full_b = full_precision(b)
        normalised = (full_precision(x) - mean) * rstd
        middle = tuple(range(1, x.dim() - len(shape)))

        def reduce(values: Tensor) -> Tensor:
            return values.sum(middle) if middle else values

        gradients = {"weight": reduce(full_b * normalised)}
        if bias is not None:
            gradients["bias"] = reduce(full_b)
        _record(module, ctx.tape, **gradients)
        if not ctx.needs_input_grad[0]:
            return None, None, None, None, None
        grad, _, _ = torch.ops.aten.native_layer_norm_backward(
            b.contiguous(), x, shape, mean, rstd, weight, bias, [True, False, False]
        )
        return grad, None, None, None, None


@register(nn.LayerNorm)
def layer_norm(module: nn.LayerNorm, tape: Tape) -> Forward:
    return lambda x: _LayerNorm.apply(x, module.weight, module.bias, module, tape)


class _FrozenBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, module: Any, tape: Tape) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.module, ctx.tape = module, tape
        return F.batch_norm(x, module.running_mean, module.running_var, weight, bias, False, 0.0, module.eps)

    @staticmethod
    def backward(ctx: Any, b: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        module, (n, c) = ctx.module, x.shape[:2]
        # One example of n * c channels is the same function, and has a scale and a shift for each.
        grad, scale, shift = torch.ops.aten.native_batch_norm_backward(
            b.reshape(1, n * c, -1), x.reshape(1, n * c, -1), weight.expand(n, c).flatten(),
            module.running_mean.repeat(n), module.running_var.repeat(n), None, None, False, module.eps,
            [ctx.needs_input_grad[0], True, True],
        )  # fmt: skip
        ctx.tape.freed += x.nbytes
        scale, shift = full_precision(scale).view(n, c), full_precision(shift).view(n, c)
        _record(module, ctx.tape, weight=scale, bias=shift)
        return None if grad is None else grad.view(x.shape), None, None, None, None


@register(FrozenBatchNorm2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
def frozen_batch_norm(module: Any, tape: Tape) -> Forward:
    if module.training and not isinstance(module, FrozenBatchNorm2d):
        raise ModelError(f"{type(module).__name__} in train mode mixes the examples of a batch: freeze it")
    return lambda x: _FrozenBatchNorm.apply(x, module.weight, module.bias, module, tape)
