"""The default engine: one forward and one backward pass, per-example gradients formed layer by layer on the way.

For the duration of a pass every layer that has trainable parameters runs as an autograd function whose backward
returns the input's gradient only, and leaves the per-example parameter gradient, or the factors it is made of, on a
tape. The parameters themselves are inputs of these functions, so a layer whose input needs no gradient (the
one-to-one head of YOLO26 is fed detached features) is recorded all the same.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError
from .checks import named_layers, refuse_missing, trainable_parameters
from .rules import Record, Tape, fold, rule_for
from .rules.base import ConcatenatedGradients, PerExampleGradients, add_squares, without_autocast
from .units import Units

LossFunction = Callable[[Any, Any], Tensor]
# Makes the weights of a clipped sum, (n, groups), from the squared norms of every example's parts, (n, groups).
Weigh = Callable[[Tensor], Tensor]
Groups = Mapping[str, int]  # the group of every trainable parameter, from 0; without any, all are of group 0


@contextmanager
def recording(module: nn.Module, clips: bool = False, units: Units | None = None) -> Iterator[Tape]:
    """Run the module's trainable layers by their rules inside the block, and as they were after it."""
    tape = Tape(clips, units)
    patched: list[nn.Module] = []
    try:
        for layer in dict.fromkeys(layer for _, layer in named_layers(module)):
            if any(p is not None and p.requires_grad for p in layer._parameters.values()):
                rule = rule_for(layer)
                if rule is None or "forward" in layer.__dict__:
                    raise ModelError(f"no per-example gradient rule for this {type(layer).__name__}")
                layer.__dict__["forward"] = rule(layer, tape)
                patched.append(layer)
        fold(module, tape, patched)
        yield tape
    finally:
        for layer in patched:
            layer.__dict__.pop("forward", None)


def run(
    module: nn.Module,
    loss_function: LossFunction,
    batch: Any,
    parameters: dict[str, nn.Parameter],
    clips: bool = False,
    units: Units | None = None,
) -> tuple[int, dict[str, Record]]:
    """Do the pass; return the number of units and the record of every layer, by its name, in the module's order.

    Without ``units`` every example is one. With them a record is of the mean gradients of the units.
    """
    names: dict[nn.Module, str] = {}

    def name_of(layer: nn.Module) -> str:
        if not names:
            for name, known in named_layers(module):
                names.setdefault(known, name)
        return names[layer]

    with _uncollected(), recording(module, clips, units) as tape:
        losses = loss_function(module, batch)
        _check_losses(losses, units)
        examples = len(losses)
        tape.check_count = lambda layer, found: _check_count(name_of(layer), found, examples)
        losses = losses if units is None else units.shares(losses)
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
    n = examples if units is None else len(units)
    taken = tape.take(lambda layer, found: _check_count(name_of(layer), found, n))
    found = {name_of(layer): record for layer, record in taken.items()}
    return n, {name: found[name] for name in names.values() if name in found}


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


def _check_losses(losses: Tensor, units: Units | None = None) -> None:
    if losses.dim() != 1:
        raise ModelError(
            f"the loss function returned shape {tuple(losses.shape)}: it must be one loss an example, (n,)"
        )
    if units is not None and len(losses) != units.examples:
        raise ModelError(f"{len(losses)} losses for units of {units.examples} in all: give the unit of every example")


def per_sample_gradients(
    module: nn.Module, loss_function: LossFunction, batch: Any, units: Units | None = None
) -> dict[str, Tensor]:
    """Return the gradient of every example, or the mean one of every unit, {parameter name: (n, *shape)}."""
    parameters = trainable_parameters(module)
    n, records = run(module, loss_function, batch, parameters, units=units)
    if n == 0:
        return {name: p.new_zeros((0, *p.shape)) for name, p in parameters.items()}
    found: dict[str, Tensor] = {}
    with without_autocast(next(iter(parameters.values()))):
        for layer_name, record in records.items():
            for name, gradient in record.per_example().items():
                _check_count(layer_name, gradient, n)
                found[_full(layer_name, name)] = gradient
    refuse_missing(parameters, found)
    return {name: found[name] for name in parameters}


