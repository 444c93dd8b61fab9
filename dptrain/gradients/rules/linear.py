"""Linear layers, over any number of positions an example."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import (
    Forward,
    PerExampleGradients,
    Record,
    Tape,
    as_autocast,
    full_precision,
    register,
    squared_norm,
    weigh,
    zero_rows,
)


class GhostLinearRecord:
    """A weight gradient B U^T of each example held as its factors (Bu, Mao and Xu 2022; Bu et al. 2023).

    ``b`` is (n, p, T) and ``u`` is (n, d, T); the norm is <U^T U, B^T B>, which never forms the (n, p, d) gradients,
    and the weighted sum is one matrix product over examples and positions together.
    """

    def __init__(self, module: Any, b: Tensor, u: Tensor, bias: Tensor | None) -> None:
        self.module, self.b, self.u, self.bias = module, b, u, bias

    def squared_norms(self) -> Tensor:
        # In double precision: the sum can cancel, and products over thousands of channels round by 1e-4 in single.
        b, u = self.b.double(), self.u.double()
        outer, inner = b.transpose(1, 2) @ b, u.transpose(1, 2) @ u
        # What the weighted sum below rounds off is a few units of |B|^2 |U|^2 (Cauchy-Schwarz). It is added, so that
        # the norm errs upwards and the clipped gradient never exceeds the clip norm.
        trace = outer.diagonal(dim1=1, dim2=2).sum(1) * inner.diagonal(dim1=1, dim2=2).sum(1)
        norms = outer.mul_(inner).sum((1, 2)).clamp_(min=0.0) + 4 * torch.finfo(self.b.dtype).eps * trace
        return norms if self.bias is None else norms + squared_norm(self.bias)

    def weighted_sum(self, weights: Tensor) -> dict[str, Tensor]:
        scaled = self.b * weights.to(self.b.dtype).view(-1, 1, 1)
        p, d = self.b.shape[1], self.u.shape[1]
        total = scaled.transpose(0, 1).reshape(p, -1) @ self.u.transpose(1, 2).reshape(-1, d)
        sums = {"weight": total.view(self.module.weight.shape)}
        if self.bias is not None:
            sums["bias"] = weigh(weights, self.bias)
        return sums

    def per_example(self) -> dict[str, Tensor]:
        gradients = {"weight": (self.b @ self.u.transpose(1, 2)).view(-1, *self.module.weight.shape)}
        if self.bias is not None:
            gradients["bias"] = self.bias
        return gradients

    def without(self, dropped: Tensor) -> GhostLinearRecord:
        bias = None if self.bias is None else zero_rows(self.bias, dropped)
        return GhostLinearRecord(self.module, zero_rows(self.b, dropped), zero_rows(self.u, dropped), bias)


def ghost_pays(positions: int, outputs: int, inputs: int) -> bool:
    """Return whether the two T x T products are cheaper to hold than the gradient (Bu, Mao and Xu 2022, section 4)."""
    return 2 * positions * positions <= outputs * inputs


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, module: nn.Linear, tape: Tape) -> Tensor:
        x, weight, bias = as_autocast(x, weight, bias)
        ctx.save_for_backward(x, weight)
        ctx.module, ctx.tape = module, tape
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, b: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        ctx.tape.add(ctx.module, linear_record(ctx.module, x, b, ctx.tape))
        return b @ weight if ctx.needs_input_grad[0] else None, None, None, None, None


def linear_record(module: nn.Linear, x: Tensor, b: Tensor, tape: Tape | None = None) -> Record:
    tape = tape or Tape()
    x, b = tape.even(module, full_precision(x)), tape.even(module, full_precision(b))
    n = len(x) // tape.per_unit  # the examples of a unit are more positions of one example
    u = x.reshape(n, -1, x.shape[-1]).transpose(1, 2)
    b = b.reshape(n, -1, b.shape[-1]).transpose(1, 2)
    bias = b.sum(2) if module.bias is not None and module.bias.requires_grad else None
    if module.weight.requires_grad and ghost_pays(b.shape[2], b.shape[1], u.shape[1]):
        return GhostLinearRecord(module, b, u, bias)
    gradients = {"weight": b @ u.transpose(1, 2)} if module.weight.requires_grad else {}
    return PerExampleGradients(gradients if bias is None else {**gradients, "bias": bias})


@register(nn.Linear)
def linear(module: nn.Linear, tape: Tape) -> Forward:
    return lambda x: _Linear.apply(x, module.weight, module.bias, module, tape)
