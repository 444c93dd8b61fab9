"""Poisson sampling of privacy units (Abadi et al. 2016, algorithm 1; Zhu and Wang 2019 for its accounting)."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .errors import ConfigError
from .noise import NoiseStream


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


class UnitRows:
    """The rows of a dataset by privacy unit, and which of them a step takes.

    Formal guarantee: what a step takes of a unit is a function of the unit's own rows and of the step's seed. It needs
    no privacy of its own: the gradients of a unit's rows are averaged and clipped as one.

    Args:
        groups: Of every row, what it belongs to; units are numbered in the order in which they first come.
        most: Largest number of rows of a unit that a step takes; a public constant.
        copies: How often each of these rows is used, each time augmented anew; a public constant.
    """

    def __init__(self, groups: Sequence[Hashable], most: int = 1, copies: int = 1) -> None:
        if most < 1 or copies < 1:
            raise ConfigError(f"most={most} and copies={copies} of a unit's rows must be 1 or more")
        numbers: dict[Hashable, int] = {}
        of_row = np.array([numbers.setdefault(group, len(numbers)) for group in groups], dtype=np.int64)
        self.most, self.copies = most, copies
        # Two arrays, not a list a unit: workers started by fork then share them instead of copying them.
        self._rows = np.argsort(of_row, kind="stable")
        self._starts = np.searchsorted(of_row[self._rows], np.arange(len(numbers) + 1))

    def __len__(self) -> int:
        return len(self._starts) - 1

    @property
    def most_at_once(self) -> int:
        """Most rows that one unit can be in a step, copies included; a public constant."""
        return self.most * self.copies

    def count(self, unit: int) -> int:
        """Return the number of rows that a step takes of a unit, copies included."""
        return int(min(self._starts[unit + 1] - self._starts[unit], self.most)) * self.copies

    def chosen(self, unit: int, seed: int) -> np.ndarray:
        """Return the rows that a step takes of a unit, in their order: all, or ``most`` of them drawn at random.

        Every subset of that size is as likely, and units are drawn from independently.
        """
        rows = self._rows[self._starts[unit] : self._starts[unit + 1]]
        if len(rows) <= self.most:
            return rows
        # The key keeps these numbers apart from those that augment the row of the same number.
        rng = np.random.default_rng(np.random.SeedSequence([seed, unit], spawn_key=(1,)))
        return np.sort(rng.choice(rows, self.most, replace=False))