def clipped_sum(
    module: nn.Module,
    loss_function: LossFunction,
    batch: Any,
    weigh: Weigh,
    groups: Groups | None = None,
    units: Units | None = None,
) -> dict[str, Tensor]:
    """Return the sum over units of ``weigh(squared norms)[i, k]`` times the part of mean gradient i in group k.

    Without ``units`` every example is one. A unit with a part that is not finite is left out: its weights must be zero,
    and zero times infinity is not.
    """
    parameters = trainable_parameters(module)
    n, records = run(module, loss_function, batch, parameters, clips=True, units=units)
    if n == 0:
        return {name: torch.zeros_like(p) for name, p in parameters.items()}
    refuse_missing(parameters, {name for name in parameters if name.rpartition(".")[0] in records})
    with without_autocast(next(iter(parameters.values()))):
        found = _weighted(records, n, weigh, groups)
    refuse_missing(parameters, found)
    return {name: found[name] for name in parameters}


def _weighted(records: dict[str, Record], n: int, weigh: Weigh, groups: Groups | None = None) -> dict[str, Tensor]:
    parts = [_joined(group, n) for group in _grouped(records, groups)]
    squared = torch.stack([_squared_norms(part, n) for part in parts], 1)
    weights = weigh(squared)
    dropped = ~torch.isfinite(squared).all(1)
    if _asks_for_nothing(squared.device) or bool(dropped.any()):
        drop: Callable[[Record], Record] = lambda piece: piece.without(dropped)  # noqa: E731
    else:
        drop = lambda piece: piece  # noqa: E731
    return {
        _full(layer_name, name): total
        for k, part in enumerate(parts)
        for layer_name, piece in part.items()
        for name, total in drop(piece).weighted_sum(weights[:, k]).items()
    }


def _asks_for_nothing(device: torch.device) -> bool:
    """Whether what is zero anyway is set to zero again, since asking costs more: on a GPU the answer is waited for.

    The values are the same either way.
    """
    return device.type != "cpu"


def _grouped(records: dict[str, Record], groups: Groups | None) -> list[dict[str, Record]]:
    """Return the records of every group; all parameters of a layer must be in one."""
    if groups is None:
        return [records]
    of_layer = {name.rpartition(".")[0]: group for name, group in groups.items()}
    found: list[dict[str, Record]] = [{} for _ in range(max(groups.values()) + 1)]
    for layer_name, record in records.items():
        found[of_layer[layer_name]][layer_name] = record
    return found


def _joined(records: dict[str, Record], n: int) -> dict[str | None, Record]:
    """Return the records by layer, without their small gradients, and those together, by ``None``."""
    small = PerExampleGradients({})
    parts: dict[str | None, Record] = {}
    for layer_name, record in records.items():
        if isinstance(record, PerExampleGradients):
            for rows in record.gradients.values():
                _check_count(layer_name, rows, n)
            record, few = record.parted()
            small.gradients |= {_full(layer_name, name): rows for name, rows in few.gradients.items()}
            small.arrange |= {_full(layer_name, name): arrange for name, arrange in few.arrange.items()}
            if not record.gradients:
                continue
        parts[layer_name] = record
    return {**parts, None: ConcatenatedGradients(small)} if small.gradients else parts


def _squared_norms(parts: dict[str | None, Record], n: int) -> Tensor:
    """Return the squared norm of every example's whole gradient, (n,), in double precision."""
    roots: list[Tensor] = []
    norms: list[Tensor] = []
    for layer_name, part in parts.items():
        if isinstance(part, PerExampleGradients):
            roots += part.roots()
        else:
            norms.append(part.squared_norms())
            _check_count(layer_name or "", norms[-1], n)
    if roots:
        norms.append(add_squares(roots))
    return torch.stack(norms).sum(0)


def _full(layer_name: str | None, name: str) -> str:
    return f"{layer_name}.{name}" if layer_name else name


def _check_count(layer_name: str, gradients: Tensor, n: int) -> None:
    if len(gradients) != n:
        raise ModelError(
            f"layer {layer_name!r} saw a batch of {len(gradients)} for {n} losses: "
            "its first dimension must be the examples"
        )
