"""Conv2d and ConvTranspose2d, with any groups, stride, dilation and padding, each computed in the fastest way.

See :mod:`.conv_forms` for the ways. Which one is taken depends on shapes, the machine and the memory that a way needs,
never on what the batch holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import tuning
from .base import Forward, Instantiated, Record, Tape, full_precision, register
from .conv_forms import FORMS, Booked, Conv, Geometry, channels_first

METHODS = (*(f"held {form}" for form in FORMS), *(f"booked {form}" for form in FORMS), "booked gram")

_HELD = 4  # gradients of a layer are held where they take at most this many times the memory of its maps
_LEAST_HELD = 1 << 20  # or this many bytes
_PRODUCT = 1024  # pixel products are formed for maps of at most this many pixels

_fastest = tuning.Chooser()


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, module: Conv, geometry: Geometry, tape: Tape
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.module, ctx.geometry, ctx.tape = module, geometry, tape
        if bias is None and _multiplies("forward", geometry, x, weight):
            return _product(weight.flatten(1), x)
        return geometry.forward(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, b: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        module, geometry = ctx.module, ctx.geometry
        ctx.tape.add(module, conv_record(module, geometry, x, b))
        grad = None
        if ctx.needs_input_grad[0]:
            if _multiplies("backward", geometry, x, weight):
                grad = _product(weight.flatten(1).t(), b)
            else:
                grad = geometry.input_gradient(b, x, weight)
        return grad, None, None, None, None, None


def _product(matrix: Tensor, x: Tensor) -> Tensor:
    """Return a 1 x 1 convolution as a matrix product."""
    return torch.bmm(matrix.expand(len(x), -1, -1), x.flatten(2)).view(len(x), -1, *x.shape[2:])


def _multiplies(direction: str, geometry: Geometry, x: Tensor, weight: Tensor) -> bool:
    """Whether a 1 x 1 convolution is faster as a matrix product than by the library's convolution."""
    if not geometry.pointwise or x.dtype != weight.dtype or torch.is_autocast_enabled(x.device.type):
        return False
    n = tuning.bucket(len(x))

    def ways() -> Mapping[str, Callable[[], object]]:
        w = _random(weight.shape, weight)
        a = _random((n, *x.shape[1:]), x)
        b = _random((n, len(weight), *x.shape[2:]), x)
        if direction == "forward":
            return {"convolution": lambda: geometry.forward(a, w, None), "product": lambda: _product(w.flatten(1), a)}
        return {
            "convolution": lambda: geometry.input_gradient(b, a, w),
            "product": lambda: _product(w.flatten(1).t(), b),
        }

    key = (direction, n, *x.shape[1:], *weight.shape, x.dtype)
    return _fastest(key, ways, lambda: "convolution", x.device) == "product"


def conv_record(module: Conv, geometry: Geometry, x: Tensor, b: Tensor, method: str | None = None) -> Record:
    """Form the record of one convolution from its input and output gradient, by one of ``METHODS``."""
    x, b = full_precision(x), full_precision(b)
    bias = b.sum((2, 3)) if module.bias is not None and module.bias.requires_grad else None
    if not module.weight.requires_grad:
        assert bias is not None
        return Instantiated({"bias": bias})
    weight = module.weight.detach().to(x.dtype)
    return _record(geometry, x, b, weight, bias, method or choose(geometry, x, b, weight))


def _record(geometry: Geometry, x: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None, method: str) -> Record:
    kind, form = method.split()
    if kind == "booked":
        return Booked.make(geometry, x, b, weight, bias, form)
    gradients = {"weight": FORMS[form](geometry, x, b, weight)}
    if bias is not None:
        gradients["bias"] = bias
    return Instantiated(gradients, {"weight": channels_first} if form == "unfold" else None)


def choose(geometry: Geometry, x: Tensor, b: Tensor, weight: Tensor) -> str:
    """Choose one of ``METHODS`` for a layer: the fastest of those whose memory is bounded by that of its maps."""
    n = tuning.bucket(len(x))

    def ways() -> Mapping[str, Callable[[], object]]:
        allowed = feasible(geometry, (n, *x.shape[1:]), (n, *b.shape[1:]), weight.shape)
        a, g = _random((n, *x.shape[1:]), x), _random((n, *b.shape[1:]), b)
        factors = torch.ones(n, device=x.device)
        return {method: _timed(geometry, a, g, weight, factors, method) for method in allowed}

    key = (geometry.key, n, *x.shape[1:], *weight.shape, x.dtype)
    return _fastest(key, ways, lambda: rule(geometry, x, b, weight), x.device)


