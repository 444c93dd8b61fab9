"""Plain autograd, one example at a time: slow, right for any module, and the oracle of the other engines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError
from .batches import batch_size, take_examples
from .checks import refuse_missing, trainable_parameters
from .fused import Groups, LossFunction, Weigh
from .rules.base import full_precision
from .units import Units


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
        found = {name: _plain(g) for name, g in zip(parameters, gradients, strict=True) if g is not None}
        refuse_missing(parameters, found)
        yield found


def _plain(gradient: Tensor) -> Tensor:
    """Return a gradient as a dense tensor in at least single precision: half would round past the clip norm."""
    return full_precision(gradient if gradient.layout == torch.strided else gradient.to_dense())


def unit_gradients(
    module: nn.Module, loss_function: LossFunction, batch: Any, units: Units | None
) -> Iterator[dict[str, Tensor]]:
    """Yield the mean gradient of one unit after the other; without ``units`` every example is one."""
    gradients = example_gradients(module, loss_function, batch)
    if units is None:
        yield from gradients
        return
    if batch_size(batch) != units.examples:
        raise ModelError(
            f"{batch_size(batch)} examples for units of {units.examples} in all: give the unit of every example"
        )
    for count in units.counts.tolist():
        own = [next(gradients) for _ in range(count)]
        yield {name: sum((one[name] for one in own[1:]), own[0][name]) / count for name in own[0]}


def per_sample_gradients(
    module: nn.Module, loss_function: LossFunction, batch: Any, units: Units | None = None
) -> dict[str, Tensor]:
    """Return the gradient of every example, or the mean one of every unit, {parameter name: (n, *shape)}."""
    found = list(unit_gradients(module, loss_function, batch, units))
    return {
        name: torch.stack([one[name] for one in found]) if found else p.new_zeros((0, *p.shape))
        for name, p in trainable_parameters(module).items()
    }


def clipped_sum(
    module: nn.Module,
    loss_function: LossFunction,
    batch: Any,
    weigh: Weigh,
    groups: Groups | None = None,
    units: Units | None = None,
) -> dict[str, Tensor]:
    """Return the sum over units (without ``units``, examples) of ``weigh(squared norms)[i, k]`` times part k of i."""
    return weighted_sum(module, unit_gradients(module, loss_function, batch, units), weigh, groups)


def weighted_sum(
    module: nn.Module,
    gradients_of_units: Iterable[dict[str, Tensor]],
    weigh: Weigh,
    groups: Groups | None = None,
) -> dict[str, Tensor]:
    """Return the sum of gradients that come one after the other, each part by the weight of its own squared norm.

    It takes the memory of one gradient.
    """
    total = {name: full_precision(torch.zeros_like(p)) for name, p in trainable_parameters(module).items()}
    for gradients in gradients_of_units:
        parts: dict[int, list[Tensor]] = {}
        for name, gradient in gradients.items():
            parts.setdefault(groups[name] if groups else 0, []).append(gradient.double().square().sum())
        (weights,) = weigh(torch.stack([torch.stack(parts[k]).sum() for k in sorted(parts)]).view(1, -1)).tolist()
        for name, gradient in gradients.items():
            weight = weights[groups[name] if groups else 0]
            if weight > 0.0:  # a gradient that is not finite has weight zero, and zero times infinity is not
                total[name].add_(gradient, alpha=weight)
    return total


def mean_gradient(
    module: nn.Module, loss_function: Callable[[Any, Any], Tensor], pieces: Iterable[Any], examples: int
) -> dict[str, Tensor]:
    """Return the mean gradient over the examples of *one* unit, by plain autograd, a piece of them at a time.

    Args:
        module, loss_function: As for ``clipped_gradient_sum``.
        pieces: Batches of the unit's examples, every example in one of them.
        examples: How many examples the unit has.

    Raises:
        ModelError: The pieces have another number of examples, or a trainable parameter got no gradient.
    """
    parameters = trainable_parameters(module)
    total: dict[str, Tensor] = {}
    seen = 0
    for piece in pieces:
        losses = loss_function(module, piece)
        seen += len(losses)
        if not losses.requires_grad:
            refuse_missing(parameters, {})
        gradients = torch.autograd.grad(losses.sum() / examples, list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                own = _plain(gradient)
                total[name] = total[name].add_(own) if name in total else own.clone()
        del losses, gradients
    if seen != examples:
        raise ModelError(f"a unit of {examples} examples came in pieces of {seen} in all: each must be in one of them")
    refuse_missing(parameters, total)
    return {name: total[name] for name in parameters}
