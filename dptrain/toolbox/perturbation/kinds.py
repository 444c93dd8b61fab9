"""Ways to make pictures worse, each with a level: noise, blur, compression, darkness."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from ...errors import ConfigError

GAMMA = 2.2  # by which 8-bit values stand for light, about


@dataclass(frozen=True)
class Kind:
    """A perturbation.

    Attributes:
        name: In commands, files and MLflow.
        unit: Of the level, for people.
        clean: The level at which nothing is changed; levels further from it are worse.
        least, most: Bounds of the level.
        levels: Those that are tried by default.
        apply: The picture at a level; uint8 BGR pixels in and out. The generator is used by noise only.
    """

    name: str
    unit: str
    clean: float
    least: float
    most: float
    levels: tuple[float, ...]
    apply: Callable[[np.ndarray, float, np.random.Generator], np.ndarray]

    def check(self, level: float) -> float:
        """Return a level that is within the bounds.

        Raises:
            ConfigError: It is not.
        """
        if not (math.isfinite(level) and self.least <= level <= self.most) or (
            self.name == "jpeg" and level != int(level)
        ):
            whole = "a whole number" if self.name == "jpeg" else "a number"
            raise ConfigError(
                f"{self.name}={level:g} is not {whole} from {self.least:g} to {self.most:g} ({self.unit})"
            )
        return float(level)


def _noise(image: np.ndarray, level: float, random: np.random.Generator) -> np.ndarray:
    noisy = random.standard_normal(image.shape, np.float32)
    noisy *= level
    noisy += image
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def _blur(image: np.ndarray, level: float, _: np.random.Generator) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), level) if level else image


def _jpeg(image: np.ndarray, level: float, _: np.random.Generator) -> np.ndarray:
    data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(level)])[1]
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))


def _dark(image: np.ndarray, level: float, _: np.random.Generator) -> np.ndarray:
    return cv2.LUT(image, np.rint(np.arange(256) * level ** (1 / GAMMA)).astype(np.uint8))


#: The kinds by name. Levels are of the stored picture, before it is scaled to the model's size.
KINDS = {
    kind.name: kind
    for kind in (
        Kind("noise", "standard deviation in grey levels of 255", 0, 0, 1000, (5, 10, 20, 40, 80), _noise),
        Kind("blur", "standard deviation in pixels", 0, 0, 100, (1, 2, 4, 8), _blur),
        Kind("jpeg", "quality", 101, 1, 100, (50, 20, 10, 5), _jpeg),
        Kind("dark", "share of the light that is left", 1, 0.001, 1, (0.5, 0.25, 0.1, 0.03), _dark),
    )
}


def kind_of(name: str) -> Kind:
    """Return the kind of that name.

    Raises:
        ConfigError: There is none.
    """
    if name not in KINDS:
        raise ConfigError(f"kind={name} is not one of {', '.join(KINDS)}")
    return KINDS[name]


def perturb(image: np.ndarray, kind: Kind, level: float, seed: int, name: str) -> np.ndarray:
    """Return the picture at a level; which noise it gets depends on the seed, the level and its name, and nothing else.

    Args:
        image: uint8 BGR pixels (height, width, 3).
        kind, level: What is done to it.
        seed: Not negative. **Whoever knows it can take the noise off again.**
        name: Of the picture within its dataset, so that every picture has noise of its own.
    """
    words = np.frombuffer(hashlib.sha256(f"{seed}|{level!r}|{name}".encode()).digest(), np.uint32)
    return kind.apply(image, level, np.random.default_rng(words))
