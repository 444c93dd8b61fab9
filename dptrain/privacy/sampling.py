"""Poisson sampling of privacy units (Abadi et al. 2016, algorithm 1; Zhu and Wang 2019 for its accounting)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..errors import ConfigError
from .streams import NoiseStream


@dataclass(frozen=True)
class Draw:
    """The units of one step.

    Attributes:
        indices: Sorted numbers of the units drawn, shape (k,); ``k`` is private and may be 0.
        seed: Seeds the augmentation of this step's images; fresh for every step.
    """

    indices: np.ndarray
    seed: int


class PoissonSampler:
    """Includes every unit of ``range(num_units)`` in a step independently with probability ``sample_rate``.

    Formal guarantee: adding a unit at the end of the dataset leaves the inclusion of every other unit unchanged, and
    the new unit is in each step's draw with probability ``sample_rate``, independent of all else. This is the
    sampling that ``PoissonSampledDpEvent`` accounts for. An empty draw is a draw: the step still takes noise.

    Edge cases: no units gives empty draws; rate 1 draws all of them; a rate outside (0, 1] is a ``ConfigError``.
    """

    def __init__(self, num_units: int, sample_rate: float, stream: NoiseStream) -> None:
        if not 0.0 < sample_rate <= 1.0:
            raise ConfigError(f"sample_rate={sample_rate} is not in (0, 1]: give the chance that one unit is in a step")
        self.num_units = int(num_units)
        self.sample_rate = float(sample_rate)
        self._stream = stream

    def draw(self, step: int) -> Draw:
        """Draw the units of a step; every call is a fresh draw unless the stream is seeded."""
        stream = self._stream.at(step)
        seed = stream.integer()  # before the coins: one unit more must not change how the others are augmented
        return Draw(np.flatnonzero(stream.uniform(self.num_units) < self.sample_rate), seed)

    def draws(self, steps: int, start: int = 0) -> Iterator[Draw]:
        """Yield the draws of steps ``start`` to ``steps - 1``, one at a time, when asked."""
        for step in range(start, steps):
            yield self.draw(step)
