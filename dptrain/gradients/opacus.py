"""Opacus's GradSampleModule behind the same interface, to compare with."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from ..errors import ModelError
from .checks import refuse_missing, trainable_parameters
from .fused import Groups, LossFunction, Weigh, _check_count, _check_losses
from .modules import CentredConv2d, FrozenBatchNorm2d
from .units import Units


def _frozen_batch_norm_rule(
    layer: FrozenBatchNorm2d, activations: list[Tensor], backprops: Tensor
) -> dict[nn.Parameter, Tensor]:
    positions = tuple(range(2, backprops.dim()))
    shape = (1, -1, *[1] * len(positions))
    normalised = activations[0] - layer.running_mean.view(shape)
    normalised = normalised * torch.rsqrt(layer.running_var + layer.eps).view(shape)
    return {layer.weight: (backprops * normalised).sum(positions), layer.bias: backprops.sum(positions)}


def _centred_rule(layer: CentredConv2d, activations: list[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
    from opacus.grad_sample.conv import compute_conv_grad_sample

    unpadded = copy.copy(layer)  # with the very parameters
    unpadded.__class__, unpadded.padding = nn.Conv2d, (0, 0)  # type: ignore[assignment]
    found: dict[nn.Parameter, Tensor] = compute_conv_grad_sample(unpadded, [layer.centred(activations[0])], backprops)
    return found


@contextmanager
def _as_opacus_needs_it(module: nn.Module) -> Iterator[None]:
    """Turn in-place activations off, which would overwrite what Opacus's hooks hand on, and set ``.grad`` aside.

    Layers with trainable parameters are put in train mode, in which alone Opacus sees them; it changes nothing of
    what these kinds compute.
    """
    changed: list[tuple[nn.Module, str, bool]] = []
    gradients = {p: p.grad for p in module.parameters()}
    for name, layer in module.named_modules():
        trains = any(p.requires_grad for p in layer.parameters(recurse=False))
        if trains and isinstance(layer, _BatchNorm):
            raise ModelError(
                f"Opacus has no rule for layer {name!r} ({type(layer).__name__}) in eval mode: use engine='fused', "
                "dptrain.FrozenBatchNorm2d, or freeze its parameters"
            )
        if trains and not layer.training:
            changed.append((layer, "training", False))
        if getattr(layer, "inplace", False) is True:
            changed.append((layer, "inplace", True))
    for layer, attribute, value in changed:
        layer.__dict__[attribute] = not value
    for p in gradients:
        p.grad = None
    try:
        yield
    finally:
        for layer, attribute, value in changed:
            layer.__dict__[attribute] = value
        for p, gradient in gradients.items():
            p.grad = gradient
            p.__dict__.pop("grad_sample", None)
            p.__dict__.pop("_forward_counter", None)


def _grad_sample_module() -> Any:
    """Import Opacus, which at that gives the root logger a handler: whether there is one is the program's to say."""
    root = logging.getLogger()
    before = list(root.handlers)
    from opacus.grad_sample import GradSampleModule

    for handler in [handler for handler in root.handlers if handler not in before]:
        root.removeHandler(handler)
    return GradSampleModule


def per_sample_gradients(
    module: nn.Module, loss_function: LossFunction, batch: Any, units: Units | None = None
) -> dict[str, Tensor]:
    """Return the gradient of every example, or the mean one of every unit, {parameter name: (n, *shape)}."""
    grad_sample_module = _grad_sample_module()
    grad_sample_module.GRAD_SAMPLERS.setdefault(FrozenBatchNorm2d, _frozen_batch_norm_rule)
    grad_sample_module.GRAD_SAMPLERS.setdefault(CentredConv2d, _centred_rule)
    parameters = trainable_parameters(module)
    with _as_opacus_needs_it(module), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = grad_sample_module(module, loss_reduction="sum", strict=False)
        try:
            with _watching(module, parameters) as outputs:
                losses = loss_function(module, batch)
            _check_losses(losses, units)
            for layer_name, rows in outputs:
                _check_count(layer_name, rows, len(losses))
            if len(losses) == 0:
                return {name: p.new_zeros((0, *p.shape)) for name, p in parameters.items()}
            if not losses.requires_grad:
                refuse_missing(parameters, {})
            losses.sum().backward()
            made = {name: getattr(p, "grad_sample", None) for name, p in parameters.items()}
            found = {
                name: gradient if isinstance(gradient, Tensor) else torch.stack(gradient).sum(0)
                for name, gradient in made.items()
                if gradient is not None
            }
            refuse_missing(parameters, found)
            for name, p in parameters.items():
                _check_total(name, found[name], p.grad)
        finally:
            wrapped._close()
            for layer in module.modules():  # Opacus leaves the examples' activations there
                for leftover in ("activations", "max_batch_len", "ddp_hooks", "autograd_grad_sample_hooks"):
                    layer.__dict__.pop(leftover, None)
    return found if units is None else {name: units.means(rows) for name, rows in found.items()}


@contextmanager
def _watching(module: nn.Module, parameters: dict[str, nn.Parameter]) -> Iterator[list[tuple[str, Tensor]]]:
    """Note how many rows the trainable layers give: Opacus adds a use with fewer of them to the first examples."""
    outputs: list[tuple[str, Tensor]] = []

    def watch(layer_name: str) -> RemovableHandle:
        def note(_layer: nn.Module, _inputs: Any, output: Tensor) -> None:
            outputs.append((layer_name, output.new_empty(len(output), 0)))  # their number alone, not their memory

        return module.get_submodule(layer_name).register_forward_hook(note)

    hooks = [watch(layer_name) for layer_name in {name.rpartition(".")[0] for name in parameters}]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def _check_total(name: str, rows: Tensor, total: Tensor | None) -> None:
    """Refuse what Opacus gets wrong: padding modes other than zeros, and parameters read outside their layer."""
    if total is None or not bool(torch.isfinite(total).all()):
        return
    scale = float(rows.flatten(1).norm(dim=1).sum())
    if float((rows.sum(0) - total).norm()) > 1e-3 * scale + 1e-12:
        raise ModelError(
            f"Opacus's per-example gradients of parameter {name!r} do not add up to its gradient: it has no right rule "
            "for the layer, or the parameter is used outside it; use engine='fused'"
        )


def clipped_sum(
    module: nn.Module,
    loss_function: LossFunction,
    batch: Any,
    weigh: Weigh,
    groups: Groups | None = None,
    units: Units | None = None,
) -> dict[str, Tensor]:
    """Return the sum over units (without ``units``, examples) of ``weigh(squared norms)[i, k]`` times part k of i."""
    gradients = per_sample_gradients(module, loss_function, batch, units)
    squared = squared_norms(gradients, groups)
    weights = weigh(squared)
    dropped = ~torch.isfinite(squared).all(1)
    total: dict[str, Tensor] = {}
    for name, gradient in gradients.items():
        kept = gradient.flatten(1).masked_fill(dropped.view(-1, 1), 0.0)
        own = weights[:, groups[name] if groups else 0].to(gradient.dtype)
        total[name] = (own @ kept).view(gradient.shape[1:])
    return total


def squared_norms(gradients: dict[str, Tensor], groups: Groups | None) -> Tensor:
    """Return the squared norm of every example's part in every group, (n, groups), in double precision."""
    parts: dict[int, list[Tensor]] = {}
    for name, gradient in gradients.items():
        parts.setdefault(groups[name] if groups else 0, []).append(gradient.flatten(1).double().square().sum(1))
    return torch.stack([torch.stack(parts[k]).sum(0) for k in sorted(parts)], 1)
