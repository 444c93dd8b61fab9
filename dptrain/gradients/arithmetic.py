"""The arithmetic of a pass: what must not depend on where in a tensor an image lies, nor on how a GPU is set.

On a CPU, torch computes an elementwise function of 16 or 32 entries at a time. The entries that are left over at the
end of a thread's part come one at a time, by another routine that rounds otherwise. So the last digit of a sigmoid
depends on where its argument lies. Padded to whole parts, it does not.

On a GPU, convolutions round their inputs to 10 bits (TF32) unless that is switched off. A gradient that is measured by
one routine and summed by another would then be longer in the sum than it was when it was clipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checks import named_layers

_PART = 32768  # entries that torch gives a thread at least (at::internal::GRAIN_SIZE)
_WHOLE = 64  # a multiple of what any processor computes at a time
# Activations that are approximated; others, such as ReLU, are exact by either routine.
_APPROXIMATED = (
    nn.SiLU, nn.GELU, nn.Sigmoid, nn.Tanh, nn.Mish, nn.ELU, nn.SELU, nn.CELU, nn.Softplus, nn.LogSigmoid,
)  # fmt: skip


def everywhere_alike(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return an elementwise function of ``x``; every entry of the result depends on its own argument alone."""
    blank = blank_of(x, x.numel())
    if not blank:
        return function(x.contiguous())
    return function(F.pad(x.reshape(-1), (0, blank)))[: x.numel()].view(x.shape)


def blank_of(x: Tensor, count: int) -> int:
    """Return how many entries more make all parts of ``count`` whole, where ``x`` is."""
    size, threads = count, torch.get_num_threads()
    if x.device.type != "cpu":
        return 0
    while True:
        parts = 1 if size < _PART else min(threads, -(-size // _PART))
        whole = -(-size // (_WHOLE * parts)) * _WHOLE * parts
        if whole == size:
            return size - count
        size = whole


@contextmanager
def alike_in_every_place(module: nn.Module) -> Iterator[None]:
    """Compute the module's activations by :func:`everywhere_alike` inside the block."""
    patched = []
    try:
        for layer in dict.fromkeys(layer for _, layer in named_layers(module)):
            if type(layer) in _APPROXIMATED and "forward" not in layer.__dict__:
                layer.__dict__["forward"] = _alike(layer.forward)
                patched.append(layer)
        yield
    finally:
        for layer in patched:
            layer.__dict__.pop("forward", None)


def _alike(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: everywhere_alike(forward, x)


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute in full single precision on a GPU inside the block, by routines that nothing but shapes chooses."""
    cudnn = torch.backends.cudnn
    wanted: list[tuple[Any, str, Any]] = [(cudnn, "benchmark", False), (cudnn, "deterministic", True)]
    if hasattr(cudnn, "conv"):
        wanted += [(place, "fp32_precision", "ieee") for place in (cudnn.conv, torch.backends.cuda.matmul)]
    else:  # torch before 2.9
        wanted += [(place, "allow_tf32", False) for place in (cudnn, torch.backends.cuda.matmul)]
    before = [(place, name, getattr(place, name)) for place, name, _ in wanted]
    try:
        for place, name, value in wanted:
            setattr(place, name, value)
        yield
    finally:
        for place, name, value in before:
            setattr(place, name, value)
