"""What a layer rule is, and the tape that its records go to."""

from __future__ import annotations

from collections.abc import Callable
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


@dataclass
class Tape:
    """The records of one backward pass, by the layer that made them; a layer used k times has k records."""

    records: dict[nn.Module, list[Record]] = field(default_factory=dict)

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
    """Per-example gradients held as tensors of shape (n, *parameter)."""

    def __init__(self, gradients: dict[str, Tensor]) -> None:
        self.gradients = gradients

    def squared_norms(self) -> Tensor:
        return torch.stack([squared_norm(g) for g in self.gradients.values()]).sum(0)

    def weighted_sum(self, weights: Tensor) -> dict[str, Tensor]:
        return {name: (weights.to(g.dtype) @ g.flatten(1)).view(g.shape[1:]) for name, g in self.gradients.items()}

    def per_example(self) -> dict[str, Tensor]:
        return self.gradients


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
    rest = torch.linalg.vector_norm(flat[:, whole:], dim=1).double().square()
    if whole == 0:
        return rest
    blocks = flat[:, :whole].unflatten(1, (-1, _BLOCK))
    return torch.linalg.vector_norm(blocks, dim=2).double().square().sum(1) + rest


def full_precision(x: Tensor) -> Tensor:
    """Return ``x`` in at least single precision, cut off from the graph.

    Norms and clipped sums are never formed in less. A record that kept a view of a tensor of the graph would keep the
    whole graph, which keeps the tape, which keeps the record.
    """
    x = x.detach()
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
