"""Layers that treat every example on its own, for models that came with layers that do not."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import ModelError


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


class StandardizedConv2d(nn.Conv2d):
    """A convolution by filters that are brought to mean 0 and length 1 before use (Qiao et al. 2019, section 3).

    The trained parameter is the raw ``weight``. The filters are a function of it alone, the same for every example, so
    that an example's gradient for ``weight`` is the plain convolution's, taken through the derivative of that function
    (:meth:`pull_back`). That is what must be clipped: the map is not an isometry, and a clip before it bounds nothing.

    Shapes: those of ``nn.Conv2d``.
    """

    eps = 1e-6  # added to a filter's squared length

    @classmethod
    def from_conv(cls, conv: nn.Conv2d) -> StandardizedConv2d:
        """Return one with the filters of ``conv``, standardised, as its raw weight."""
        own = copy.deepcopy(conv)
        own.__class__ = cls
        assert isinstance(own, StandardizedConv2d)
        with torch.no_grad():
            own.weight.copy_(own.filters())
        return own

    def _centred(self) -> tuple[Tensor, Tensor]:
        centred = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return centred, torch.rsqrt(centred.square().sum((1, 2, 3), keepdim=True) + self.eps)

    def filters(self) -> Tensor:
        """Return the filters in use, of the shape of ``weight``."""
        centred, inverse_length = self._centred()
        return centred * inverse_length

    def slope(self) -> float:
        """Return the largest factor by which :meth:`pull_back` lengthens a gradient."""
        with torch.no_grad():
            return float(self._centred()[1].max())

    def pull_back(self, gradients: Tensor) -> Tensor:
        """Turn gradients for the filters, (n, *weight shape), into gradients for ``weight``; linear in them."""
        with torch.no_grad():
            centred, inverse_length = self._centred()
            filters, places = centred * inverse_length, (2, 3, 4)
            along = (gradients * filters).sum(places, keepdim=True)
            return (gradients - gradients.mean(places, keepdim=True) - filters * along) * inverse_length

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.filters(), self.bias)

    def folded(self) -> nn.Conv2d:
        """Return a plain convolution that computes the same."""
        plain: nn.Conv2d = copy.deepcopy(self)
        with torch.no_grad():
            plain.weight.copy_(self.filters())
        plain.__class__ = nn.Conv2d
        return plain


class PreconditionedConv2d(nn.Conv2d):
    """A convolution that is trained in other coordinates: y = ``left`` (V * ``right`` x + c), of which V and c train.

    ``right`` (C, C) mixes the input channels and ``left`` (p, p) the output channels; both are fixed. The gradient for
    V, which is ``weight``, is left^T G right^T, with the gradient G for the filters left V right that are in use. So
    what is clipped and noised is V's, and a step of V is one of the filters times a Kronecker-factored matrix (Martens
    and Grosse 2015, K-FAC). Nothing private may have a part in the two matrices.

    Shapes: those of ``nn.Conv2d``.
    """

    left: Tensor
    right: Tensor

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, left: Tensor, right: Tensor) -> PreconditionedConv2d:
        """Return one that computes what ``conv`` does, by two invertible matrices.

        Raises:
            ModelError: ``conv`` has groups, so that its channels do not mix.
        """
        if conv.groups != 1:
            raise ModelError(f"a convolution of {conv.groups} groups mixes no channels: leave it as it is")
        own = copy.deepcopy(conv)
        own.__class__ = cls
        assert isinstance(own, PreconditionedConv2d)
        own.register_buffer("left", left.to(conv.weight))
        own.register_buffer("right", right.to(conv.weight))
        with torch.no_grad():
            back = torch.linalg.inv(own.left.double())
            own.weight.copy_(_mixed(back, conv.weight.to(back), torch.linalg.inv(own.right.double())))
            if conv.bias is not None and own.bias is not None:
                own.bias.copy_(back @ conv.bias.to(back))
        return own

    def filters(self) -> Tensor:
        """Return the filters in use, of the shape of ``weight``."""
        return _mixed(self.left, self.weight, self.right)

    def shift(self) -> Tensor | None:
        """Return the bias in use."""
        return None if self.bias is None else self.left @ self.bias

    def pull_back(self, gradients: Tensor) -> Tensor:
        """Turn gradients for the filters, (n, *weight shape), into gradients for ``weight``."""
        return torch.einsum("op,noi...,qi->npq...", self.left, gradients, self.right)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.filters(), self.shift())

    def folded(self) -> nn.Conv2d:
        """Return a plain convolution that computes the same."""
        plain: nn.Conv2d = copy.deepcopy(self)
        with torch.no_grad():
            left, right = self.left.double(), self.right.double()
            plain.weight.copy_(_mixed(left, self.weight.double(), right))
            if plain.bias is not None and self.bias is not None:
                plain.bias.copy_(left @ self.bias.double())
        del plain.left, plain.right
        plain.__class__ = nn.Conv2d
        return plain


def _mixed(left: Tensor, weight: Tensor, right: Tensor) -> Tensor:
    return torch.einsum("op,pq...,qi->oi...", left, weight, right)
