"""``privacy.preset``: a recipe by the declared size of the dataset. What the user gives wins; nothing is counted.

The values rest on few trials, and `docs/training.md` says which.
"""

from __future__ import annotations

from typing import Any

from ..errors import ConfigError
from .keys import value_at
from .phases import in_phases
from .schema import PRESETS, TrainConfig

# Declared images up to which a recipe is meant, and what it settles.
_RECIPES: dict[str, tuple[float, dict[str, Any]]] = {
    "small": (
        1_000,
        {"privacy.expected_batch_size": 100, "steps": 40, "ema.decay": 0.9, "head": "one_to_many"},
    ),
    "medium": (
        20_000,
        {"privacy.expected_batch_size": 512, "steps": 100, "ema.decay": 0.95, "head": "one_to_many"},
    ),
    "large": (
        float("inf"),
        {"privacy.expected_batch_size": 4096, "steps": 1000, "ema.decay": 0.99, "head": "one_to_many"},
    ),
}
_ELSE = {"trainable": "all", "ema.decay": 0.99, "head": "auto"}


def apply_preset(config: TrainConfig) -> str:
    """Fill in what the preset settles and nobody gave, in place; return what it chose, in words, or "".

    Raises:
        ConfigError: No such preset, or ``auto`` without a declared size.
    """
    name, size = config.privacy.preset, config.privacy.dataset_size
    chosen: dict[str, Any] = {}
    if name is not None:
        if name not in PRESETS:
            raise ConfigError(f"privacy.preset={name} is not one of {', '.join(PRESETS)}")
        if name == "auto":
            if size is None:
                raise ConfigError(
                    "privacy.preset=auto goes by the declared number of images: give privacy.dataset_size=..., or "
                    "name one of small, medium, large"
                )
            name = config.privacy.preset = next(name for name, (most, _) in _RECIPES.items() if size <= most)
        chosen = {key: value for key, value in _RECIPES[name][1].items() if not _settled(config, key)}
        if size is not None and "privacy.expected_batch_size" in chosen:
            chosen["privacy.expected_batch_size"] = min(chosen["privacy.expected_batch_size"], max(1, size))
    for key, value in {**_ELSE, **chosen}.items():
        if value_at(config, key) is None and not (key == "trainable" and in_phases(config)):
            section, _, leaf = key.rpartition(".")
            setattr(getattr(config, section) if section else config, leaf, value)
    if not chosen:
        return ""
    return f"privacy.preset={name}: " + ", ".join(f"{key}={value}" for key, value in chosen.items())


def _settled(config: TrainConfig, key: str) -> bool:
    """Whether a key is given, or follows from others that are."""
    privacy = config.privacy
    if key == "steps" and privacy.epsilon is not None and privacy.noise_multiplier is not None:
        return True
    if key == "privacy.expected_batch_size" and privacy.sample_rate is not None and privacy.dataset_size is not None:
        return True
    return value_at(config, key) is not None
