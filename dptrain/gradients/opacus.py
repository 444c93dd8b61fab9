"""Opacus's GradSampleModule behind the same interface, to compare with."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import FrozenBatchNorm2d
from .checks import refuse_missing, trainable_parameters
from .fused import LossFunction, _check_losses


def _frozen_batch_norm_rule(
    layer: FrozenBatchNorm2d, activations: list[Tensor], backprops: Tensor
) -> dict[nn.Parameter, Tensor]:
    positions = tuple(range(2, backprops.dim()))
    shape = (1, -1, *[1] * len(positions))
    normalised = activations[0] - layer.running_mean.view(shape)
    normalised = normalised * torch.rsqrt(layer.running_var + layer.eps).view(shape)
    return {layer.weight: (backprops * normalised).sum(positions), layer.bias: backprops.sum(positions)}


@contextmanager
def _out_of_place(module: nn.Module) -> Iterator[None]:
    """Turn in-place activations off: they would overwrite what Opacus's hooks hand on."""
    changed = [layer for layer in module.modules() if getattr(layer, "inplace", False) is True]
    for layer in changed:
        layer.inplace = False
    try:
        yield
    finally:
        for layer in changed:
            layer.inplace = True


def per_sample_gradients(module: nn.Module, loss_function: LossFunction, batch: Any) -> dict[str, Tensor]:
    """Return every example's gradient, {parameter name: (n, *shape)}."""
    from opacus.grad_sample import GradSampleModule

    GradSampleModule.GRAD_SAMPLERS.setdefault(FrozenBatchNorm2d, _frozen_batch_norm_rule)
    parameters = trainable_parameters(module)
    before = {name: p.grad for name, p in parameters.items()}
    with _out_of_place(module), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = GradSampleModule(module, loss_reduction="sum", strict=False)
        try:
            losses = loss_function(module, batch)
            _check_losses(losses)
            if len(losses) == 0:
                return {name: p.new_zeros((0, *p.shape)) for name, p in parameters.items()}
            losses.sum().backward()
            found = {
                name: _one_pass(p.grad_sample) for name, p in parameters.items() if getattr(p, "grad_sample", None) is not None
            }
        finally:
            wrapped._close()
            for name, p in module.named_parameters():
                p.__dict__.pop("grad_sample", None)
                p.__dict__.pop("_forward_counter", None)
                if name in before:
                    p.grad = before[name]
    refuse_missing(parameters, found)
    return found


def _one_pass(grad_sample: Tensor | list[Tensor]) -> Tensor:
    return grad_sample if isinstance(grad_sample, Tensor) else torch.stack(grad_sample).sum(0)


def clipped_sum(
    module: nn.Module, loss_function: LossFunction, batch: Any, weigh: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Return the sum over examples of ``weigh(squared norms)[i]`` times gradient i."""
    gradients = per_sample_gradients(module, loss_function, batch)
    squared = torch.stack([g.flatten(1).double().square().sum(1) for g in gradients.values()]).sum(0)
    weights = weigh(squared)
    dropped = ~torch.isfinite(squared)
    return {
        name: (weights.to(g.dtype) @ g.masked_fill(dropped.view(-1, *[1] * (g.dim() - 1)), 0.0).flatten(1)).view(g.shape[1:])
        for name, g in gradients.items()
    }
