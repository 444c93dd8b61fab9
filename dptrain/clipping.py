"""Clip rules: how much of each unit's gradient enters the sum, and the sensitivity that follows.

A plan holds a :class:`~dptrain.Clipping`, which names the rule and makes it for the parameters at hand. Every rule
takes the squared norms of the units' gradients, one column a group of parameters, and is a function of one unit at a
time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from .errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

COUNT = "<unclipped>"  # the entry of a sum that adaptive clipping adds; no parameter is called so

_LEAST_NORM, _LARGEST_NORM = 1e-10, 1e10
# Norms come from single precision sums of at most 256 squares (gradients.layers.base); shrinking by this keeps the
# rounded result inside the clip norm.
_ROUNDING = 1.0 - 8e-6
_LEAST_FACTOR = 2.0**-100
GAMMA = 0.01  # of automatic clipping; the paper's, which found no need to tune it
_RAMP = 0.1  # of an adaptive clip norm: over which the indicator of being clipped goes from one end to the other
_ADAPTATION = 0.2  # the rate at which an adaptive clip norm follows its quantile; the paper's


def check_clip_norm(clip_norm: float) -> None:
    """Refuse a clip norm that bounds nothing, or that single precision cannot hold with room to spare."""
    if not _LEAST_NORM <= clip_norm <= _LARGEST_NORM:
        raise ConfigError(f"clip_norm={clip_norm} must be a number above 0, from 1e-10 to 1e10")


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
        factors = (self.clip_norm * _ROUNDING / norms).clamp(max=1.0)
        return _kept(factors, squared_norms)

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
class RescaledClip(FlatClip):
    """Flat clipping to ``clip_norm``, divided by it: g min(1/C, 1/|g|) (De et al. 2022).

    Formal guarantee: that of :class:`FlatClip` with sensitivity 1. The noise shrinks and grows with the sum, so that
    nothing changes but the scale: the best learning rate no longer depends on C.
    """

    def weights(self, squared_norms: Tensor) -> Tensor:
        """Return the factor of every unit; both of shape (n, 1)."""
        return super().weights(squared_norms) / self.clip_norm

    def sensitivity(self, relation: str = "add_or_remove_one") -> float:
        """1 for ``add_or_remove_one``, 2 for ``replace_one``."""
        return FlatClip(1.0).sensitivity(relation)


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
        return _kept(_ROUNDING / (squared_norms.double().sqrt() + GAMMA), squared_norms)

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
        factors = _kept((norms.new_tensor(self.norms) * _ROUNDING / norms).clamp(max=1.0), squared_norms)
        return factors.masked_fill(~(factors > 0).all(1, keepdim=True), 0.0)  # a unit counts whole or not at all

    def sensitivity(self, relation: str = "add_or_remove_one") -> float:
        """The root of the sum of the squares of ``norms`` for ``add_or_remove_one``; twice that for ``replace_one``."""
        return FlatClip(1.0).sensitivity(relation) * math.hypot(*self.norms)


@dataclass(frozen=True)
class AdaptiveClip(FlatClip):
    """Flat clipping whose norm follows a quantile of the gradients' norms (Andrew et al. 2021, algorithm 1).

    Beside the clipped gradients, the units drawn that needed no clipping are counted, by b_i = 1/2 for a gradient
    shorter than C and -1/2 for a longer one (0 if it is not finite). Within 5 % of C it goes from one to the other in a
    straight line: a norm can differ in its last digits with what shares a batch, and a jump would make a whole count of
    that. The step's sum gets one more entry, :data:`COUNT`, the sum of w C b_i with w = ``count_weight``, and noise as
    all others do. After the step C moves to C exp(-0.2 (p - quantile)), where p is the share unclipped as estimated
    from the noised entry: 1/2 + entry / (w C B) with the expected batch size B. It is a function of what is released.

    Formal guarantee: adding a unit moves the gradients by at most C, and the entry by at most w C / 2, since |b| <= 1/2
    and the other units' b stay what they are (with 0 and 1 it would be twice that). So the whole vector moves by at
    most the sensitivity S = C sqrt(1 + w^2 / 4), and with noise of deviation z S on every entry the step is one
    Gaussian mechanism with noise multiplier z, which is what is accounted. A unit replaced moves it by at most 2 S.

    What each part then gets: the gradient noise of z_delta C with z_delta = z sqrt(1 + w^2 / 4), the count noise of
    sigma_b = z S / (w C). Taken apart they are Gaussian mechanisms of multipliers z_delta and 2 sigma_b (sensitivity
    1/2), whose Rényi divergences alpha / (2 z_delta^2) and alpha / (2 (2 sigma_b)^2) add up to alpha / (2 z^2):
    z = (z_delta^-2 + (2 sigma_b)^-2)^(-1/2), theorem 1 of the paper. Solved for the weight that gives the count a noise
    of sigma_b: w = z / sqrt(sigma_b^2 - z^2 / 4).
    """

    quantile: float
    count_weight: float

    def count(self, squared_norms: Tensor) -> Tensor:
        """Return the entry of the sum that tells of the norms, shape (1,), from squared norms of shape (n, 1)."""
        squared = squared_norms.double()
        unclipped = ((1.0 - squared.sqrt() / self.clip_norm) / _RAMP).clamp(-0.5, 0.5)
        return unclipped.masked_fill(~squared.isfinite(), 0.0).sum(0) * (self.count_weight * self.clip_norm)

    def sensitivity(self, relation: str = "add_or_remove_one") -> float:
        """C sqrt(1 + w^2 / 4) for ``add_or_remove_one``, over gradients and count; twice that for ``replace_one``."""
        return FlatClip(self.clip_norm).sensitivity(relation) * math.hypot(1.0, self.count_weight / 2)

    def next_norm(self, noised: float) -> float:
        """Return the next step's clip norm; ``noised`` is the noised entry, divided by the expected batch size."""
        share = min(1.0, max(0.0, 0.5 + noised / (self.count_weight * self.clip_norm)))
        moved = self.clip_norm * math.exp(-_ADAPTATION * (share - self.quantile))
        return min(_LARGEST_NORM, max(_LEAST_NORM, moved))


def _kept(factors: Tensor, squared_norms: Tensor) -> Tensor:
    """The factors, zero where a gradient is not finite, or so long that its factor is too small.

    A factor below the least would be rounded coarsely when it meets a single precision gradient.
    """
    kept = squared_norms.isfinite() & (factors > _LEAST_FACTOR)
    return factors.masked_fill(~kept, 0.0)
