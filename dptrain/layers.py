"""Layers that treat every example on its own, for models that came with layers that do not."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
