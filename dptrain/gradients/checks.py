"""What must hold of a module before any engine forms per-example gradients; each refusal names the layer."""

from __future__ import annotations

from collections.abc import Container

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from ..errors import ModelError
from .rules import OutsideRule, registered_rules, rule_for


def named_layers(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return every layer under each of its names, as ``named_modules(remove_duplicate=False)`` does.

    A pass needs it several times, and that recursive generator takes milliseconds for a detector.
    """
    found: list[tuple[str, nn.Module]] = []
    waiting = [("", module)]
    while waiting:
        name, layer = waiting.pop()
        found.append((name, layer))
        start = f"{name}." if name else ""
        waiting.extend((start + child, m) for child, m in reversed(layer._modules.items()) if m is not None)
    return found


def trainable_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that require a gradient, by their first name, in the module's order."""
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for layer_name, layer in named_layers(module):
        for name, p in layer._parameters.items():
            if p is not None and p.requires_grad:
                found.setdefault(id(p), (f"{layer_name}.{name}" if layer_name else name, p))
    return dict(found.values())


def check_module(module: nn.Module, engine: str) -> None:
    """Refuse a module that mixes examples, or of which the engine cannot form per-example gradients.

    ``microbatch`` needs no layer rules: plain autograd has the gradient of any module.

    Raises:
        ModelError: As :func:`refuse_coupling` and :func:`refuse_unsupported`.
    """
    refuse_coupling(module)
    refuse_unsupported(module, by_rules=engine != "microbatch")


def refuse_coupling(module: nn.Module) -> None:
    """Refuse layers that mix the examples of a batch, also where their parameters are frozen or absent.

    Raises:
        ModelError: A batch norm in train mode or without statistics, an instance norm that tracks statistics, or an
            embedding that shortens the rows it looks up, in place and with no noise.
    """
    for name, layer in named_layers(module):
        kind = f"layer {name or '(root)'!r} ({type(layer).__name__})"
        if isinstance(layer, _BatchNorm) and (layer.training or layer.running_mean is None):
            raise ModelError(
                f"{kind} normalises by the statistics of the batch, so one image changes the gradient of another: "
                "freeze it (dptrain.FrozenBatchNorm2d) or use GroupNorm"
            )
        if isinstance(layer, _InstanceNorm) and layer.track_running_stats and layer.training:
            raise ModelError(f"{kind} keeps running statistics of the private images: set track_running_stats=False")
        if isinstance(layer, nn.Embedding | nn.EmbeddingBag) and layer.max_norm is not None:
            raise ModelError(f"{kind} changes its own weights by what private examples look up: set max_norm=None")


def refuse_unsupported(module: nn.Module, by_rules: bool = True) -> None:
    """Refuse parameters of which no per-example gradient can be formed.

    Raises:
        ModelError: A trainable parameter is complex or, ``by_rules``, shared between layers or of a layer kind without
            a rule; or nothing is trainable.
    """
    owners: dict[int, tuple[str, nn.Module, str]] = {}
    parameters = [
        (layer_name, layer, attribute, p)
        for layer_name, layer in named_layers(module)
        for attribute, p in layer._parameters.items()
        if p is not None and p.requires_grad
    ]
    for layer_name, layer, attribute, parameter in parameters:
        name = f"{layer_name}.{attribute}" if layer_name else attribute
        first, owner, role = owners.setdefault(id(parameter), (name, layer, attribute))
        if parameter.is_complex():
            raise ModelError(f"parameter {name!r} is complex, and norms and noise are real: keep its two parts apart")
        if not by_rules:
            continue
        if layer is not owner or attribute != role:  # one layer may well have two names
            raise ModelError(
                f"parameter {name!r} is shared with {first!r}: untie the two, freeze them, or take "
                "the engine microbatch, which is slow"
            )
        rule = rule_for(layer)
        if rule is None or not (isinstance(rule, OutsideRule) or attribute in ("weight", "bias")):
            kinds = ", ".join(sorted({kind.__name__ for kind in registered_rules()}))
            raise ModelError(
                f"parameter {name!r} belongs to a {type(layer).__name__}, for which there is no per-example gradient: "
                f"freeze it, use one of {kinds}, or use engine=microbatch, which is slow and needs no rule"
            )
    if not owners:
        raise ModelError("no parameter is trainable, so there is nothing to learn: set requires_grad or `trainable`")


def refuse_missing(names: dict[str, nn.Parameter], found: Container[str]) -> None:
    """Refuse a pass in which a trainable parameter got no gradient.

    Raises:
        ModelError: It names the first of them.
    """
    missing = [name for name in names if name not in found]
    if missing:
        raise ModelError(
            f"trainable parameter {missing[0]!r} got no gradient ({len(missing)} such): the loss does not reach it; "
            "freeze it, or fix the forward pass"
        )
