"""What a layer rule is, and the tape that its records go to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from ..units import Units


class Record(Protocol):
    """The per-example gradients of one layer in one forward pass, in whatever form is cheapest to hold.

    The keys are the names of the layer's own trainable parameters ("weight", "bias"); n is the number of examples, or
    that of units where several examples are one: then all of it is of their sums.
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
        clips: Whether norms will be asked for: they are formed while a gradient is still in the cache.
        units: Which examples are one unit; None: each is its own.
        check_count: Refuses what a layer gave if its rows are not the examples; asked where rows are added up.
        records: By layer.
        freed: Bytes of feature maps that the pass is done with.
        held: Bytes of per-example gradients that are kept in their place; they are not let outgrow the maps.
    """

    clips: bool = False
    units: Units | None = None
    check_count: Callable[[nn.Module, Tensor], None] = lambda module, rows: None
    records: dict[nn.Module, list[Record]] = field(default_factory=dict)
    freed: int = 0
    held: int = 0

    @property
    def per_unit(self) -> int:
        """Number of examples of every unit in what :meth:`even` returns."""
        return 1 if self.units is None else self.units.most

    def even(self, module: nn.Module, rows: Tensor) -> Tensor:
        """Return a layer's rows (n, ...), one an example, with equally many in every unit, side by side."""
        if self.units is None:
            return rows
        self.check_count(module, rows)
        return self.units.even(rows)

    def sums(self, module: nn.Module, rows: Tensor) -> Tensor:
        """Return the sum of a layer's rows (n, ...) over every unit."""
        if self.units is None:
            return rows
        self.check_count(module, rows)
        return self.units.sums(rows)

    def add(self, module: nn.Module, record: Record) -> None:
        if self.clips and isinstance(record, PerExampleGradients):
            record.measure()
        self.records.setdefault(module, []).append(record)

    def take(self, check_count: Callable[[nn.Module, Tensor], None]) -> dict[nn.Module, Record]:
        """Return one record a layer, and forget them: what stays on the tape would keep the graph alive with it.

        The gradient of a layer that was used several times is the sum over its uses. Each use is given to
        ``check_count`` before: in a sum, one row would spread over all examples.
        """
        taken: dict[nn.Module, Record] = {}
        for module, records in self.records.items():
            taken[module] = records[0] if len(records) == 1 else _sum(module, records, check_count)
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


class PerExampleGradients:
    """Per-example gradients held as tensors of shape (n, *parameter).

    ``arrange`` turns (m, ...) in the order in which a gradient was computed into (m, *parameter), where that differs.
    """

    def __init__(
        self,
        gradients: dict[str, Tensor],
        arrange: dict[str, Callable[[Tensor], Tensor]] | None = None,
        roots: dict[str, list[Tensor]] | None = None,
    ) -> None:
        self.gradients, self.arrange, self._roots = gradients, arrange or {}, roots or {}

    def measure(self) -> None:
        """Form the norms of the larger gradients now."""
        self._roots = {name: block_norms(g) for name, g in self.gradients.items() if g[0].numel() > _FEW}

    def roots(self) -> list[Tensor]:
        """Return (n, m) tensors, the squares of whose entries add up to the squared norms."""
        known = (self._roots.get(name) or block_norms(g) for name, g in self.gradients.items())
        return [root for roots in known for root in roots]

    def parted(self) -> tuple[PerExampleGradients, PerExampleGradients]:
        """Return the larger gradients and the others."""
        small = {name: rows for name, rows in self.gradients.items() if rows[0].numel() <= _FEW}
        large = {name: rows for name, rows in self.gradients.items() if name not in small}
        return PerExampleGradients(large, self.arrange, self._roots), PerExampleGradients(small, self.arrange)

    def squared_norms(self) -> Tensor:
        return add_squares(self.roots())

    def weighted_sum(self, weights: Tensor) -> dict[str, Tensor]:
        return {name: self.arranged(name, weigh(weights, g).unsqueeze(0))[0] for name, g in self.gradients.items()}

    def per_example(self) -> dict[str, Tensor]:
        return {name: self.arranged(name, g) for name, g in self.gradients.items()}

    def without(self, dropped: Tensor) -> PerExampleGradients:
        return PerExampleGradients({name: zero_rows(g, dropped) for name, g in self.gradients.items()}, self.arrange)

    def arranged(self, name: str, rows: Tensor) -> Tensor:
        return self.arrange[name](rows) if name in self.arrange else rows