def _timed(
    geometry: Geometry, x: Tensor, b: Tensor, weight: Tensor, factors: Tensor, method: str
) -> Callable[[], object]:
    def way() -> object:
        record = _record(geometry, x, b, weight, None, method)
        return record.squared_norms(), record.weighted_sum(factors)

    return way


def _random(shape: tuple[int, ...] | torch.Size, like: Tensor) -> Tensor:
    """Return numbers to time with; the batch's would let its content into the choice."""
    generator = torch.Generator(like.device).manual_seed(0)  # of its own: a run's random numbers stay as they are
    return torch.empty(shape, dtype=like.dtype, device=like.device).uniform_(-1, 1, generator=generator)


def feasible(
    geometry: Geometry, x: tuple[int, ...], b: tuple[int, ...], weight: tuple[int, ...] | torch.Size
) -> list[str]:
    """Return the methods that can compute a layer within its memory, from the shapes of input, output and weight."""
    n, positions = x[0], b[2] * b[3]
    maps = 4 * (_numel(x) + _numel(b))
    gradients = 4 * n * _numel(weight)
    forms = ["fold"]
    if geometry.pointwise:
        forms.append("bmm")
    elif geometry.dense:
        forms.append("unfold")
    if positions >= 64 or n <= 4:  # a call an example costs more than the work of a small one
        forms.append("loop")
    pixels = (x[2] + 2 * geometry.padding[0]) * (x[3] + 2 * geometry.padding[1])
    booked = [f"booked {form}" for form in forms]
    if geometry.dense and pixels <= _PRODUCT:
        booked.append("booked gram")
    if gradients <= max(_HELD * maps, _LEAST_HELD):
        # Letting a gradient go costs a second one: only the ghost norm can be quicker than holding it.
        return [f"held {form}" for form in forms] + booked[len(forms) :]
    return booked


def rule(geometry: Geometry, x: Tensor, b: Tensor, weight: Tensor) -> str:
    """Choose by shapes alone (Bu, Mao and Xu 2022, section 4, with what was timed on two CPU cores)."""
    allowed = feasible(geometry, tuple(x.shape), tuple(b.shape), weight.shape)
    positions, outputs, inputs = b.shape[2] * b.shape[3], b.shape[1], weight[0].numel()
    kind = "held" if allowed[0].startswith("held") else "booked"
    if "booked gram" in allowed and 8 * positions * positions <= outputs * inputs:
        return "booked gram"
    if f"{kind} bmm" in allowed:
        return f"{kind} bmm"
    if f"{kind} unfold" in allowed and positions <= 128 and x.shape[1] >= 128:
        return f"{kind} unfold"
    if f"{kind} loop" in allowed and x.shape[1] < 8 and positions >= 4096:
        return f"{kind} loop"
    return f"{kind} fold"


def _numel(shape: tuple[int, ...] | torch.Size) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


@register(nn.Conv2d)
def conv2d(module: nn.Conv2d, tape: Tape) -> Forward:
    before = module._reversed_padding_repeated_twice  # what nn.Conv2d itself pads with
    symmetric = before[0] == before[1] and before[2] == before[3]
    outside = module.padding_mode != "zeros" or not symmetric
    padding = [0, 0] if outside else [before[2], before[0]]
    geometry = Geometry(module, padding, [0, 0])
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode

    def forward(x: Tensor) -> Tensor:
        padded = F.pad(x, before, mode=mode) if outside else x
        return _Conv.apply(padded, module.weight, module.bias, module, geometry, tape)

    return forward


@register(nn.ConvTranspose2d)
def conv_transpose2d(module: nn.ConvTranspose2d, tape: Tape) -> Forward:
    assert not isinstance(module.padding, str)  # only nn.Conv2d takes "same"
    padding = list(module.padding)

    def forward(x: Tensor, output_size: list[int] | None = None) -> Tensor:
        output_padding = module._output_padding(
            x, output_size, list(module.stride), padding, list(module.kernel_size), 2, list(module.dilation)
        )
        geometry = Geometry(module, padding, list(output_padding))
        return _Conv.apply(x, module.weight, module.bias, module, geometry, tape)

    return forward
