"""Clip rules: the factor of each unit's gradient in the sum, and the sensitivity that follows.

Every rule takes the squared norms of the units' gradients, one column a group of parameters, and is a function of one
unit at a time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ..errors import ConfigError
from .ranges import check_clip_norm

if TYPE_CHECKING:
    from torch import Tensor

# Norms come from single precision sums of at most 256 squares (gradients.rules.base); shrinking by this keeps the
# rounded result inside the clip norm.
ROUNDING = 1.0 - 8e-6
_LEAST_FACTOR = 2.0**-100
GAMMA = 0.01  # of automatic clipping; the paper's, which found no need to tune it


class ClipRule(Protocol):
    """What every rule has.

    Formal guarantee: the sum over units of ``weights(squared norms)[i, k]`` times the part of gradient i that is of
    group k changes by at most ``sensitivity()`` in Euclidean norm, over all groups together, when one unit is added or
    removed, whatever that unit's gradient is. A unit with a part that is not finite counts as zero.

    Attributes:
        groups: The group of every parameter, from 0; None: all are of one.
    """

    @property
    def groups(self) -> Mapping[str, int] | None: ...

    def weights(self, squared_norms: Tensor) -> Tensor:
        """Return the factor of every unit's part in every group; both of shape (n, groups)."""

    def sensitivity(self, relation: str = "add_or_remove_one") -> float:
        """Return the sensitivity of the sum under a neighbouring relation.

        ``add_or_remove_one``, or ``replace_one``: twice that.
        """


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
    groups = None

    def __post_init__(self) -> None:
        check_clip_norm(self.clip_norm)

    def weights(self, squared_norms: Tensor) -> Tensor:
        """Return the factor of every unit, from the squared norms of their gradients; both of shape (n, 1)."""
        norms = squared_norms.double().sqrt()
        # Dividing before clamping: a zero norm gives infinity, which the clamp turns into 1.
        factors = (self.clip_norm * ROUNDING / norms).clamp(max=1.0)
        return kept(factors, squared_norms)

    def sensitivity(self, relation: str = "add_or_remove_one") -> float:
        """Return the sensitivity of the clipped sum under a neighbouring relation.

        ``add_or_remove_one``: the clip norm. ``replace_one``: twice that.
        """
        if relation == "add_or_remove_one":
            return self.clip_norm
        if relation == "replace_one":
            return 2.0 * self.clip_norm
        raise ConfigError(f"relation={relation!r} is not one of add_or_remove_one, replace_one")


@dataclass(frozen=True)
class ScaledClip:
    """Flat clipping of gradients in which every group of parameters is first multiplied by a public number.

    Layers whose gradients are small then lie as far above the noise as those whose gradients are large, which share
    the clip norm with them. What comes out is the gradient in the scaled coordinates, and goes to the optimizer as it
    is (AdaDPS, Li et al. 2022, algorithm 1, with one number a layer from public data in the place of one a parameter).

    Formal guarantee: that of :class:`FlatClip`, whatever the scales are, as long as no private unit had a part in them.

    Attributes:
        clip_norm: Of the whole scaled gradient.
        scales: The number of every group.
        groups: The group of every parameter.
    """

    clip_norm: float
    scales: tuple[float, ...]
    groups: Mapping[str, int]

    def weights(self, squared_norms: Tensor) -> Tensor:
        """Return the factor of every unit's part in every group; both of shape (n, groups)."""
        squared = squared_norms.double()
        scales = squared.new_tensor(self.scales)
        return FlatClip(self.clip_norm).weights((squared * scales.square()).sum(1, keepdim=True)) * scales

    def sensitivity(self, relation: str = "add_or_remove_one") -> float:
        """The clip norm for ``add_or_remove_one``; twice that for ``replace_one``."""
        return FlatClip(self.clip_norm).sensitivity(relation)


@dataclass(frozen=True)
class AutomaticClip:
    """Normalise each unit's gradient: g / (|g| + 0.01), for which no clip norm is needed (Bu et al. 2023, AUTO-S).

    Formal guarantee: that of :class:`FlatClip` with sensitivity 1, since |g| / (|g| + gamma) < 1. Short gradients
    keep part of their length, which plain normalisation would take from them.
    """

    groups = None

    def weights(self, squared_norms: Tensor) -> Tensor:
        """Return the factor of every unit; both of shape (n, 1)."""
        return kept(ROUNDING / (squared_norms.double().sqrt() + GAMMA), squared_norms)

    def sensitivity(self, relation: str = "add_or_remove_one") -> float:
        """1 for ``add_or_remove_one``, 2 for ``replace_one``."""
        return FlatClip(1.0).sensitivity(relation)


@dataclass(frozen=True)
class GroupClip:
    """Clip the part of each unit's gradient in every group of parameters by itself (McMahan et al. 2018, PerLayerClip).

    Formal guarantee: part k has norm at most ``norms[k]``, so a unit adds at most ``sqrt(sum of norms squared)``, which
    is the sensitivity. The noise is the same on every coordinate, scaled to that.

    Attributes:
        norms: The clip norm of every group.
        groups: The group of every parameter.
    """

    norms: tuple[float, ...]
    groups: Mapping[str, int]

    def weights(self, squared_norms: Tensor) -> Tensor:
        """Return the factor of every unit's part in every group; both of shape (n, groups)."""
        norms = squared_norms.double().sqrt()
        factors = kept((norms.new_tensor(self.norms) * ROUNDING / norms).clamp(max=1.0), squared_norms)
        return factors.masked_fill(~(factors > 0).all(1, keepdim=True), 0.0)  # a unit counts whole or not at all

    def sensitivity(self, relation: str = "add_or_remove_one") -> float:
        """The root of the sum of the squares of ``norms`` for ``add_or_remove_one``; twice that for ``replace_one``."""
        return FlatClip(1.0).sensitivity(relation) * math.hypot(*self.norms)


def kept(factors: Tensor, squared_norms: Tensor) -> Tensor:
    """The factors, zero where a gradient is not finite, or so long that its factor is too small.

    A factor below the least would be rounded coarsely when it meets a single precision gradient.
    """
    kept = squared_norms.isfinite() & (factors > _LEAST_FACTOR)
    return factors.masked_fill(~kept, 0.0)
