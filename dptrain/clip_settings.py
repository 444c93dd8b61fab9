"""Which clip rule a plan follows, and with which options: public all of it, and what the rule is made from."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from .clipping import (
    GAMMA,
    AdaptiveClip,
    AutomaticClip,
    ClipRule,
    FlatClip,
    GroupClip,
    RescaledClip,
    ScaledClip,
    check_clip_norm,
)
from .errors import ConfigError

if TYPE_CHECKING:
    from .schema import PrivacyConfig

CLIPPINGS = ("flat", "rescaled", "scaled", "automatic", "per_layer", "groups", "adaptive")
SPLITS = ("equal", "size")
_LEAST_SCALE = 1e-6  # what is scaled keeps its precision


@dataclass(frozen=True)
class Clipping:
    """Which clip rule a plan follows, with the options of that rule; all of it public.

    Attributes:
        name: One of :data:`CLIPPINGS`.
        groups: Patterns on layer names such as ``model.23.*``, one a group (``a|b``: either), for ``groups``. What
            matches none is one more group; what matches several is of the first.
        split: How ``per_layer`` and ``groups`` share the clip norm out: ``equal``, or ``size``: squares proportional
            to the number of parameters. Squares of the parts add up to the square of the clip norm either way.
        quantile: Share of units that ``adaptive`` leaves unclipped.
        count_noise: Standard deviation of the noise on the number of unclipped units; None: a twentieth of the
            expected batch size, at least the noise multiplier.
        scales: What ``scaled`` multiplies the gradients of layers by: pairs of a layer's name, or a pattern, and a
            number; its own name, or else the first pattern that fits, or else 1. Nothing private may have a part in
            them. ``dptrain.train`` measures them itself, on the images of ``privacy.clip_scales``.
    """

    name: str = "flat"
    groups: tuple[str, ...] = ()
    split: str = "equal"
    quantile: float = 0.5
    count_noise: float | None = None
    scales: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        if self.name not in CLIPPINGS:
            raise ConfigError(f"clipping={self.name!r} is not one of {', '.join(CLIPPINGS)}")
        if not isinstance(self.groups, tuple) or not all(isinstance(pattern, str) for pattern in self.groups):
            raise ConfigError(f"clip_groups={self.groups!r} is not a list of patterns such as 'model.23.*'")
        if self.split not in SPLITS:
            raise ConfigError(f"clip_split={self.split!r} is not one of {', '.join(SPLITS)}")
        if not _is_number(self.quantile) or not 0.0 < self.quantile < 1.0:
            raise ConfigError(
                f"clip_quantile={self.quantile} must be between 0 and 1: the share of units left unclipped"
            )
        if self.count_noise is not None and not (_is_number(self.count_noise) and 0 < self.count_noise <= 1e15):
            raise ConfigError(f"clip_count_noise={self.count_noise} must be a number above 0")
        if self.name == "groups" and not self.groups:
            raise ConfigError("clipping=groups needs clip_groups, such as ['model.23.*']: patterns on layer names")
        if not isinstance(self.scales, tuple) or not all(map(_is_scale, self.scales)):
            raise ConfigError(
                f"clip_scales={self.scales!r} is not made of pairs such as ('model.23.*', 0.5): a layer and a number "
                f"from {_LEAST_SCALE:g} to {1 / _LEAST_SCALE:g}"
            )
        of_others = {
            "clip_groups": (self.groups != (), ("groups",)),
            "clip_split": (self.split != "equal", ("groups", "per_layer")),
            "clip_quantile": (self.quantile != 0.5, ("adaptive",)),
            "clip_count_noise": (self.count_noise is not None, ("adaptive",)),
            "clip_scales": (self.scales != (), ("scaled",)),
        }
        for key, (given, owners) in of_others.items():
            if given and self.name not in owners:
                raise ConfigError(f"{key} means nothing with clipping={self.name}: leave it out, or use {owners[0]}")

    @classmethod
    def read(cls, values: Any) -> Clipping:
        """Return what :meth:`facts` gave, from JSON; None, of runs that had no choice, is flat clipping.

        Raises:
            ConfigError: It is something else.
        """
        if values is None:
            return cls()
        names = [item.name for item in fields(cls)]
        if not isinstance(values, Mapping) or sorted({"scales", *map(str, values)}) != sorted(names):
            raise ConfigError(f"clip_rule={values!r} is not made of {', '.join(names)}")
        lists = {name: _as_tuple(values.get(name, [])) for name in ("groups", "scales")}  # scales came later
        return cls(**{**values, **lists})

    def facts(self) -> dict[str, Any]:
        """Return the fields as JSON has them."""
        return {**asdict(self), "groups": list(self.groups), "scales": [list(pair) for pair in self.scales]}

    def check(self, clip_norm: float, noise_multiplier: float) -> None:
        """Refuse what the rest of a plan does not allow."""
        check_clip_norm(clip_norm)
        if self.name == "automatic" and clip_norm != 1.0:
            raise ConfigError(f"clip_norm={clip_norm} means nothing with clipping=automatic: leave it out (1.0)")
        if self.count_noise is not None and self.count_noise < noise_multiplier:
            raise ConfigError(
                f"clip_count_noise={self.count_noise} must be at least the noise multiplier ({noise_multiplier:g}): "
                "a better count would take the budget from the gradients"
            )

    def longest(self, clip_norm: float) -> float:
        """Return the greatest length of what a unit adds to the gradients."""
        return 1.0 if self.name in ("rescaled", "automatic") else clip_norm

    def rule(
        self, clip_norm: float, sizes: Mapping[str, int], noise_multiplier: float, expected_batch_size: int
    ) -> ClipRule:
        """Return the rule for a clip norm and parameters, by name with their sizes.

        Raises:
            ConfigError: A pattern of ``groups`` or ``scales`` matches no layer, or ``scaled`` has no scales yet.
        """
        if self.name == "scaled":
            return self._scaled(clip_norm, sizes)
        if self.name in ("per_layer", "groups"):
            groups = self._grouped(sizes)
            return GroupClip(tuple(clip_norm * math.sqrt(share) for share in self._shares(groups, sizes)), groups)
        if self.name == "adaptive":
            noise = max(expected_batch_size / 20, noise_multiplier) if self.count_noise is None else self.count_noise
            weight = noise_multiplier / math.sqrt(noise**2 - noise_multiplier**2 / 4)
            return AdaptiveClip(clip_norm, self.quantile, weight)
        makers: dict[str, Callable[[], ClipRule]] = {
            "flat": lambda: FlatClip(clip_norm),
            "rescaled": lambda: RescaledClip(clip_norm),
            "automatic": AutomaticClip,
        }
        return makers[self.name]()

    def _scaled(self, clip_norm: float, sizes: Mapping[str, int]) -> ScaledClip:
        if not self.scales:
            raise ConfigError("clipping=scaled has no scales: give them, or have dptrain.train measure them")
        by_pattern = dict(reversed(self.scales))  # the first of two
        patterns = tuple(pattern for pattern, _ in self.scales)
        layers = {name: name.rpartition(".")[0] for name in sizes}
        found = {
            name: layer if layer in by_pattern else _pattern_of(layer, patterns) or None
            for name, layer in layers.items()
        }
        _refuse_unused("clip_scales", patterns, found)
        scales = {name: 1.0 if pattern is None else by_pattern[pattern] for name, pattern in found.items()}
        numbers = {scale: number for number, scale in enumerate(dict.fromkeys(scales.values()))}
        return ScaledClip(clip_norm, tuple(numbers), {name: numbers[scale] for name, scale in scales.items()})

    def _grouped(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """The group of every parameter; a layer's parameters are in one."""
        if self.name == "per_layer":
            keys = {name: name.rpartition(".")[0] for name in sizes}
        else:
            keys = {name: _pattern_of(name.rpartition(".")[0], self.groups) for name in sizes}
            _refuse_unused("clip_groups", self.groups, keys)
        numbers = {key: number for number, key in enumerate(dict.fromkeys(keys.values()))}
        return {name: numbers[key] for name, key in keys.items()}

    def _shares(self, groups: Mapping[str, int], sizes: Mapping[str, int]) -> list[float]:
        """What of the squared clip norm each group has; they add up to 1."""
        total = [0] * (max(groups.values()) + 1)
        for name, group in groups.items():
            total[group] += sizes[name]
        return [size / sum(total) for size in total] if self.split == "size" else [1.0 / len(total)] * len(total)

    def words(self) -> str:
        """Say what is done with a unit's gradient."""
        return {
            "flat": "flat, on the whole gradient of a unit",
            "rescaled": "flat, on the whole gradient of a unit, then divided by the clip norm: sensitivity 1",
            "scaled": (
                "flat, on the whole gradient of a unit, after the part of every layer was multiplied by a public number"
            ),
            "automatic": f"automatic: the whole gradient g of a unit becomes g / (|g| + {GAMMA:g}), sensitivity 1",
            "per_layer": f"per layer, shares by {self.split}; squared, the norms add up to that of the whole",
            "groups": f"by groups of layers, shares by {self.split}; squared, the norms add up to that of the whole",
            "adaptive": (
                f"flat, on the whole gradient of a unit; the norm starts as given and follows the {self.quantile:g} "
                "quantile, by a noised count that the noise multiplier pays for"
            ),
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


def clipping_of(privacy: PrivacyConfig) -> Clipping:
    """Return the clip rule that the settings ask for.

    Raises:
        ConfigError: An option is out of range, or belongs to another rule.
    """
    if privacy.clip_scales is not None and privacy.clipping != "scaled":
        raise ConfigError(f"privacy.clip_scales means nothing with clipping={privacy.clipping}: leave it out")
    try:
        return Clipping(
            privacy.clipping,
            tuple(privacy.clip_groups),
            privacy.clip_split,
            privacy.clip_quantile,
            privacy.clip_count_noise,
        )
    except ConfigError as error:
        raise ConfigError(f"privacy.{error}") from error
