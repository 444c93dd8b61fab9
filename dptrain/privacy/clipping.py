"""Clip rules: how much of each unit's gradient enters the sum, and the sensitivity that follows.

A plan holds a :class:`~dptrain.Clipping`, which names the rule and makes it for the parameters at hand. Every rule
takes the squared norms of the units' gradients, one column a group of parameters, and is a function of one unit at a
time.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import ConfigError
from .ranges import check_clip_norm

if TYPE_CHECKING:
    from torch import Tensor

# Norms come from single precision sums of at most 256 squares (gradients.rules.base); shrinking by this keeps the
# rounded result inside the clip norm.
_ROUNDING = 1.0 - 8e-6
_LEAST_FACTOR = 2.0**-100
GAMMA = 0.01  # of automatic clipping; the paper's, which found no need to tune it
CLIPPINGS = ("flat", "scaled", "automatic", "groups")
_LEAST_SCALE = 1e-6  # what is scaled keeps its precision


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


def _kept(factors: Tensor, squared_norms: Tensor) -> Tensor:
    """The factors, zero where a gradient is not finite, or so long that its factor is too small.

    A factor below the least would be rounded coarsely when it meets a single precision gradient.
    """
    kept = squared_norms.isfinite() & (factors > _LEAST_FACTOR)
    return factors.masked_fill(~kept, 0.0)


@dataclass(frozen=True)
class Clipping:
    """Which clip rule a plan follows, with the options of that rule; all of it public.

    Attributes:
        name: One of :data:`CLIPPINGS`.
        groups: Patterns on layer names such as ``model.23.*``, one a group (``a|b``: either), for ``groups``. What
            matches none is one more group; what matches several is of the first. Each group's squared clip norm is an
            equal share of the whole one's.
        scales: What ``scaled`` multiplies the gradients of layers by: pairs of a layer's name, or a pattern, and a
            number; its own name, or else the first pattern that fits, or else 1. Nothing private may have a part in
            them. ``dptrain.train`` measures them itself, on the images of ``privacy.clip_scales``.
    """

    name: str = "flat"
    groups: tuple[str, ...] = ()
    scales: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        if self.name not in CLIPPINGS:
            raise ConfigError(f"clipping={self.name!r} is not one of {', '.join(CLIPPINGS)}")
        if not isinstance(self.groups, tuple) or not all(isinstance(pattern, str) for pattern in self.groups):
            raise ConfigError(f"clip_groups={self.groups!r} is not a list of patterns such as 'model.23.*'")
        if self.name == "groups" and not self.groups:
            raise ConfigError("clipping=groups needs clip_groups, such as ['model.23.*']: patterns on layer names")
        if not isinstance(self.scales, tuple) or not all(map(_is_scale, self.scales)):
            raise ConfigError(
                f"clip_scales={self.scales!r} is not made of pairs such as ('model.23.*', 0.5): a layer and a number "
                f"from {_LEAST_SCALE:g} to {1 / _LEAST_SCALE:g}"
            )
        for key, given, owner in (("clip_groups", self.groups, "groups"), ("clip_scales", self.scales, "scaled")):
            if given and self.name != owner:
                raise ConfigError(f"{key} has no effect with clipping={self.name}: leave it out, or use {owner}")

    @classmethod
    def from_dict(cls, values: Any) -> Clipping:
        """Return what :meth:`to_dict` gave, also from JSON.

        Raises:
            ConfigError: It is something else.
        """
        names = [item.name for item in fields(cls)]
        if not isinstance(values, Mapping) or sorted(map(str, values)) != sorted(names):
            raise ConfigError(f"clip_rule={values!r} is not made of {', '.join(names)}")
        return cls(values["name"], _as_tuple(values["groups"]), _as_tuple(values["scales"]))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON has them."""
        return {**asdict(self), "groups": list(self.groups), "scales": [list(pair) for pair in self.scales]}

    def check(self, clip_norm: float) -> None:
        """Refuse what the rest of a plan does not allow."""
        check_clip_norm(clip_norm)
        if self.name == "automatic" and clip_norm != 1.0:
            raise ConfigError(f"clip_norm={clip_norm} has no effect with clipping=automatic: leave it out (1.0)")

    def longest(self, clip_norm: float) -> float:
        """Return the greatest length of what a unit adds to the gradients."""
        return 1.0 if self.name == "automatic" else clip_norm

    def rule(self, clip_norm: float, names: Iterable[str]) -> ClipRule:
        """Return the rule for a clip norm and the names of the parameters.

        Raises:
            ConfigError: A pattern of ``groups`` or ``scales`` matches no layer, or ``scaled`` has no scales yet.
        """
        if self.name == "scaled":
            return self._scaled(clip_norm, names)
        if self.name == "groups":
            groups = self._grouped(names)
            count = max(groups.values()) + 1
            return GroupClip((clip_norm / math.sqrt(count),) * count, groups)
        return AutomaticClip() if self.name == "automatic" else FlatClip(clip_norm)

    def _scaled(self, clip_norm: float, names: Iterable[str]) -> ScaledClip:
        if not self.scales:
            raise ConfigError("clipping=scaled has no scales: give them, or have dptrain.train measure them")
        by_pattern = dict(reversed(self.scales))  # the first of two
        patterns = tuple(pattern for pattern, _ in self.scales)
        layers = {name: name.rpartition(".")[0] for name in names}
        found = {
            name: layer if layer in by_pattern else _pattern_of(layer, patterns) or None
            for name, layer in layers.items()
        }
        _refuse_unused("clip_scales", patterns, found)
        scales = {name: 1.0 if pattern is None else by_pattern[pattern] for name, pattern in found.items()}
        numbers = {scale: number for number, scale in enumerate(dict.fromkeys(scales.values()))}
        return ScaledClip(clip_norm, tuple(numbers), {name: numbers[scale] for name, scale in scales.items()})

    def _grouped(self, names: Iterable[str]) -> dict[str, int]:
        """The group of every parameter; a layer's parameters are in one."""
        keys = {name: _pattern_of(name.rpartition(".")[0], self.groups) for name in names}
        _refuse_unused("clip_groups", self.groups, keys)
        numbers = {key: number for number, key in enumerate(dict.fromkeys(keys.values()))}
        return {name: numbers[key] for name, key in keys.items()}

    def words(self) -> str:
        """Say what is done with a unit's gradient."""
        return {
            "flat": "flat, on the whole gradient of a unit",
            "scaled": (
                "flat, on the whole gradient of a unit, after the part of every layer was multiplied by a public number"
            ),
            "automatic": f"automatic: the whole gradient g of a unit becomes g / (|g| + {GAMMA:g}), sensitivity 1",
            "groups": "by groups of layers, in equal shares; squared, the norms add up to that of the whole",
        }[self.name]


def _pattern_of(layer: str, patterns: tuple[str, ...]) -> str:
    """The first pattern that fits a layer; the empty text if none does."""
    return next((p for p in patterns if any(fnmatch.fnmatchcase(layer, part) for part in p.split("|"))), "")


def _refuse_unused(key: str, patterns: tuple[str, ...], found: Mapping[str, str | None]) -> None:
    """Refuse a pattern that is of no parameter; ``found`` has that of every one."""
    used = set(found.values())
    unused = [pattern for pattern in patterns if pattern not in used]
    if unused:
        raise ConfigError(f"{key}: {unused[0]!r} is the first to match no trainable layer: leave it out")


def _is_scale(pair: Any) -> bool:
    return (
        isinstance(pair, tuple)
        and len(pair) == 2
        and isinstance(pair[0], str)
        and _is_number(pair[1])
        and _LEAST_SCALE <= pair[1] <= 1 / _LEAST_SCALE
    )


def _as_tuple(value: Any) -> Any:
    """What was a tuple before JSON made lists of it."""
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300


FLAT = Clipping()
