"""What a layer rule is, and the tape that its records go to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Record(Protocol):
    """The per-example gradients of one layer in one forward pass, in whatever form is cheapest to hold.

    The keys are the names of the layer's own trainable parameters ("weight", "bias"); n is the number of examples.
    """

    def squared_norms(self) -> Tensor:
        """Return the squared norm of every example's gradient over all of the layer's parameters, shape (n,)."""

    def weighted_sum(self, weights: Tensor) -> dict[str, Tensor]:
        """Return the sum over examples of ``weights[i]`` times gradient i, each shaped as its parameter."""

    def per_example(self) -> dict[str, Tensor]:
        """Return every example's gradient, each of shape (n, *parameter)."""

    def without(self, dropped: Tensor) -> Record:
        """Return the record with the gradients of the examples where ``dropped`` is true, shape (n,), set to zero."""


@dataclass
class Tape:
    """The records of one backward pass, by the layer that made them; a layer used k times has k records.

    Attributes:
        records: By layer.
        freed: Bytes of feature maps that the pass is done with.
        held: Bytes of per-example gradients that are kept in their place; they are not let outgrow the maps.
    """

    records: dict[nn.Module, list[Record]] = field(default_factory=dict)
    freed: int = 0
    held: int = 0

    def add(self, module: nn.Module, record: Record) -> None:
        self.records.setdefault(module, []).append(record)

    def take(self, check_rows: Callable[[nn.Module, Tensor], None]) -> dict[nn.Module, Record]:
        """Return one record a layer, and forget them: what stays on the tape would keep the graph alive with it.

        The gradient of a layer that was used several times is the sum over its uses. Each use is given to
        ``check_rows`` before: in a sum, one row would spread over all examples.
        """
        taken: dict[nn.Module, Record] = {}
        for module, records in self.records.items():
            taken[module] = records[0] if len(records) == 1 else _sum(module, records, check_rows)
        self.records.clear()
        return taken


Forward = Callable[..., Tensor]


class Rule(Protocol):
    """Make the forward function that stands in for ``module.forward`` and records into ``tape`` on backward."""

    def __call__(self, module: Any, tape: Tape) -> Forward: ...


_RULES: dict[type[nn.Module], Rule] = {}


def register(*kinds: type[nn.Module]) -> Callable[[Rule], Rule]:
    """Register a rule for layer kinds."""

    def decorate(rule: Rule) -> Rule:
        for kind in kinds:
            _RULES[kind] = rule
        return rule

    return decorate


def rule_for(module: nn.Module) -> Rule | None:
    """Return the rule of a module's exact type, or None."""
    return _RULES.get(type(module))


def registered_rules() -> tuple[type[nn.Module], ...]:
    """Return the layer kinds that have a rule."""
    return tuple(_RULES)


class Instantiated:
    """Per-example gradients held as tensors of shape (n, *parameter).

    ``arrange`` turns (m, ...) in the order in which a gradient was computed into (m, *parameter), where that differs.
    """

    def __init__(self, gradients: dict[str, Tensor], arrange: dict[str, Callable[[Tensor], Tensor]] | None = None):
        self.gradients, self.arrange = gradients, arrange or {}

    def squared_norms(self) -> Tensor:
        norms = [squared_norm(g) for g in self.gradients.values()]
        return norms[0] if len(norms) == 1 else torch.stack(norms).sum(0)

    def weighted_sum(self, weights: Tensor) -> dict[str, Tensor]:
        return {name: self.arranged(name, weigh(weights, g).unsqueeze(0))[0] for name, g in self.gradients.items()}

    def per_example(self) -> dict[str, Tensor]:
        return {name: self.arranged(name, g) for name, g in self.gradients.items()}

    def without(self, dropped: Tensor) -> Instantiated:
        return Instantiated({name: zero_rows(g, dropped) for name, g in self.gradients.items()}, self.arrange)

    def arranged(self, name: str, rows: Tensor) -> Tensor:
        return self.arrange[name](rows) if name in self.arrange else rows