class ConcatenatedGradients:
    """Small per-example gradients of many parameters, side by side in one (n, entries) tensor.

    A detector has hundreds of them, and a handful of calls for each would cost more than the arithmetic.
    """

    def __init__(self, whole: PerExampleGradients, rows: Tensor | None = None) -> None:
        self.whole = whole
        self.rows = torch.cat([g.flatten(1) for g in whole.gradients.values()], 1) if rows is None else rows

    def squared_norms(self) -> Tensor:
        return squared_norm(self.rows)

    def weighted_sum(self, weights: Tensor) -> dict[str, Tensor]:
        return {name: rows[0] for name, rows in self._split(weigh(weights, self.rows).unsqueeze(0)).items()}

    def per_example(self) -> dict[str, Tensor]:
        return self._split(self.rows)

    def without(self, dropped: Tensor) -> ConcatenatedGradients:
        return ConcatenatedGradients(self.whole, zero_rows(self.rows, dropped))

    def _split(self, rows: Tensor) -> dict[str, Tensor]:
        shapes = {name: gradient.shape[1:] for name, gradient in self.whole.gradients.items()}
        pieces = rows.split([shape.numel() for shape in shapes.values()], 1)
        return {
            name: self.whole.arranged(name, piece.reshape(-1, *shape))
            for (name, shape), piece in zip(shapes.items(), pieces, strict=True)
        }


def weigh(weights: Tensor, rows: Tensor) -> Tensor:
    """Return the sum of ``weights[i] * rows[i]``, of the shape of one row."""
    return torch.mv(rows.flatten(1).t(), weights.to(rows.dtype)).view(rows.shape[1:])


def zero_rows(rows: Tensor, dropped: Tensor) -> Tensor:
    """Return ``rows`` (n, ...) with zeros where ``dropped`` (n,) is true, also where infinity or NaN stood."""
    return rows.masked_fill(dropped.view(-1, *[1] * (rows.dim() - 1)), 0.0)


_BLOCK = 256
_FEW = 1024  # entries of a gradient that is joined with others


def _sum(
    module: nn.Module, records: list[Record], check_count: Callable[[nn.Module, Tensor], None]
) -> PerExampleGradients:
    total: dict[str, Tensor] = {}
    for record in records:
        for name, gradient in record.per_example().items():
            check_count(module, gradient)
            total[name] = total[name] + gradient if name in total else gradient
    return PerExampleGradients(total)


def block_norms(gradients: Tensor) -> list[Tensor]:
    """Return (n, m) tensors of norms of blocks, the squares of which add up to the squared norm of every row.

    One single precision sum over a million entries is off by up to 3e-3, and a norm that comes out small lets the
    clipped gradient exceed the clip norm. Sums of blocks are right to 256 roundings in any order, and cost no more.
    """
    flat = gradients.flatten(1)
    if flat.shape[1] <= _BLOCK:
        return [flat]  # every entry a block of its own
    whole = flat.shape[1] - flat.shape[1] % _BLOCK
    norms = [torch.linalg.vector_norm(flat[:, :whole].unflatten(1, (-1, _BLOCK)), dim=2)]
    if whole < flat.shape[1]:
        norms.append(flat[:, whole:])
    return norms


def add_squares(roots: list[Tensor]) -> Tensor:
    """Return the sum of the squares of every row's entries over (n, m) tensors, shape (n,), in double precision."""
    joined = roots[0] if len(roots) == 1 else torch.cat(roots, 1)
    return torch.linalg.vector_norm(joined, dim=1, dtype=torch.float64).square()


def squared_norm(gradients: Tensor) -> Tensor:
    """Return the squared Euclidean norm of every row of an (n, ...) tensor, shape (n,), in double precision."""
    return add_squares(block_norms(gradients))


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
