"""Per-example gradients of any torch module, and their clipped sum, by three engines behind one interface.

``fused`` (default) does one backward pass and never holds more than it must; ``opacus`` uses Opacus's hooks;
``microbatch`` runs plain autograd on one example at a time: slow, for any module, and what the others are tested
against.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..privacy.clip_rules import ClipRule, FlatClip
from . import fused, independence, microbatch
from . import opacus as opacus_engine
from .arithmetic import alike_in_every_place, full_precision
from .batches import UnitBatch, batch_size, fill_up, in_pieces
from .checks import check_module, trainable_parameters
from .fused import LossFunction, Weigh
from .microbatch import mean_gradient
from .units import Units

ENGINES: dict[str, ModuleType] = {"fused": fused, "opacus": opacus_engine, "microbatch": microbatch}

__all__ = [
    "ENGINES",
    "LossFunction",
    "UnitBatch",
    "check_independence",
    "clipped_gradient_sum",
    "per_sample_gradients",
    "trainable_parameters",
]


def _engine(engine: str, module: nn.Module) -> ModuleType:
    if engine not in ENGINES:
        raise ConfigError(f"engine={engine!r} is not one of {', '.join(ENGINES)}")
    check_module(module, engine)
    return ENGINES[engine]


def per_sample_gradients(
    module: nn.Module, loss_function: LossFunction, batch: Any, engine: str = "fused", units: Tensor | None = None
) -> dict[str, Tensor]:
    """Return every example's own gradient, or the mean gradient of every unit of several examples.

    Args:
        module: Any module whose trainable parameters belong to layers with a rule; for ``microbatch`` any at all that
            does not mix examples.
        loss_function: ``loss_function(module, batch)`` gives one loss an example, shape (n,); loss i must depend on
            example i only.
        batch: A tensor, a tuple, or a mapping such as Ultralytics' collate makes.
        engine: ``fused``, ``opacus`` or ``microbatch``.
        units: The unit of every example, whole numbers of shape (n,), 0, 0, 1, 2, 2, ...: the examples of a unit lie
            side by side. None: each is its own.

    Returns:
        ``{parameter name: (n, *parameter shape)}`` for every trainable parameter, with n the number of units; it may
        be 0.

    Raises:
        ModelError: The module couples examples, a trainable parameter got no gradient or, but for ``microbatch``, one
            has no rule or is shared. The message names it. Or ``units`` are not numbered as above.
    """
    return _engine(engine, module).per_sample_gradients(module, loss_function, batch, _units(units))


def _units(units: Tensor | None) -> Units | None:
    return None if units is None else Units(units)


def clipped_gradient_sum(
    module: nn.Module,
    loss_function: LossFunction,
    batch: Any,
    clip_norm: float | ClipRule,
    engine: str = "fused",
    units: Tensor | None = None,
    examples_at_once: int | None = None,
) -> dict[str, Tensor]:
    """Return the sum over units of each unit's mean gradient, scaled to norm at most ``clip_norm``, or by a clip rule.

    Formal guarantee: adding or removing one unit, whole, changes the result by at most the rule's ``sensitivity()`` in
    Euclidean norm over all entries together (of a number, :class:`~dptrain.FlatClip`: the number), provided loss i
    depends on example i only. The gradients of a unit's examples are averaged before the clip (De et al. 2022, section
    3.1, of an image's augmentations), over the unit's own number of them. A unit with a gradient that is not finite
    contributes zero; an empty batch gives zeros. The module's ``.grad`` is left alone. All examples of a unit must be
    in the one batch.

    Args:
        examples_at_once: Number of examples in every forward pass. A batch of fewer is filled up with blank ones, which
            weigh nothing. How many examples share a pass shows in the last digits of what a model predicts. Where a
            loss decides by those digits (to which anchor a box goes), one example more would change the gradients of
            others by far more than rounding. A batch that is one unit of more examples goes through in pieces, by
            plain autograd; their gradients are added up and clipped once. None: the passes are the caller's batches.
            The guarantee then needs batches of one size, or a loss in which rounding decides nothing.

    The other arguments, and errors, are those of :func:`per_sample_gradients`; the result is ``{parameter name:
    tensor}``.
    """
    rule = FlatClip(clip_norm) if isinstance(clip_norm, int | float) else clip_norm
    chosen, own = _engine(engine, module), _units(units)
    if examples_at_once is not None and own is not None and len(own) == 1 and own.examples > examples_at_once:
        with full_precision():
            mean = mean_gradient(module, loss_function, in_pieces(batch, examples_at_once), own.examples)
        return microbatch.weighted_sum(module, [mean], rule.weights, rule.groups)
    weigh: Weigh = rule.weights
    count = batch_size(batch)
    if examples_at_once is not None and 0 < count < examples_at_once and chosen is not microbatch:
        if own is None:
            batch, weigh = fill_up(batch, examples_at_once), _of_the_first(count, weigh)
        else:
            filled = fill_up(UnitBatch(batch, own.of_example), examples_at_once)
            batch, weigh, own = filled.examples, _of_the_first(len(own), weigh), Units(filled.units)
    with full_precision(), alike_in_every_place(module):
        total: dict[str, Tensor] = chosen.clipped_sum(module, loss_function, batch, weigh, rule.groups, own)
    return total


def _of_the_first(count: int, weigh: Weigh) -> Weigh:
    """Return ``weigh`` for the first ``count`` units; those that only fill the pass weigh nothing."""

    def weights(squared_norms: Tensor) -> Tensor:
        own = weigh(squared_norms[:count])
        return torch.cat((own, own.new_zeros(len(squared_norms) - count, own.shape[1])))

    return weights


def check_independence(module: nn.Module, loss_function: LossFunction, batch: Any, engine: str = "fused") -> bool:
    """Refuse a module and loss in which one example changes the gradient of another; clipping cannot bound that.

    It is tried on at most three of the batch's examples, in five passes: the gradients of two must stay the same when
    the third is exchanged or left out, and be those of plain autograd on each alone. So a layer that takes something
    else than the examples for its rows is found too, whose length happens to be that of one batch. A loss that draws
    torch's random numbers (dropout) is tried with the same numbers, and by exchanging only. What cannot be found is a
    dependence that these examples do not show. The random numbers of the process stay as they are.

    Args:
        batch: At least two examples that differ. Made-up ones tell nothing about private data, whatever comes out.

    Returns:
        Whether anything could be seen: False if the gradients are all zero.

    Raises:
        ModelError: One line that says what was done and what changed.
    """
    return independence.check(_engine(engine, module), module, loss_function, batch)
