"""Is a layer rule right? Its gradients against those of plain autograd, one example at a time."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError
from . import per_sample_gradients

_SLACK = 1e-7  # of the largest gradient; all of it is in double precision


def check_layer_rule(layer: nn.Module, *inputs: Any) -> None:
    """Refuse a layer whose rule gives other per-example gradients than plain autograd on one example at a time.

    It is tried in double precision, on a copy: of single examples and of units of two, with the layer used once and
    twice in a pass, with every parameter trainable and with each alone. A wrong rule does not void the guarantee as
    long as row i of what it returns depends on example i only; it trains badly. One that mixes the examples voids it,
    and is found here too, if these inputs show it. Give several examples that differ, of the shapes that you train on.

    Args:
        layer: With trainable parameters of its own, and a rule.
        inputs: What it is called with. The first dimension of every tensor are the examples, four or more.

    Raises:
        ModelError: One line with the parameter and how far it is off; or these inputs cannot show it.
    """
    layer = copy.deepcopy(layer).double()
    inputs = tuple(v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for v in inputs)
    count = min((len(value) for value in inputs if isinstance(value, Tensor)), default=0)
    own = [p for p in layer.parameters(recurse=False) if p.requires_grad]
    if count < 4 or not own:
        raise ModelError(
            f"check_layer_rule needs a layer with trainable parameters of its own ({len(own)} here) and inputs of four "
            f"or more examples ({count} here)"
        )
    units = torch.arange(count) // 2
    for trained in (own, *([p] for p in own if len(own) > 1)):
        for p in own:
            p.requires_grad_(any(p is other for other in trained))
        for loss in (_once, _twice):
            _compare(layer, inputs, loss, None)
            _compare(layer, inputs, loss, units)


def _compare(layer: nn.Module, inputs: tuple[Any, ...], loss: Any, units: Tensor | None) -> None:
    fused = per_sample_gradients(layer, loss, inputs, "fused", units)
    plain = per_sample_gradients(layer, loss, inputs, "microbatch", units)
    for name, wanted in plain.items():
        largest = float(wanted.flatten(1).norm(dim=1).max())
        if not 0.0 < largest < float("inf"):
            raise ModelError(f"the gradients of {name!r} are all zero, or not finite, on these inputs: give others")
        apart = (fused[name] - wanted).flatten(1).norm(dim=1)
        worst = int(apart.nan_to_num(float("inf")).argmax())
        if not float(apart[worst]) <= _SLACK * largest:
            whose = "unit" if units is not None else "example"
            raise ModelError(
                f"the layer rule of {type(layer).__name__} is wrong for {name!r}: the gradient of {whose} {worst} is "
                f"off by {100 * float(apart[worst]) / largest:.2g}% of the largest by plain autograd"
            )


def _once(layer: nn.Module, inputs: Any) -> Tensor:
    return _losses(layer(*inputs))


def _twice(layer: nn.Module, inputs: Any) -> Tensor:
    nearby = [v * 0.5 if isinstance(v, Tensor) and v.is_floating_point() else v for v in inputs]
    return _losses(layer(*inputs)) + _losses(layer(*nearby))


def _losses(out: Tensor) -> Tensor:
    flat = out.flatten(1)
    weights = torch.sin(1.0 + torch.arange(flat.shape[1], dtype=flat.dtype, device=flat.device))
    return (flat * weights).sum(1) + 0.1 * (flat * flat).sum(1)
