"""Planning before spending: which batch sizes, steps and noise meet a budget, what they can learn, how long they take.

No data is touched: everything follows from declared numbers.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import ConfigError
from . import accounting, calibration
from .bands import best_bands
from .plan import MOST_UNITS, PrivacyPlan

logger = logging.getLogger(__name__)

DEFAULT_STEPS = (100, 250, 500, 1000, 2500)
_BATCHES = 5
_SMALL_DATASET = 20_000  # below it batches differ by a factor of 2, above by 4


@dataclass(frozen=True)
class PlannedRun:
    """One way to spend the budget.

    Attributes:
        expected_batch_size, steps, sample_rate, noise_multiplier: Of :class:`PrivacyPlan`.
        epsilon: RDP epsilon of the run, at the grid's delta; an upper bound.
        signal: q sqrt(T / 2) / sigma, which grows with what can be learnt at this budget (De et al. 2022).
        epochs: q T, how often one unit is expected to be used.
        seconds: Expected time of the gradient steps; None where no speed is known.
        bands: Number of bands with which correlated noise adds up to the least on sums of gradients; 1 where it saves
            nothing.
        banded_noise: That least noise, with the bands' own noise multiplier, as a share of independent noise.
    """

    expected_batch_size: int
    steps: int
    sample_rate: float
    noise_multiplier: float
    epsilon: float
    signal: float
    epochs: float
    seconds: float | None
    bands: int
    banded_noise: float


@dataclass(frozen=True)
class Remaining:
    """What is left of a dataset's budget: the next run may have this Rényi divergence at this order.

    Attributes:
        name: Of the budget.
        order: The order that the ledger's filter looks at; None while no run has fixed it.
        divergence: What is left at that order; None likewise.
        epsilon, delta: Of the whole budget.
    """

    name: str
    order: float | None
    divergence: float | None
    epsilon: float
    delta: float


@dataclass(frozen=True)
class PlanGrid:
    """The ways to spend a budget, by batch size and steps.

    Attributes:
        runs: Those that meet it.
        impossible: Batch size, steps and reason of those that cannot.
    """

    dataset_size: int
    epsilon: float | None
    delta: float
    seconds_per_image: float | None
    budget: Remaining | None
    runs: tuple[PlannedRun, ...]
    impossible: tuple[tuple[int, int, str], ...]

    @property
    def best(self) -> PlannedRun | None:
        """The run with the strongest signal."""
        return max(self.runs, key=lambda run: run.signal, default=None)

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values, for JSON."""
        return asdict(self)


def plan_grid(
    dataset_size: int,
    epsilon: float | None = None,
    delta: float | None = None,
    *,
    batch_sizes: Sequence[int] | None = None,
    steps: Sequence[int] | None = None,
    seconds_per_image: float | None = None,
    budget: Remaining | None = None,
) -> PlanGrid:
    """Return the least noise for every batch size and number of steps that meets a target, without touching data.

    Guarantee: each run of the grid has an RDP epsilon of at most ``epsilon`` at ``delta`` and, with a ``budget``, is
    let in by its filter as the ledger stands now.

    Args:
        dataset_size: Declared, public number of units.
        epsilon: Target of one run (RDP); may be left out where a budget gives the bound.
        delta: Default ``dataset_size**-1.1``.
        batch_sizes: Expected batch sizes; default five of them up to half the dataset.
        steps: Numbers of steps.
        seconds_per_image: Time of one image in one step; gives every run's expected time.
        budget: What is left of a budget, from :func:`remaining`.

    Raises:
        ConfigError: A number is out of range, or neither ``epsilon`` nor ``budget`` is given.
    """
    if isinstance(dataset_size, bool) or not isinstance(dataset_size, int) or not 2 <= dataset_size <= MOST_UNITS:
        raise ConfigError(f"dataset_size={dataset_size} must be a whole number, at least 2 and at most {MOST_UNITS}")
    if epsilon is None and budget is None:
        raise ConfigError("no target: give epsilon, or the budget of a dataset")
    if epsilon is not None:
        accounting.check_epsilon(epsilon)
    if seconds_per_image is not None and not (math.isfinite(seconds_per_image) and seconds_per_image > 0):
        raise ConfigError(f"seconds_per_image={seconds_per_image} must be a finite number above 0")
    delta = dataset_size**-1.1 if delta is None else delta
    accounting.check_delta(delta)
    if delta >= 1 / dataset_size:
        logger.warning(
            "delta=%g is not below 1/dataset_size=%.3g, and permits releasing whole units", delta, 1 / dataset_size
        )
    batches = _whole("batch_sizes", default_batch_sizes(dataset_size) if batch_sizes is None else batch_sizes)
    counts = _whole("steps", DEFAULT_STEPS if steps is None else steps)
    if batches[-1] > dataset_size:
        raise ConfigError(f"batch_sizes={batches[-1]} is more than dataset_size={dataset_size}: give smaller ones")
    runs, impossible = [], []
    for batch in batches:
        for count in counts:
            try:
                runs.append(_planned(dataset_size, batch, count, epsilon, delta, seconds_per_image, budget))
            except ConfigError as error:
                impossible.append((batch, count, str(error)))
    return PlanGrid(dataset_size, epsilon, delta, seconds_per_image, budget, tuple(runs), tuple(impossible))


def _planned(
    size: int, batch: int, steps: int, target: float | None, delta: float, speed: float | None, budget: Remaining | None
) -> PlannedRun:
    rate = batch / size

    def least(rate: float, count: int) -> tuple[float, float | None]:
        noise, epsilon = 0.0, None
        if target is not None:
            noise, epsilon = calibration.calibrate_quickly(target, delta, rate, count)
        if budget is not None:
            needed = _noise_within(budget, rate, count)
            if needed > noise:
                noise, epsilon = needed, None
        return noise, epsilon

    noise, epsilon = least(rate, steps)
    bands, share = best_bands(rate, steps, lambda rate, count: least(rate, count)[0])
    if epsilon is None:
        epsilon = calibration.epsilon_quickly(rate, steps, noise, delta)
    return PlannedRun(
        expected_batch_size=batch,
        steps=steps,
        sample_rate=rate,
        noise_multiplier=noise,
        epsilon=epsilon,
        signal=PrivacyPlan(rate, steps, noise, 1.0, delta, batch).signal,
        epochs=rate * steps,
        seconds=None if speed is None else speed * batch * steps,
        bands=bands,
        banded_noise=share,
    )


def _noise_within(budget: Remaining, rate: float, steps: int) -> float:
    if budget.order is None or budget.divergence is None:
        return calibration.calibrate_quickly(budget.epsilon, budget.delta, rate, steps)[0]
    return calibration.calibrate_to_divergence(budget.divergence, budget.order, rate, steps)


def default_batch_sizes(dataset_size: int) -> tuple[int, ...]:
    """Return five powers of two, the largest at most half the dataset."""
    factor = 2 if dataset_size < _SMALL_DATASET else 4
    top = 2 ** math.floor(math.log2(dataset_size / 2)) if dataset_size > 2 else 1
    return tuple(sorted({max(1, top // factor**i) for i in range(_BATCHES)}))


def _whole(name: str, values: Iterable[int]) -> list[int]:
    found = list(values)
    for value in found:
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= accounting.MOST_STEPS:
            raise ConfigError(f"{name}={value} must be a whole number, at least 1 and at most {accounting.MOST_STEPS}")
    if not found:
        raise ConfigError(f"{name} is empty: give at least one")
    return sorted(set(found))
