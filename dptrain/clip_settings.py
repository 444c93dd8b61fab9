"""Which clip rule a plan follows, and with which options: public all of it, and what the rule is made from."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from .clipping import GAMMA, AdaptiveClip, AutomaticClip, ClipRule, FlatClip, GroupClip, RescaledClip, check_clip_norm
from .errors import ConfigError

if TYPE_CHECKING:
    from .schema import PrivacyConfig

CLIPPINGS = ("flat", "rescaled", "automatic", "per_layer", "groups", "adaptive")
SPLITS = ("equal", "size")


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
    """

    name: str = "flat"
    groups: tuple[str, ...] = ()
    split: str = "equal"
    quantile: float = 0.5
    count_noise: float | None = None

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
        of_others = {
            "clip_groups": (self.groups != (), ("groups",)),
            "clip_split": (self.split != "equal", ("groups", "per_layer")),
            "clip_quantile": (self.quantile != 0.5, ("adaptive",)),
            "clip_count_noise": (self.count_noise is not None, ("adaptive",)),
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
        if not isinstance(values, Mapping) or sorted(map(str, values)) != sorted(names):
            raise ConfigError(f"clip_rule={values!r} is not made of {', '.join(names)}")
        groups = values["groups"]
        return cls(**{**values, "groups": tuple(groups) if isinstance(groups, list) else groups})

    def facts(self) -> dict[str, Any]:
        """Return the fields as JSON has them."""
        return {**asdict(self), "groups": list(self.groups)}

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
            ConfigError: A pattern of ``groups`` matches no layer.
        """
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

    def _grouped(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """The group of every parameter; a layer's parameters are in one."""
        if self.name == "per_layer":
            keys = {name: name.rpartition(".")[0] for name in sizes}
        else:
            keys = {name: self._pattern_of(name.rpartition(".")[0]) for name in sizes}
            unused = [pattern for pattern in self.groups if pattern not in keys.values()]
            if unused:
                raise ConfigError(f"clip_groups: {unused[0]!r} is the first to match no trainable layer: leave it out")
        numbers = {key: number for number, key in enumerate(dict.fromkeys(keys.values()))}
        return {name: numbers[key] for name, key in keys.items()}

    def _pattern_of(self, layer: str) -> str:
        """The first pattern that fits a layer; the empty text if none does."""
        return next(
            (p for p in self.groups if any(fnmatch.fnmatchcase(layer, part) for part in p.split("|"))),
            "",
        )

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
            "automatic": f"automatic: the whole gradient g of a unit becomes g / (|g| + {GAMMA:g}), sensitivity 1",
            "per_layer": f"per layer, shares by {self.split}; squared, the norms add up to that of the whole",
            "groups": f"by groups of layers, shares by {self.split}; squared, the norms add up to that of the whole",
            "adaptive": (
                f"flat, on the whole gradient of a unit; the norm starts as given and follows the {self.quantile:g} "
                "quantile, by a noised count that the noise multiplier pays for"
            ),
        }[self.name]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300


FLAT = Clipping()


def clipping_of(privacy: PrivacyConfig) -> Clipping:
    """Return the clip rule that the settings ask for.

    Raises:
        ConfigError: An option is out of range, or belongs to another rule.
    """
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
