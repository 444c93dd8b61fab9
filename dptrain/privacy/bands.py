"""The arithmetic of correlated noise: its factor, what it is accounted as, and what it saves. Public numbers only.

The factor is a lower triangular Toeplitz matrix C with ``b`` bands, the first b coefficients of (1 - x)^(-1/2)
(Fichtenberger, Henzinger and Upadhyay 2022), scaled so that no column has a norm above 1. The noise of all steps is
C^-1 z with z independent (Choquette-Choo et al. 2023, "(Amplified) banded matrix factorization").
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np

from ..errors import ConfigError

MOST_BANDS = 1024
MOST_SUGGESTED = 32  # each holds the noise of one step in memory, and more save little
_SETTLED = 200  # times the bands: by then the rows of A C^-1 grow by the same number each


def rounds(sample_rate: float, steps: int, bands: int) -> tuple[float, int]:
    """Return the rate and the number of the Poisson-sampled Gaussians that ``steps`` steps are accounted as.

    A unit is used in at most one of every ``bands`` steps, at ``bands`` times the rate: ceil(steps / bands) times.
    """
    return bands * sample_rate, -(-steps // bands)


@functools.lru_cache(maxsize=64)
def factor(bands: int) -> tuple[float, ...]:
    """Return a column of C: ``bands`` numbers above 0, falling, whose squares add up to at most 1, exactly."""
    numbers = [1.0]
    for k in range(1, bands):
        numbers.append(numbers[-1] * (2 * k - 1) / (2 * k))
    norm = math.sqrt(math.fsum(number**2 for number in numbers)) * (1.0 + 2.0**-50)  # so that no rounding leads above 1
    return tuple(number / norm for number in numbers)


def square(column: Sequence[float]) -> Fraction:
    """Return the squared norm of a column, exactly."""
    return sum((Fraction(number) ** 2 for number in column), Fraction(0))


def accumulated(steps: int, bands: int) -> float:
    """Return the noise on sums of gradients: that of the first t of ``steps`` steps, root mean square over t.

    In units of the noise multiplier and the sensitivity, without restarts: the Frobenius norm of A C^-1 over
    sqrt(steps), with A the lower triangle of ones. Independent noise has sqrt((steps + 1) / 2).
    """
    if bands == 1:
        return math.sqrt((steps + 1) / 2)
    squares = _column_of_sums(bands, min(steps, _SETTLED * bands)) ** 2
    rest = steps - len(squares)  # rows beyond, where the column no longer changes
    total = float(np.dot(steps - np.arange(len(squares)), squares)) + rest * (rest + 1) / 2 * float(squares[-1])
    return math.sqrt(total / steps)


def size_of_a_step(steps: int, bands: int) -> float:
    """Return the noise of a single late step, in the units of :func:`accumulated`; independent noise has 1."""
    if bands == 1:
        return 1.0
    return float(np.linalg.norm(np.diff(_column_of_sums(bands, min(steps, _SETTLED * bands)), prepend=0.0)))


@functools.lru_cache(maxsize=64)
def _column_of_sums(bands: int, rows: int) -> np.ndarray:
    """The first column of A C^-1, of which every other is a part."""
    column = np.array(factor(bands))
    backwards = column[:0:-1]
    inverse = np.zeros(bands - 1 + rows)  # of C, after zeros for the rows before the first
    inverse[bands - 1] = 1.0 / column[0]
    for row in range(bands, bands - 1 + rows):
        inverse[row] = -backwards.dot(inverse[row - bands + 1 : row]) / column[0]
    return np.cumsum(inverse[bands - 1 :])


def best_bands(sample_rate: float, steps: int, noise_for: Callable[[float, int], float]) -> tuple[int, float]:
    """Return the number of bands with the least noise on sums of gradients, and its share of independent noise.

    Twice as many are tried as long as that helps, up to 32 or what the sample rate allows. Public numbers decide.

    Args:
        sample_rate, steps: Of the plan.
        noise_for: The noise multiplier that meets the target by the rate and the number of Poisson-sampled Gaussians.

    Raises:
        ConfigError: What ``noise_for`` raises for independent noise.
    """
    independent = noise_for(sample_rate, steps) * accumulated(steps, 1)
    most = min(math.floor(1.0 / sample_rate), steps, MOST_SUGGESTED)
    best, share = 1, 1.0
    for bands in [2**k for k in range(1, most.bit_length()) if 2**k < most] + [most] * (most > 1):
        try:
            found = noise_for(*rounds(sample_rate, steps, bands)) * accumulated(steps, bands) / independent
        except ConfigError:  # no noise is enough at that rate
            break
        if found >= share:
            break
        best, share = bands, found
    return best, share
