"""Which clip rule a plan follows. The rules themselves are in :mod:`dptrain.privacy.clip_rules`."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..errors import ConfigError
from .clip_rules import GAMMA, AutomaticClip, ClipRule, FlatClip, GroupClip, ScaledClip
from .outside_clip import held_rule, is_outside_name
from .ranges import check_clip_norm

CLIPPINGS = ("flat", "scaled", "automatic", "groups")
_LEAST_SCALE = 1e-6  # what is scaled keeps its precision


@dataclass(frozen=True)
class Clipping:
    """Which clip rule a plan follows, with the options of that rule; all of it public.

    Attributes:
        name: One of :data:`CLIPPINGS`, or what :func:`~dptrain.register_clip_rule` was given, which has a dot.
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
        if self.name not in CLIPPINGS and not is_outside_name(self.name):
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
        if is_outside_name(self.name):
            return held_rule(self.name, clip_norm).sensitivity()
        return 1.0 if self.name == "automatic" else clip_norm

    def refuse_unusable(self, clip_norm: float) -> None:
        """Refuse a rule from outside that is not registered in this process, or that fails on made-up norms."""
        if is_outside_name(self.name):
            held_rule(self.name, clip_norm)

    def rule(self, clip_norm: float, names: Iterable[str], among: Iterable[str] | None = None) -> ClipRule:
        """Return the rule for a clip norm and the names of the parameters.

        Args:
            clip_norm: Of the whole gradient.
            names: Of the parameters whose gradients are clipped.
            among: Names that the patterns are held against, where more parameters than these train in the whole run.

        Raises:
            ConfigError: A pattern of ``groups`` or ``scales`` matches no layer, ``scaled`` has no scales yet, or a rule
                from outside is not registered or fails on made-up norms.
        """
        if is_outside_name(self.name):
            return held_rule(self.name, clip_norm)
        names = tuple(names)
        among = names if among is None else tuple(among)
        if self.name == "scaled":
            return self._scaled(clip_norm, names, among)
        if self.name == "groups":
            groups = self._grouped(names, among)
            count = max(groups.values()) + 1
            return GroupClip((clip_norm / math.sqrt(count),) * count, groups)
        return AutomaticClip() if self.name == "automatic" else FlatClip(clip_norm)

    def _scaled(self, clip_norm: float, names: tuple[str, ...], among: tuple[str, ...]) -> ScaledClip:
        if not self.scales:
            raise ConfigError("clipping=scaled has no scales: give them, or have dptrain.train measure them")
        by_pattern = dict(reversed(self.scales))  # the first of two
        patterns = tuple(pattern for pattern, _ in self.scales)
        layers = {name: name.rpartition(".")[0] for name in among}
        found = {
            name: layer if layer in by_pattern else _pattern_of(layer, patterns) or None
            for name, layer in layers.items()
        }
        _refuse_unused("clip_scales", patterns, found)
        scales = {name: 1.0 if (pattern := found[name]) is None else by_pattern[pattern] for name in names}
        numbers = {scale: number for number, scale in enumerate(dict.fromkeys(scales.values()))}
        return ScaledClip(clip_norm, tuple(numbers), {name: numbers[scale] for name, scale in scales.items()})

    def _grouped(self, names: tuple[str, ...], among: tuple[str, ...]) -> dict[str, int]:
        """The group of every parameter; a layer's parameters are in one."""
        found = {name: _pattern_of(name.rpartition(".")[0], self.groups) for name in among}
        _refuse_unused("clip_groups", self.groups, found)
        keys = {name: found[name] for name in names}
        numbers = {key: number for number, key in enumerate(dict.fromkeys(keys.values()))}
        return {name: numbers[key] for name, key in keys.items()}

    def words(self) -> str:
        """Say what is done with a unit's gradient."""
        if is_outside_name(self.name):
            return (
                f"by {self.name}, which is not one of dptrain's own rules: every unit was held to the sensitivity that "
                "it states; that a unit's weight depends on no other unit is its author's word"
            )
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
