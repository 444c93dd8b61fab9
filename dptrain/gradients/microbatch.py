"""The oracle: plain autograd, one example at a time. Slow, and nothing to get wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError
from .batches import batch_size, take_examples
from .checks import refuse_missing, trainable_parameters
from .fused import Groups, LossFunction, Weigh


def example_gradients(module: nn.Module, loss_function: LossFunction, batch: Any) -> Iterator[dict[str, Tensor]]:
    """Yield the gradient of one example after the other, {parameter name: shape}."""
    parameters = trainable_parameters(module)
    for index in range(batch_size(batch)):
        losses = loss_function(module, take_examples(batch, index, index + 1))
        if losses.shape != (1,):
            raise ModelError(f"the loss of one example has shape {tuple(losses.shape)}: it must be (1,)")
        if not losses.requires_grad:
            refuse_missing(parameters, {})
        gradients = torch.autograd.grad(losses.sum(), list(parameters.values()), allow_unused=True)
        found = {name: g for name, g in zip(parameters, gradients, strict=True) if g is not None}
        refuse_missing(parameters, found)
        yield found


def per_sample_gradients(module: nn.Module, loss_function: LossFunction, batch: Any) -> dict[str, Tensor]:
    """Return every example's gradient, {parameter name: (n, *shape)}."""
    rows = list(example_gradients(module, loss_function, batch))
    return {
        name: torch.stack([row[name] for row in rows]) if rows else p.new_zeros((0, *p.shape))
        for name, p in trainable_parameters(module).items()
    }


def clipped_sum(
    module: nn.Module, loss_function: LossFunction, batch: Any, weigh: Weigh, groups: Groups | None = None
) -> dict[str, Tensor]:
    """Return the sum over examples of ``weigh(squared norms)[i, k]`` times the part of gradient i that is of group k.

    It takes the memory of one gradient.
    """
    total = {name: torch.zeros_like(p) for name, p in trainable_parameters(module).items()}
    for gradients in example_gradients(module, loss_function, batch):
        parts: dict[int, list[Tensor]] = {}
        for name, gradient in gradients.items():
            parts.setdefault(groups[name] if groups else 0, []).append(gradient.double().square().sum())
        (weights,) = weigh(torch.stack([torch.stack(parts[k]).sum() for k in sorted(parts)]).view(1, -1)).tolist()
        for name, gradient in gradients.items():
            weight = weights[groups[name] if groups else 0]
            if weight > 0.0:  # a gradient that is not finite has weight zero, and zero times infinity is not
                total[name].add_(gradient, alpha=weight)
    return total
