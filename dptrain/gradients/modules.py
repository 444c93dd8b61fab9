"""Layers that treat every example on its own, for models that came with layers that do not."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ModelError


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation by fixed statistics: an affine map of each example, whatever the module's mode.

    The running mean and variance are those of the public checkpoint and never change; ``weight`` and ``bias`` may
    train. ``.train()`` has no effect, unlike on ``nn.BatchNorm2d``, which would start to mix the batch again.

    Shapes: input and output (n, num_features, h, w).
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    @classmethod
    def from_batch_norm(cls, norm: nn.BatchNorm2d) -> FrozenBatchNorm2d:
        """Freeze a batch norm, with its statistics, its eps and, where it has them, its scale and shift."""
        frozen = cls(norm.num_features, norm.eps)
        with torch.no_grad():
            if norm.affine:
                frozen.weight.copy_(norm.weight)
                frozen.bias.copy_(norm.bias)
            if norm.running_mean is not None and norm.running_var is not None:
                frozen.running_mean.copy_(norm.running_mean)
                frozen.running_var.copy_(norm.running_var)
        return frozen

    def to_batch_norm(self) -> nn.BatchNorm2d:
        """Return the stock layer that computes the same in eval mode."""
        norm = nn.BatchNorm2d(self.num_features, eps=self.eps)
        with torch.no_grad():
            norm.weight.copy_(self.weight)
            norm.bias.copy_(self.bias)
            assert norm.running_mean is not None and norm.running_var is not None
            norm.running_mean.copy_(self.running_mean)
            norm.running_var.copy_(self.running_var)
        return norm.eval()

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}"


def group_count(channels: int, most: int = 32, least_size: int = 4) -> int:
    """Return the number of groups for ``channels``: at most ``most``, and at least ``least_size`` channels in each.

    A group of one channel would be instance normalisation, which erases the mean of every channel; ``gcd(32, C)``
    picks that for many layers of the small detectors.
    """
    for groups in range(min(most, channels // least_size), 0, -1):
        if channels % groups == 0:
            return groups
    return 1


def group_norm_from_batch_norm(norm: nn.BatchNorm2d | FrozenBatchNorm2d) -> nn.GroupNorm:
    """Replace a batch norm by a group norm that keeps its eps, scale and shift."""
    group = nn.GroupNorm(group_count(norm.num_features), norm.num_features, eps=norm.eps)
    if norm.weight is not None:
        with torch.no_grad():
            group.weight.copy_(norm.weight)
            group.bias.copy_(norm.bias)
    return group


class CentredConv2d(nn.Conv2d):
    """A convolution whose weights train as if the usual mean of every input channel were taken from it first.

    Behind an activation most of a gradient's length is of that mean, which says nothing of an image and takes the
    room that clipping leaves. Here a step on a weight moves the layer's shift too, so that a usual input gives what it
    gave before: the output is ``conv(x) + shift``, with ``shift = sum((start - weight) * input_mean)``. The gradient
    of the weight is then that of a convolution of ``x - input_mean``, padded with zeros before. At first, and with
    the shift folded into the layer behind it, the function is one that a plain convolution has.

    Shapes: those of ``nn.Conv2d``; ``input_mean`` (in_channels,), public.
    """

    input_mean: Tensor
    at_start: Tensor

    @classmethod
    def of(cls, conv: nn.Conv2d, input_mean: Tensor) -> CentredConv2d:
        """Return a convolution that shares the weights of a plain one and computes the same."""
        centred = copy.copy(conv)
        centred.__class__ = cls
        centred._buffers = dict(conv._buffers)
        assert isinstance(centred, CentredConv2d)
        centred.register_buffer("input_mean", input_mean.detach().to(conv.weight))
        centred.register_buffer("at_start", torch.zeros_like(conv.weight[:, 0, 0, 0].detach()))
        centred.at_start = -centred.shift().detach()
        return centred

    def shift(self) -> Tensor:
        """Return what is added to every output channel, (out_channels,)."""
        means = self.input_mean.view(self.groups, 1, -1)
        weight = self.weight.sum((2, 3)).unflatten(0, (self.groups, -1))
        return self.at_start - (weight * means).sum(2).flatten()

    def whole_bias(self) -> Tensor:
        """Return the shift, and the bias where there is one, (out_channels,)."""
        return self.shift() if self.bias is None else self.bias + self.shift()

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight, self.whole_bias())

    def centred(self, x: Tensor) -> Tensor:
        """Return the input that its weight gradient is of: padded, and without its usual mean."""
        before = self._reversed_padding_repeated_twice
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        return (F.pad(x, before, mode=mode) if any(before) else x) - self.input_mean.view(-1, 1, 1).to(x.dtype)

    def folded(self) -> tuple[nn.Conv2d, Tensor]:
        """Return the plain convolution, and the shift that is left to add where it has no bias."""
        plain, shift = copy.copy(self), self.shift().detach()
        plain.__class__ = nn.Conv2d  # type: ignore[assignment]
        plain._buffers = {}
        if self.bias is None:
            return plain, shift
        plain._parameters = dict(self._parameters)
        plain.bias = nn.Parameter(self.whole_bias().detach())
        return plain, torch.zeros_like(shift)


class LowRankConv2d(nn.Module):
    """A convolution that stays as it is, plus a trained one of low rank (LoRA, Hu et al. 2021).

    ``down`` has the base's kernel, stride and padding and ``rank`` outputs, ``up`` is 1 x 1 and starts at zero, so at
    first the sum is the base. Both are ordinary convolutions, whose per-example gradients every engine has.

    Shapes: those of the base.
    """

    def __init__(self, base: nn.Conv2d, rank: int, scale: float = 1.0) -> None:
        super().__init__()
        if base.groups != 1:
            raise ModelError(f"a convolution of {base.groups} groups has no low-rank form of few numbers: leave it out")
        place: Any = {"device": base.weight.device, "dtype": base.weight.dtype}
        geometry: Any = {name: getattr(base, name) for name in ("kernel_size", "stride", "padding", "dilation")}
        self.base, self.scale = base, scale
        self.down = nn.Conv2d(base.in_channels, rank, **geometry, bias=False, padding_mode=base.padding_mode, **place)
        self.up = nn.Conv2d(rank, base.out_channels, 1, bias=False, **place)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scale * self.up(self.down(x))

    def folded(self) -> nn.Conv2d:
        """Return one plain convolution that computes the same."""
        plain = copy.deepcopy(self.base)
        with torch.no_grad():
            plain.weight += self.scale * torch.einsum("or,r...->o...", self.up.weight[:, :, 0, 0], self.down.weight)
        return plain

    def extra_repr(self) -> str:
        return f"scale={self.scale:g}"
