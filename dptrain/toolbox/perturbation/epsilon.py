"""What noise on the pixels is worth as differential privacy, computed: next to nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ...errors import ConfigError

RANGE = 255.0  # grey levels by which one value of an 8-bit picture can differ
_ANALYTIC_UP_TO = 1e-3  # noise multiplier below which the exact formula leaves the range of its numbers


@dataclass(frozen=True)
class InputNoise:
    """Gaussian noise on every value of a picture, as the local differential privacy that it gives.

    Attributes:
        what: Which two pictures are to be kept apart.
        values: How many 8-bit values they may differ in.
        sensitivity: Greatest distance of the two in L2 norm, in grey levels: 255 sqrt(values).
        epsilon: At the delta that was asked for; inf without noise.
        needed: Standard deviation in grey levels for an epsilon of :data:`TARGET`.
    """

    what: str
    values: int
    sensitivity: float
    epsilon: float
    needed: float


TARGET = 8.0


def local_epsilon(level: float, values: int, delta: float) -> float:
    """Return the epsilon at which one noisy picture is locally differentially private.

    The Gaussian mechanism on a vector of ``values`` numbers in [0, 255], any two of which are neighbours: the
    sensitivity is 255 sqrt(values), and rounding and clipping afterwards change nothing. Exact by Balle and Wang
    (2018, theorem 8); below a noise multiplier of 0.001 by concentrated differential privacy (Bun and Steinke 2016,
    proposition 1.3), an upper bound within 1 % there.

    Args:
        level: Standard deviation of the noise, in grey levels.
        values: Numbers that may differ: height x width x channels of the picture, or of a part of it.
        delta: Chance of failure allowed.

    Raises:
        ConfigError: A number is out of range.
    """
    if not (level >= 0 and values >= 1 and 0 < delta < 1):
        raise ConfigError(
            f"level={level}, values={values}, delta={delta}: use 0 or more, 1 or more, and between 0 and 1"
        )
    multiplier = level / (RANGE * math.sqrt(values))
    if multiplier == 0:
        return math.inf
    if multiplier >= _ANALYTIC_UP_TO:
        from dp_accounting.gaussian_mechanism import get_epsilon_gaussian

        return float(get_epsilon_gaussian(multiplier, delta))
    rho = 1 / (2 * multiplier**2)
    return rho + 2 * math.sqrt(rho * math.log(1 / delta))


def needed_level(epsilon: float, values: int, delta: float) -> float:
    """Return the standard deviation, in grey levels, at which :func:`local_epsilon` is ``epsilon``."""
    from dp_accounting.gaussian_mechanism import get_sigma_gaussian

    return float(get_sigma_gaussian(epsilon, delta)) * RANGE * math.sqrt(values)


def input_noise(level: float, height: int, width: int, delta: float) -> Iterator[InputNoise]:
    """Say what noise is worth for a whole picture, a tenth of it, and a single pixel."""
    whole = height * width * 3
    for what, values in (
        (f"the whole picture, {width} x {height} x 3", whole),
        ("a face on a tenth of its area", max(whole // 10, 3)),
        ("a single pixel, the rest being known", 3),
    ):
        yield InputNoise(
            what,
            values,
            RANGE * math.sqrt(values),
            local_epsilon(level, values, delta),
            needed_level(TARGET, values, delta),
        )
