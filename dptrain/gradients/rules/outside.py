"""Layer rules from outside the package: a function of a layer, its inputs and the gradient of its output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ...errors import ConfigError, ModelError
from .base import Forward, PerExampleGradients, Tape, full_precision, register, registered_rules

_KINDS: set[type[nn.Module]] = set()  # that have a rule from outside


class LayerRule(Protocol):
    """The per-example gradients of a layer kind's own parameters, as Opacus's grad samplers have them.

    Row i of what it returns must depend on row i of the inputs and of ``grad_output`` only, and on the parameters.
    Then the guarantee holds whatever the rule returns, right or wrong: each row is clipped by its own norm.
    """

    def __call__(self, layer: Any, inputs: tuple[Any, ...], grad_output: Tensor) -> dict[str, Tensor]:
        """Return the gradient of every trainable parameter that the layer itself holds.

        Args:
            layer: The layer that ran.
            inputs: What it was called with; the first dimension of its tensors are the examples, n of them.
            grad_output: The gradient of the sum of all losses by the layer's output, (n, ...).

        Returns:
            ``{parameter name: (n, *parameter shape)}``. Names of frozen parameters may be there too; they are left out.
        """


class OutsideRule:
    """A :class:`LayerRule` as the fused engine needs it: the layer runs as it is, and its output is watched."""

    def __init__(self, rule: LayerRule) -> None:
        self.rule = rule

    def __call__(self, module: nn.Module, tape: Tape) -> Forward:
        run = module.forward  # the kind's own

        def forward(*inputs: Any) -> Tensor:
            trained = {name: p for name, p in module._parameters.items() if p is not None and p.requires_grad}
            module._parameters.update({name: p.detach() for name, p in trained.items()})  # type: ignore[misc]
            try:
                output = run(*inputs)
            finally:
                module._parameters.update(trained)
            if not isinstance(output, Tensor):
                raise ModelError(
                    f"{type(module).__name__} returned a {type(output).__name__}: a layer rule is for layers that "
                    "return one tensor; use the engine microbatch"
                )
            return _Watch.apply(output, module, self.rule, tape, len(inputs), *inputs, *trained.values())

        return forward


class _Watch(torch.autograd.Function):
    """The identity. On the way back it asks the rule for the layer's per-example gradients.

    The parameters are inputs too, so that it is called also where the layer's input needs no gradient.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, layer: nn.Module, rule: LayerRule, tape: Tape, count: int, *rest: Any) -> Any:
        inputs = rest[:count]
        ctx.save_for_backward(*[value for value in inputs if isinstance(value, Tensor)])
        ctx.others = [None if isinstance(value, Tensor) else value for value in inputs]
        ctx.tensors = [isinstance(value, Tensor) for value in inputs]
        ctx.layer, ctx.rule, ctx.tape, ctx.blanks = layer, rule, tape, 4 + len(rest)
        return output.clone()  # of itself, an activation in place could not change it

    @staticmethod
    def backward(ctx: Any, b: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        saved = iter(ctx.saved_tensors)
        inputs = tuple(
            next(saved).detach() if tensor else other for tensor, other in zip(ctx.tensors, ctx.others, strict=True)
        )
        found = ctx.rule(ctx.layer, inputs, b.detach())
        rows = _checked(ctx.layer, found, len(b))
        record = PerExampleGradients({name: ctx.tape.sums(ctx.layer, g) for name, g in rows.items()})
        ctx.tape.add(ctx.layer, record)
        return b, *[None] * ctx.blanks


def _checked(layer: nn.Module, found: Any, n: int) -> dict[str, Tensor]:
    """Return what a rule gave for the trainable parameters, in at least single precision."""
    rows: dict[str, Tensor] = {}
    for name, p in layer._parameters.items():
        if p is None or not p.requires_grad:
            continue
        gradient = found.get(name) if isinstance(found, dict) else None
        wanted = (n, *p.shape)
        if not isinstance(gradient, Tensor) or tuple(gradient.shape) != wanted:
            has = f"shape {tuple(gradient.shape)}" if isinstance(gradient, Tensor) else repr(gradient)
            raise ModelError(
                f"the layer rule of {type(layer).__name__} gave {has} for parameter {name!r}: "
                f"it must be a tensor of shape {wanted}, a gradient for every example"
            )
        rows[name] = full_precision(gradient)
    return rows


def register_layer_rule(*kinds: type[nn.Module]) -> Callable[[LayerRule], LayerRule]:
    """Register a :class:`LayerRule` for layer kinds, by their exact type; a decorator.

    From then on the engine ``fused`` trains these layers. Try the rule with :func:`~dptrain.check_layer_rule`.

    Raises:
        ConfigError: A kind is no subclass of ``torch.nn.Module``, or dptrain has a rule of its own for it.
    """
    for kind in kinds:
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            raise ConfigError(f"register_layer_rule({kind!r}): give a layer kind, a subclass of torch.nn.Module")
        if kind in registered_rules() and kind not in _KINDS:
            raise ConfigError(
                f"register_layer_rule({kind.__name__}): dptrain has its own rule for it; subclass the layer"
            )

    def decorate(rule: LayerRule) -> LayerRule:
        register(*kinds)(OutsideRule(rule))
        _KINDS.update(kinds)
        return rule

    return decorate