class Joined:
    """Small per-example gradients of many parameters, side by side in one (n, entries) tensor."""

    def __init__(self, parts: dict[str, Instantiated], rows: Tensor | None = None) -> None:
        self.parts = parts
        self.rows = (
            torch.cat([part.gradients[name].flatten(1) for name, part in parts.items()], 1) if rows is None else rows
        )

    def squared_norms(self) -> Tensor:
        return squared_norm(self.rows)

    def weighted_sum(self, weights: Tensor) -> dict[str, Tensor]:
        return {name: rows[0] for name, rows in self._split(weigh(weights, self.rows).unsqueeze(0)).items()}

    def per_example(self) -> dict[str, Tensor]:
        return self._split(self.rows)

    def without(self, dropped: Tensor) -> Joined:
        return Joined(self.parts, zero_rows(self.rows, dropped))

    def _split(self, rows: Tensor) -> dict[str, Tensor]:
        shapes = {name: part.gradients[name].shape[1:] for name, part in self.parts.items()}
        pieces = rows.split([shape.numel() for shape in shapes.values()], 1)
        return {
            name: self.parts[name].arranged(name, piece.reshape(-1, *shape))
            for (name, shape), piece in zip(shapes.items(), pieces, strict=True)
        }


class Named:
    """A layer's record under the full names of its parameters."""

    def __init__(self, prefix: str, record: Record) -> None:
        self.prefix, self.record = prefix, record

    def squared_norms(self) -> Tensor:
        return self.record.squared_norms()

    def weighted_sum(self, weights: Tensor) -> dict[str, Tensor]:
        return {self.prefix + name: value for name, value in self.record.weighted_sum(weights).items()}

    def per_example(self) -> dict[str, Tensor]:
        return {self.prefix + name: value for name, value in self.record.per_example().items()}

    def without(self, dropped: Tensor) -> Named:
        return Named(self.prefix, self.record.without(dropped))


def weigh(weights: Tensor, rows: Tensor) -> Tensor:
    """Return the sum of ``weights[i] * rows[i]``, of the shape of one row."""
    return torch.mv(rows.flatten(1).t(), weights.to(rows.dtype)).view(rows.shape[1:])


def zero_rows(rows: Tensor, dropped: Tensor) -> Tensor:
    """Return ``rows`` (n, ...) with zeros where ``dropped`` (n,) is true, also where infinity or NaN stood."""
    return rows.masked_fill(dropped.view(-1, *[1] * (rows.dim() - 1)), 0.0)


def wide(tensor: Tensor) -> torch.dtype:
    """Double precision, where the device has it: Apple's GPUs do not."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


_BLOCK = 256


def _sum(module: nn.Module, records: list[Record], check_rows: Callable[[nn.Module, Tensor], None]) -> Instantiated:
    total: dict[str, Tensor] = {}
    for record in records:
        for name, gradient in record.per_example().items():
            check_rows(module, gradient)
            total[name] = total[name] + gradient if name in total else gradient
    return Instantiated(total)


def squared_norm(gradients: Tensor) -> Tensor:
    """Return the squared Euclidean norm of every row of an (n, ...) tensor, shape (n,), in double precision.

    One single precision sum over a million entries is off by up to 3e-3, and a norm that comes out small lets the
    clipped gradient exceed the clip norm. Sums of blocks are right to 256 roundings in any order, and cost no more.
    """
    flat = gradients.flatten(1)
    whole = flat.shape[1] - flat.shape[1] % _BLOCK
    rest = torch.linalg.vector_norm(flat[:, whole:], dim=1).to(wide(gradients)).square()
    if whole == 0:
        return rest
    blocks = flat[:, :whole].unflatten(1, (-1, _BLOCK))
    return torch.linalg.vector_norm(blocks, dim=2).to(wide(gradients)).square().sum(1) + rest


def as_autocast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return what autocast would give a convolution or a linear layer: it does not look into autograd functions."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind) or x.dtype == torch.float64:
        return x, weight, bias
    dtype = torch.get_autocast_dtype(kind)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


@contextmanager
def without_autocast(tensor: Tensor) -> Iterator[None]:
    """Compute as the tensors are inside the block: autocast would form norms and sums in half precision."""
    with torch.autocast(tensor.device.type, enabled=False):
        yield


def full_precision(x: Tensor) -> Tensor:
    """Return ``x`` in at least single precision, cut off from the graph.

    Norms and clipped sums are never formed in less. A record that kept a view of a tensor of the graph would keep the
    whole graph, which keeps the tape, which keeps the record.
    """
    x = x.detach()
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
