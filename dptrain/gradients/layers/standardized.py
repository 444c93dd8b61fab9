"""Convolutions whose filters are a function of the trained weight: the plain rule, then the function's derivative."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...layers import StandardizedConv2d
from .base import Forward, Record, Tape, as_autocast, register, squared_norm, without_autocast
from .conv import conv_record, padded_geometry
from .conv_forms import Geometry

_AT_ONCE = 8 << 20  # bytes of gradients mapped at a time where only their norms are wanted


class _PulledBack:
    """The record of the filters' gradients, read as one of the raw weight's.

    The derivative is one linear map for all examples: the weighted sum is taken first and mapped once, and only the
    norms need every example's own gradient mapped.
    """

    def __init__(self, module: StandardizedConv2d, inner: Record) -> None:
        self.module, self.inner = module, inner

    def per_example(self) -> dict[str, Tensor]:
        return self._mapped(self.inner.per_example())

    def squared_norms(self) -> Tensor:
        found = self.inner.per_example()
        rows = found.pop("weight")
        norms = torch.cat([self._norms(some) for some in rows.split(max(1, _AT_ONCE // self.module.weight.nbytes))])
        return torch.stack([norms, *(squared_norm(g) for g in found.values())]).sum(0)

    def _norms(self, rows: Tensor) -> Tensor:
        # The mapped sum rounds off a few units of |gradient| * slope in its own way. As for booked convolutions, more
        # than that is added, so that the norm errs upwards and the clipped gradient never exceeds the clip norm.
        slack = 4 * torch.finfo(rows.dtype).eps * self.module.slope() ** 2
        return squared_norm(self.module.pull_back(rows)) + slack * squared_norm(rows)

    def weighted_sum(self, weights: Tensor) -> dict[str, Tensor]:
        total = {name: tensor.unsqueeze(0) for name, tensor in self.inner.weighted_sum(weights).items()}
        return {name: tensor[0] for name, tensor in self._mapped(total).items()}

    def without(self, dropped: Tensor) -> _PulledBack:
        return _PulledBack(self.module, self.inner.without(dropped))

    def _mapped(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**gradients, "weight": self.module.pull_back(gradients["weight"])}


class _StandardizedConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        module: StandardizedConv2d,
        geometry: Geometry,
        tape: Tape,
    ) -> Tensor:
        # The raw weight is an input, so that backward runs wherever it trains.
        x, filters, bias = as_autocast(x, module.filters(), bias)
        ctx.save_for_backward(x)  # the filters are made again: they would outweigh the maps of small images
        ctx.module, ctx.geometry, ctx.tape = module, geometry, tape
        with without_autocast(x):
            return geometry.forward(x, filters, bias)

    @staticmethod
    def backward(ctx: Any, b: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        module, geometry, tape = ctx.module, ctx.geometry, ctx.tape
        record = conv_record(module, geometry, x, b, tape)
        tape.add(module, _PulledBack(module, record) if module.weight.requires_grad else record)
        grad = geometry.input_gradient(b, x, module.filters().to(x.dtype)) if ctx.needs_input_grad[0] else None
        return grad, None, None, None, None, None


@register(StandardizedConv2d)
def standardized_conv2d(module: StandardizedConv2d, tape: Tape) -> Forward:
    geometry, pad = padded_geometry(module, tape)

    def forward(x: Tensor) -> Tensor:
        return _StandardizedConv.apply(pad(x), module.weight, module.bias, module, geometry, tape)

    return forward
