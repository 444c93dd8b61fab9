"""Poisson sampling of privacy units (Abadi et al. 2016, algorithm 1; Zhu and Wang 2019 for its accounting)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

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

    def terms(self) -> tuple[Any, ...]:
        """Return what the draws follow, which may not change in a run."""
        return self.num_units, self.sample_rate

    def draws(self, steps: int, start: int = 0) -> Iterator[Draw]:
        """Yield the draws of steps ``start`` to ``steps - 1``, one at a time, when asked."""
        for step in range(start, steps):
            yield self.draw(step)


class CyclicPoissonSampler(PoissonSampler):
    """Includes every unit in every ``bands``-th step only, independently with probability ``sample_rate``.

    Formal guarantee: the units are in ``bands`` parts, and step t draws from part t mod ``bands``, so that two uses of
    a unit are at least ``bands`` steps apart. A unit's part follows from its identity alone: one unit more or less,
    wherever it is numbered, moves no other. The parts may be known to anyone; the draws are secret, and as independent
    as those of :class:`PoissonSampler` (Choquette-Choo et al. 2023, section 4).

    Args:
        num_units: Number of units.
        sample_rate: Chance that a unit of its part is in a step; over all steps it is 1 / ``bands`` of that.
        stream: Where the coins come from.
        bands: b, the number of parts.
        identities: One for every unit, in the order of their numbers; a function of the unit and of no other, such as
            the hash of a picture. Its number is none: it changes with the units before it.
    """

    def __init__(
        self, num_units: int, sample_rate: float, stream: NoiseStream, bands: int, identities: Sequence[bytes] | None
    ) -> None:
        super().__init__(num_units, sample_rate, stream)
        if identities is None or len(identities) != num_units:
            found = "none" if identities is None else str(len(identities))
            raise ConfigError(
                f"a plan of {bands} bands needs the identities of the {num_units} units, and there are {found}: the "
                "part of a unit follows from it"
            )
        self.bands = bands
        self.parts = parts_of(identities, bands)

    def draw(self, step: int) -> Draw:
        """Draw the units of a step from its part; every call is a fresh draw unless the stream is seeded."""
        stream = self._stream.at(step)
        seed = stream.integer()
        drawn = stream.uniform(self.num_units) < self.sample_rate
        return Draw(np.flatnonzero(drawn & (self.parts == step % self.bands)), seed)

    def terms(self) -> tuple[Any, ...]:
        """Return what the draws follow, the parts among them."""
        return *super().terms(), self.bands, hashlib.sha256(self.parts.tobytes()).hexdigest()


def parts_of(identities: Sequence[bytes], bands: int) -> np.ndarray:
    """Return the part of every unit, shape (k,)."""
    return np.array([part_of(identity, bands) for identity in identities], dtype=np.int64)


def part_of(identity: bytes, bands: int) -> int:
    """Return the part that a unit of this identity is in: a fixed hash, as likely to be any of them."""
    return int.from_bytes(hashlib.sha256(b"dptrain part of a unit:" + identity).digest()[:16]) % bands
