"""What a budget leaves for the next run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ConfigError
from ..privacy.conversion import divergence_for
from ..privacy.planning import Remaining

if TYPE_CHECKING:
    from .reading import DatasetReading


def remaining(reading: DatasetReading) -> Remaining:
    """Return what a budget leaves for the next run, from what the ledger says of it.

    Raises:
        ConfigError: It has no limit, or nothing is left.
    """
    if reading.limit is None or reading.delta is None:
        raise ConfigError(f"the budget {reading.name} has no limit: give an epsilon to plan for")
    if reading.filter_order is None or reading.used is None:
        return Remaining(reading.name, None, None, reading.limit, reading.delta)
    if reading.used >= 1:
        raise ConfigError(f"nothing is left of the budget {reading.name}: epsilon {reading.limit:g} is spent")
    capacity = divergence_for(reading.limit, reading.delta, reading.filter_order)
    left = capacity * (1 - reading.used) * (1 - 1e-6)  # the ledger rounds up what a run costs
    return Remaining(reading.name, reading.filter_order, left, reading.limit, reading.delta)
