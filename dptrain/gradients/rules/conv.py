"""Conv2d and ConvTranspose2d, with any groups, stride, dilation and padding, each computed in the fastest way.

See :mod:`.conv_forms` for the ways. Which one is taken depends on shapes, the machine and the memory that a way needs,
never on what the batch holds.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import autotune
from ..modules import CentredConv2d
from .base import Forward, PerExampleGradients, Record, Tape, as_autocast, full_precision, register, without_autocast
from .conv_forms import FORMS, Conv, Geometry, GhostConvRecord, channels_first

METHODS = (*(f"held {form}" for form in FORMS), *(f"booked {form}" for form in FORMS), "booked gram")

_LEAST_HELD = 1 << 18  # bytes of gradients that a layer may hold whatever the memory
_PRODUCT = 1024  # pixel products are formed for maps of at most this many pixels

_fastest = autotune.Chooser()


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, module: Conv, geometry: Geometry, tape: Tape
    ) -> Tensor:
        x, weight, bias = as_autocast(x, weight, bias)
        ctx.save_for_backward(x, weight)
        ctx.module, ctx.geometry, ctx.tape = module, geometry, tape
        with without_autocast(x):
            return forward_of(x, weight, bias, geometry)

    @staticmethod
    def backward(ctx: Any, b: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        module, geometry = ctx.module, ctx.geometry
        ctx.tape.add(module, conv_record(module, geometry, x, b, ctx.tape))
        grad = input_gradient_of(b, x, weight, geometry) if ctx.needs_input_grad[0] else None
        return grad, None, None, None, None, None


def forward_of(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Return the output, in the faster of two ways."""
    if _multiplies("forward", geometry, x, weight):
        product = _product(weight.flatten(1), x)
        return product if bias is None else product.add_(bias.view(-1, 1, 1))
    return geometry.forward(x, weight, bias)


