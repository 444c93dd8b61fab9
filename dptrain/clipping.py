"""Clip rules: how much of each unit's gradient enters the sum, and the sensitivity that follows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

# Norms come from single precision sums of at most 256 squares (gradients.layers.base); shrinking by this keeps the
# rounded result inside the clip norm.
_ROUNDING = 1.0 - 8e-6


_LEAST_FACTOR = 2.0**-100


def check_clip_norm(clip_norm: float) -> None:
    """Refuse a clip norm that bounds nothing, or that single precision cannot hold with room to spare."""
    if not 1e-10 <= clip_norm <= 1e10:
        raise ConfigError(f"clip_norm={clip_norm} must be a number above 0, from 1e-10 to 1e10")


@dataclass(frozen=True)
class FlatClip:
    """Scale each unit's whole gradient to norm at most ``clip_norm`` (Abadi et al. 2016, algorithm 1).

    Formal guarantee: the sum of the clipped gradients changes by at most ``clip_norm`` in Euclidean norm when one
    unit is added or removed, whatever that unit's gradient is.

    | case | result |
    |---|---|
    | ``clip_norm`` 0, negative, infinite or NaN | ``ConfigError`` |
    | gradient 0 | contributes 0 |
    | gradient not finite, its squared norm overflows, or over 1e30 times the clip norm | contributes 0 |
    | no units | the sum is 0 |
    """

    clip_norm: float

    def __post_init__(self) -> None:
        check_clip_norm(self.clip_norm)

    def weights(self, squared_norms: Tensor) -> Tensor:
        """Return the factor of every unit, from the squared norms of their gradients; both of shape (n,)."""
        import torch

        norms = squared_norms.double().sqrt()
        # Dividing before clamping: a zero norm gives infinity, which the clamp turns into 1.
        factors = (self.clip_norm * _ROUNDING / norms).clamp(max=1.0)
        # A factor this small would be rounded coarsely when it meets a single precision gradient.
        kept = torch.isfinite(squared_norms) & (factors > _LEAST_FACTOR)
        return torch.where(kept, factors, torch.zeros_like(factors))

    def sensitivity(self, relation: str = "add_or_remove_one") -> float:
        """Return the sensitivity of the clipped sum under a neighbouring relation.

        ``add_or_remove_one``: the clip norm. ``replace_one``: twice that.
        """
        if relation == "add_or_remove_one":
            return self.clip_norm
        if relation == "replace_one":
            return 2.0 * self.clip_norm
        raise ConfigError(f"relation={relation!r} is not one of add_or_remove_one, replace_one")
