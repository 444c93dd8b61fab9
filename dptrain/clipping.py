"""Clip rules: how much of each unit's gradient enters the sum, and the sensitivity that follows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import ConfigError

# Norms come from single precision sums of at most 256 squares (gradients.layers.base); shrinking by this keeps the
# rounded result inside the clip norm.
_ROUNDING = 1.0 - 8e-6


@dataclass(frozen=True)
class FlatClip:
    """Scale each unit's whole gradient to norm at most ``clip_norm`` (Abadi et al. 2016, algorithm 1).

    Formal guarantee: the sum of the clipped gradients changes by at most ``clip_norm`` in Euclidean norm when one
    unit is added or removed, whatever that unit's gradient is.

    | case | result |
    |---|---|
    | ``clip_norm`` 0, negative, infinite or NaN | ``ConfigError`` |
    | gradient 0 | contributes 0 |
    | gradient not finite, or its squared norm overflows | contributes 0 |
    | no units | the sum is 0 |
    """

    clip_norm: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.clip_norm) and self.clip_norm > 0):
            raise ConfigError(f"clip_norm={self.clip_norm} must be a finite number above 0")

    def weights(self, squared_norms: Tensor) -> Tensor:
        """Return the factor of every unit, from the squared norms of their gradients; both of shape (n,)."""
        norms = squared_norms.double().sqrt()
        # Dividing before clamping: a zero norm gives infinity, which the clamp turns into 1.
        factors = (self.clip_norm * _ROUNDING / norms).clamp(max=1.0)
        return torch.where(torch.isfinite(squared_norms), factors, torch.zeros_like(factors))

    def sensitivity(self, relation: str = "add_or_remove_one") -> float:
        """Return the sensitivity of the clipped sum under a neighbouring relation.

        ``add_or_remove_one``: the clip norm. ``replace_one``: twice that.
        """
        if relation == "add_or_remove_one":
            return self.clip_norm
        if relation == "replace_one":
            return 2.0 * self.clip_norm
        raise ConfigError(f"relation={relation!r} is not one of add_or_remove_one, replace_one")
