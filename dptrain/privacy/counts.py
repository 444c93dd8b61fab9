"""Counts over units whose whole contribution is bounded, released with exact noise: one Gaussian mechanism a release.

Each unit brings one vector, of any length in the Euclidean norm. It is shortened to a length of 1 where it is longer,
cut to whole numbers of 2^-30, and added. So one unit more or less moves the sum by a vector of norm at most 1, whatever
the unit holds, and the noise of :func:`~dptrain.privacy.noise.privatize` is scaled to that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError
from . import accounting, calibration, exact
from . import noise as door
from .ranges import check_noise_multiplier
from .units import UNITS

if TYPE_CHECKING:
    from dp_accounting.dp_event import DpEvent

    from .streams import NoiseStream

MOST_RELEASES = 10_000
_NAME = "counts"


def bounded(vector: np.ndarray) -> Tensor:
    """Return what one unit adds to a sum: its vector, shortened to norm 1 where it is longer, in whole numbers.

    Formal guarantee: the result has Euclidean norm at most ``exact.SENSITIVITY``, checked by whole-number arithmetic,
    whatever ``vector`` is; one with an entry that is not finite becomes zero.

    Args:
        vector: Of any shape.

    Returns:
        int64 of the same shape, in parts of 1 / ``exact.SENSITIVITY``.
    """
    values = torch.from_numpy(np.asarray(vector, dtype=np.float64))
    largest = float(values.abs().max()) if values.numel() else 0.0
    if largest > 0:
        norm = largest * float((values / largest).square().sum().sqrt())  # no square overflows
        values = values / max(1.0, norm)
    return exact.to_grid({_NAME: values}, 1.0)[_NAME]  # zero where it is not finite


def release(total: Tensor, noise_multiplier: float, stream: NoiseStream) -> np.ndarray:
    """Return a sum of :func:`bounded` vectors with noise of standard deviation ``noise_multiplier`` on every entry.

    Formal guarantee: one Gaussian mechanism with that noise multiplier, for adding or removing one unit. What is
    computed from the result alone costs nothing more.

    Args:
        total: int64, each unit in it once and no unit twice.
        noise_multiplier: Above 0.
        stream: Where the noise comes from; not used for anything else.
    """
    noised = door.privatize(
        {_NAME: total}, sensitivity=exact.SENSITIVITY, noise_multiplier=noise_multiplier, stream=stream
    )
    return noised[_NAME].double().numpy() / exact.SENSITIVITY


@dataclass(frozen=True)
class ReleasePlan:
    """How often counts over some units are released, and with how much noise; fixed before any unit is looked at.

    Formal guarantee: ``releases`` results of :func:`release`, each of counts that earlier ones may have chosen, are
    (``epsilon()``, ``delta``)-differentially private for adding or removing one unit.

    Attributes:
        noise_multiplier: Standard deviation of the noise of a release, where one unit adds a vector of norm at most 1.
        releases: How many, at least 1.
        delta: In (0, 1); should be well below one over the number of units.
        unit: ``image``, or ``group``.
    """

    noise_multiplier: float
    releases: int
    delta: float
    unit: str = "image"

    def __post_init__(self) -> None:
        check_noise_multiplier(self.noise_multiplier)
        accounting.check_delta(self.delta)
        count = self.releases
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MOST_RELEASES:
            raise ConfigError(f"releases={count} must be a whole number, at least 1 and at most {MOST_RELEASES}")
        if self.unit not in UNITS:
            raise ConfigError(f"unit={self.unit!r} is not one of {', '.join(UNITS)}")

    @classmethod
    def calibrate(cls, *, epsilon: float, delta: float, releases: int = 1, unit: str = "image") -> ReleasePlan:
        """Return the plan with the least noise whose RDP epsilon is at most ``epsilon``."""
        draft = cls(1.0, releases, delta, unit)  # checks the rest
        return cls(calibration.calibrate_noise(epsilon, delta, 1.0, draft.releases), releases, delta, unit)

    def event(self) -> DpEvent:
        """Return what is accounted: every unit is in every release."""
        return accounting.dp_sgd_event(1.0, self.releases, self.noise_multiplier)

    def epsilon(self, accountant: str = "rdp") -> float:
        """Return the epsilon of all releases by ``rdp`` (the claim) or ``pld``."""
        return accounting.dp_sgd_epsilon(1.0, self.releases, self.noise_multiplier, self.delta, accountant)