def input_gradient_of(b: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Return the gradient of the input, in the faster of two ways."""
    if _multiplies("backward", geometry, x, weight):
        return _product(weight.flatten(1).t(), b)
    return geometry.input_gradient(b, x, weight)


def _product(matrix: Tensor, x: Tensor) -> Tensor:
    """Return a 1 x 1 convolution as a matrix product."""
    # Written in place: a view of the product could not be changed by an activation that works in place.
    out = x.new_empty(len(x), len(matrix), *x.shape[2:])
    torch.bmm(matrix.expand(len(x), -1, -1), x.flatten(2), out=out.flatten(2))
    return out


def _multiplies(direction: str, geometry: Geometry, x: Tensor, weight: Tensor) -> bool:
    """Whether a 1 x 1 convolution is faster as a matrix product than by the library's convolution."""
    if not geometry.pointwise or x.dtype != weight.dtype:
        return False

    def ways(n: int) -> Mapping[str, Callable[[], object]]:
        w = _random(weight.shape, weight)
        a = _random((n, *x.shape[1:]), x)
        b = _random((n, len(weight), *x.shape[2:]), x)
        if direction == "forward":
            return {"convolution": lambda: geometry.forward(a, w, None), "product": lambda: _product(w.flatten(1), a)}
        return {
            "convolution": lambda: geometry.input_gradient(b, a, w),
            "product": lambda: _product(w.flatten(1).t(), b),
        }

    key = (direction, *x.shape[1:], *weight.shape, x.dtype)
    return _fastest(key, len(x), ways, lambda: "convolution", x.device) == "product"


def conv_record(
    module: Conv, geometry: Geometry, x: Tensor, b: Tensor, tape: Tape | None = None, method: str | None = None
) -> Record:
    """Form the record of one convolution from its input and output gradient, by one of ``METHODS``."""
    tape = tape or Tape()
    x, b = full_precision(x), full_precision(b)
    bias = tape.sums(module, b.sum((2, 3))) if module.bias is not None and module.bias.requires_grad else None
    if not module.weight.requires_grad:
        assert bias is not None
        return PerExampleGradients({"bias": bias})
    x, b = tape.even(module, x), tape.even(module, b)
    weight = module.weight.detach().to(x.dtype)
    method = method or method_for(geometry, x, b, weight, tape)
    if not isinstance(module, CentredConv2d):
        return record_of(geometry, x, b, weight, bias, method)
    return _centred_record(module, geometry, x, b, weight, bias, method)


def method_for(geometry: Geometry, x: Tensor, b: Tensor, weight: Tensor, tape: Tape) -> str:
    """Choose one of ``METHODS``, and note on the tape what it holds and what the pass is done with."""
    gradients = len(x) // geometry.per_unit * weight.nbytes
    tape.freed += x.nbytes + b.nbytes
    method = choose(geometry, x, b, weight, gradients <= max(tape.freed - tape.held, _LEAST_HELD))
    if method.startswith("held"):
        tape.held += gradients
    return method


def _centred_record(
    module: CentredConv2d, geometry: Geometry, x: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None, method: str
) -> Record:
    """The record of a layer whose weight gradient is that of an input without its usual mean, padded before."""
    if method.startswith("booked"):
        mean = module.input_mean.to(x.dtype)
        height, width = geometry.padding
        padded = F.pad(x, (width, width, height, height)) if height or width else x
        unpadded = Geometry(module, [0, 0], [0, 0], geometry.per_unit)
        return record_of(unpadded, padded - mean.view(-1, 1, 1), b, weight, bias, method)
    record = record_of(geometry, x, b, weight, bias, method)
    assert isinstance(record, PerExampleGradients)
    centre(module, record, b.sum((2, 3)).unflatten(0, (-1, geometry.per_unit)).sum(1))
    return record


def centre(module: CentredConv2d, record: PerExampleGradients, sums: Tensor) -> None:
    """Take what the input's mean adds away from held gradients; ``sums`` (units, outputs) are of the output gradient.

    It is the same at every place of the kernel.
    """
    gradient = record.gradients["weight"]
    mean = module.input_mean.to(gradient.dtype)
    means = mean.view(module.groups, 1, -1).expand(-1, module.out_channels // module.groups, -1).flatten(0, 1)
    by_mean = sums.unsqueeze(2) * means  # (units, outputs, inputs of a group)
    channels_last = "weight" in record.arrange
    gradient -= by_mean[:, :, None, None] if channels_last else by_mean[..., None, None]


def record_of(geometry: Geometry, x: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None, method: str) -> Record:
    """Form the record of a plain convolution by one of ``METHODS``."""
    kind, form = method.split()
    if kind == "booked":
        return GhostConvRecord.make(geometry, x, b, weight, bias, form)
    gradients = {"weight": FORMS[form](geometry, x, b, weight)}
    if bias is not None:
        gradients["bias"] = bias
    return PerExampleGradients(gradients, {"weight": channels_first} if form == "unfold" else None)


def choose(geometry: Geometry, x: Tensor, b: Tensor, weight: Tensor, may_hold: bool = True) -> str:
    """Choose one of ``METHODS`` for a layer: the fastest of those that its memory allows."""
    positions = b.shape[2:].numel()
    # Draws of groups have units of many sizes; what was timed for a power of two serves those up to the next.
    per_unit = autotune.power_of_two(geometry.per_unit)
    timed = copy.copy(geometry)
    timed.per_unit = per_unit

    def ways(n: int) -> Mapping[str, Callable[[], object]]:
        a, g = _random((n * per_unit, *x.shape[1:]), x), _random((n * per_unit, *b.shape[1:]), b)
        factors = torch.ones(n, device=x.device)
        allowed = feasible(timed, x.shape, positions, may_hold)
        return {method: _timed(timed, a, g, weight, factors, method) for method in allowed}

    key = (geometry.key, per_unit, *x.shape[1:], *weight.shape, x.dtype, may_hold)
    by_rule = lambda: rule(geometry, x.shape, positions, weight.shape, may_hold)  # noqa: E731
    return _fastest(key, len(x) // geometry.per_unit, ways, by_rule, x.device)


def _timed(
    geometry: Geometry, x: Tensor, b: Tensor, weight: Tensor, factors: Tensor, method: str
) -> Callable[[], object]:
    def way() -> object:
        record = record_of(geometry, x, b, weight, None, method)
        return record.squared_norms(), record.weighted_sum(factors)

    return way


def _random(shape: tuple[int, ...] | torch.Size, like: Tensor) -> Tensor:
    """Return numbers to time with; the batch's would let its content into the choice."""
    generator = torch.Generator(like.device).manual_seed(0)  # of its own: a run's random numbers stay as they are
    return torch.empty(shape, dtype=like.dtype, device=like.device).uniform_(-1, 1, generator=generator)


def feasible(geometry: Geometry, x: torch.Size, positions: int, may_hold: bool) -> list[str]:
    """Return the methods for an input of shape ``x`` and a number of output positions."""
    forms = ["fold"]
    if geometry.pointwise:
        forms.append("bmm")
    elif geometry.dense:
        forms.append("unfold")
    if geometry.per_unit * positions >= 64:  # a call a unit costs more than the work of a small one
        forms.append("loop")
    pixels = (x[2] + 2 * geometry.padding[0]) * (x[3] + 2 * geometry.padding[1])
    ghost = ["booked gram"] if geometry.dense and geometry.per_unit * pixels <= _PRODUCT else []
    # Letting a gradient go costs a second one: only the ghost norm can be quicker than holding it.
    return [f"held {form}" for form in forms] + ghost if may_hold else [f"booked {form}" for form in forms] + ghost


def rule(geometry: Geometry, x: torch.Size, positions: int, weight: torch.Size, may_hold: bool) -> str:
    """Choose by shapes alone (Bu, Mao and Xu 2022, section 4, with what was timed on two CPU cores)."""
    allowed = feasible(geometry, x, positions, may_hold)
    kind = "held" if may_hold else "booked"
    if "booked gram" in allowed and 8 * (geometry.per_unit * positions) ** 2 <= weight.numel():
        return "booked gram"
    if f"{kind} bmm" in allowed:
        return f"{kind} bmm"
    if f"{kind} unfold" in allowed and positions <= 128 and x[1] >= 128:
        return f"{kind} unfold"
    if f"{kind} loop" in allowed and x[1] < 8 and positions >= 4096:
        return f"{kind} loop"
    return f"{kind} fold"


def padded_geometry(module: nn.Conv2d, tape: Tape) -> tuple[Geometry, Callable[[Tensor], Tensor]]:
    """Return how a convolution slides, and what pads its input where the library's convolution does not."""
    before = module._reversed_padding_repeated_twice  # what nn.Conv2d itself pads with
    symmetric = before[0] == before[1] and before[2] == before[3]
    if module.padding_mode == "zeros" and symmetric:
        return Geometry(module, [before[2], before[0]], [0, 0], tape.per_unit), lambda x: x
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return Geometry(module, [0, 0], [0, 0], tape.per_unit), lambda x: F.pad(x, before, mode=mode)


@register(nn.Conv2d, CentredConv2d)
def conv2d(module: nn.Conv2d, tape: Tape) -> Forward:
    geometry, pad = padded_geometry(module, tape)

    def forward(x: Tensor) -> Tensor:
        bias = module.whole_bias().detach() if isinstance(module, CentredConv2d) else module.bias
        return _Conv.apply(pad(x), module.weight, bias, module, geometry, tape)

    return forward


@register(nn.ConvTranspose2d)
def conv_transpose2d(module: nn.ConvTranspose2d, tape: Tape) -> Forward:
    assert not isinstance(module.padding, str)  # only nn.Conv2d takes "same"
    padding = list(module.padding)

    def forward(x: Tensor, output_size: list[int] | None = None) -> Tensor:
        output_padding = module._output_padding(
            x, output_size, list(module.stride), padding, list(module.kernel_size), 2, list(module.dilation)
        )
        geometry = Geometry(module, padding, list(output_padding), tape.per_unit)
        return _Conv.apply(x, module.weight, module.bias, module, geometry, tape)

    return forward
