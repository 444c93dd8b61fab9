"""The default engine: one forward and one backward pass, per-example gradients formed layer by layer on the way.

For the duration of a pass every layer that has trainable parameters runs as an autograd function whose backward
returns the input's gradient only, and leaves the per-example parameter gradient, or the factors it is made of, on a
tape. The parameters themselves are inputs of these functions, so a layer whose input needs no gradient (the
one-to-one head of YOLO26 is fed detached features) is recorded all the same.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError
from .checks import refuse_missing, trainable_parameters
from .layers import Record, Tape, rule_for
from .layers.base import Instantiated, Joined, Named, wide, without_autocast

LossFunction = Callable[[Any, Any], Tensor]

_FEW = 4096  # entries of a gradient that is joined with others


@contextmanager
def recording(module: nn.Module) -> Iterator[Tape]:
    """Run the module's trainable layers by their rules inside the block, and as they were after it."""
    tape = Tape()
    patched: list[nn.Module] = []
    try:
        for layer in module.modules():
            if any(p.requires_grad for p in layer.parameters(recurse=False)):
                rule = rule_for(layer)
                if rule is None or "forward" in layer.__dict__:
                    raise ModelError(f"no per-example gradient rule for this {type(layer).__name__}")
                layer.__dict__["forward"] = rule(layer, tape)
                patched.append(layer)
        yield tape
    finally:
        for layer in patched:
            layer.__dict__.pop("forward", None)


def run(module: nn.Module, loss_function: LossFunction, batch: Any) -> tuple[int, dict[nn.Module, Record]]:
    """Do the pass; return the number of examples and one record a layer."""
    parameters = trainable_parameters(module)
    with _uncollected(), recording(module) as tape:
        losses = loss_function(module, batch)
        _check_losses(losses)
        if len(losses) == 0:
            return 0, {}
        if not losses.requires_grad:
            refuse_missing(parameters, {})
        with without_autocast(losses):
            leaked = torch.autograd.grad(losses.sum(), list(parameters.values()), allow_unused=True)
    for name, gradient in zip(parameters, leaked, strict=True):
        if gradient is not None:
            raise ModelError(
                f"parameter {name!r} is used outside its own layer, where its per-example gradient is not seen: "
                "call the layer instead of reading the parameter"
            )
    names = {layer: name for name, layer in module.named_modules()}
    return len(losses), tape.take(lambda layer, rows: _check_rows(names[layer], rows, len(losses)))


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keep Python's cycle collector off inside the block.

    A pass makes thousands of objects that die with it, and would have every object of the process looked at meanwhile.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _check_losses(losses: Tensor) -> None:
    if losses.dim() != 1:
        raise ModelError(
            f"the loss function returned shape {tuple(losses.shape)}: it must be one loss an example, (n,)"
        )


def _named(module: nn.Module, records: dict[nn.Module, Any]) -> Iterator[tuple[str, str, Any]]:
    """Yield (layer prefix, layer name, value) in the module's order."""
    for layer_name, layer in module.named_modules():
        if layer in records:
            yield (f"{layer_name}." if layer_name else ""), layer_name, records[layer]


def per_sample_gradients(module: nn.Module, loss_function: LossFunction, batch: Any) -> dict[str, Tensor]:
    """Return every example's gradient, {parameter name: (n, *shape)}."""
    parameters = trainable_parameters(module)
    n, records = run(module, loss_function, batch)
    if n == 0:
        return {name: p.new_zeros((0, *p.shape)) for name, p in parameters.items()}
    found: dict[str, Tensor] = {}
    with without_autocast(next(iter(parameters.values()))):
        for prefix, layer_name, record in _named(module, records):
            for name, gradient in record.per_example().items():
                _check_rows(layer_name, gradient, n)
                found[prefix + name] = gradient
    refuse_missing(parameters, found)
    return {name: found[name] for name in parameters}


def clipped_sum(
    module: nn.Module, loss_function: LossFunction, batch: Any, weigh: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Return the sum over examples of ``weigh(squared norms)[i]`` times gradient i, {parameter name: shape}.

    An example whose gradient is not finite is left out: its weight must be zero, and zero times infinity is not.
    """
    parameters = trainable_parameters(module)
    n, records = run(module, loss_function, batch)
    if n == 0:
        return {name: torch.zeros_like(p) for name, p in parameters.items()}
    with without_autocast(next(iter(parameters.values()))):
        found = _weighted(_joined(module, records, n), n, weigh)
    refuse_missing(parameters, found)
    return {name: found[name] for name in parameters}


def _weighted(parts: list[tuple[str, Record]], n: int, weigh: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    norms = []
    for layer_name, part in parts:
        rows = part.squared_norms()
        _check_rows(layer_name, rows, n)
        norms.append(rows.to(wide(rows)))
    squared = torch.stack(norms).sum(0)
    weights = weigh(squared)
    finite = torch.isfinite(squared)
    if not bool(finite.all()):
        parts = [(layer_name, part.without(~finite)) for layer_name, part in parts]
    found: dict[str, Tensor] = {}
    for _, part in parts:
        found |= part.weighted_sum(weights)
    return found


def _joined(module: nn.Module, records: dict[nn.Module, Record], n: int) -> list[tuple[str, Record]]:
    """Return the records under the parameters' full names; gradients of few entries are joined to one tensor.

    A detector has hundreds of small parameters, and a handful of calls for each would cost more than the arithmetic.
    """
    small: dict[str, Instantiated] = {}
    parts: list[tuple[str, Record]] = []
    for prefix, layer_name, record in _named(module, records):
        if not isinstance(record, Instantiated):
            parts.append((layer_name, Named(prefix, record)))
            continue
        for name, rows in record.gradients.items():
            _check_rows(layer_name, rows, n)
            arrange = {prefix + name: record.arrange[name]} if name in record.arrange else None
            one = Instantiated({prefix + name: rows}, arrange)
            if rows[0].numel() <= _FEW:
                small[prefix + name] = one
            else:
                parts.append((layer_name, one))
    return [*parts, ("", Joined(small))] if small else parts


def _check_rows(layer_name: str, rows: Tensor, n: int) -> None:
    if len(rows) != n:
        raise ModelError(
            f"layer {layer_name!r} saw a batch of {len(rows)} for {n} losses: its first dimension must be the examples"
        )
