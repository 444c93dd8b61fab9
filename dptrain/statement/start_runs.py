"""The private runs that a start was made from, and what they and the run that starts there have cost together.

Weights of a private run, or a mean of several, may start another run. Whoever has the last weights has seen what all of
these runs released, so that for a unit that was in all of them the Rényi bounds add up (Mironov 2017, proposition 1).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from ..privacy import accounting, random_stopping
from ..privacy.bands import MOST_BANDS, rounds
from ..privacy.ranges import NOISE_MULTIPLIER
from ..support.words import counted, round_up
from .fields import Distribution, MeanRuns, Part, Positive, Steps

TOGETHER = (
    "for a unit that was in this run and in every run that its start was made from: all planned steps of all of them, "
    "by RDP; the guarantee above is of this run alone"
)
NOT_TOGETHER = (
    "nothing is promised for a unit that was in all of these runs: one of them had a seed, or they protect different "
    "units; the guarantee above is of this run alone"
)
COME_FROM = "The start weights come from "


class StartRun(Part):
    """A private run that a start was made from, as its statement has it.

    Attributes:
        sha256: Of its statement.
        epsilon, delta, unit: Its guarantee.
        valid: False where it had a seed, so that nothing is promised.
        sample_rate, steps, noise_multiplier, bands: Of its mechanism; all planned steps, wherever it was stopped.
        distribution, mean_runs: Of the tuning whose winner it is; ``None`` for a single run.
    """

    sha256: str
    epsilon: Positive
    delta: Annotated[Positive, Field(lt=1)]
    unit: str
    valid: bool
    sample_rate: Annotated[Positive, Field(le=1)]
    steps: Annotated[Steps, Field(ge=1)]
    noise_multiplier: Annotated[float, Field(ge=NOISE_MULTIPLIER[0], le=NOISE_MULTIPLIER[1])]
    bands: Annotated[int, Field(ge=1, le=MOST_BANDS)]
    distribution: Distribution | None
    mean_runs: MeanRuns | None

    @classmethod
    def of(cls, statement: Mapping[str, Any], sha256: str) -> StartRun:
        """Return what a checked statement says of its own run."""
        guarantee, mechanism, tuning = statement["guarantee"], statement["mechanism"], statement["tuning"]
        return cls(
            sha256=sha256,
            epsilon=guarantee["epsilon"],
            delta=guarantee["delta"],
            unit=guarantee["unit"],
            valid=statement["valid"],
            sample_rate=mechanism["sample_rate"],
            steps=mechanism["planned_steps"],
            noise_multiplier=mechanism["noise_multiplier"],
            bands=mechanism["bands"],
            distribution=tuning.get("distribution"),
            mean_runs=tuning.get("mean_runs"),
        )

    def curve(self) -> dict[float, float]:
        """Its Rényi divergence bound by order; of the winner of a tuning, that of the whole tuning."""
        accounted = rounds(self.sample_rate, self.steps, self.bands)
        if self.distribution is None:
            return accounting.dp_sgd_rdp_curve(*accounted, self.noise_multiplier)
        event = accounting.dp_sgd_event(*accounted, self.noise_multiplier)
        return accounting.rdp_curve(
            random_stopping.random_stopping_event(event, float(self.mean_runs or 0.0), self.distribution)
        )


def composed_epsilon(
    runs: Sequence[StartRun], own: Mapping[float, float], delta: float, unit: str, secure: bool
) -> float | None:
    """Return the RDP epsilon, at ``delta``, of a run with the curve ``own`` and all those behind its start.

    ``None`` where nothing is promised for a unit that was in all of them.
    """
    if not secure or not all(run.valid and run.unit == unit for run in runs):
        return None
    epsilon = accounting.epsilon_of_curves([own, *(run.curve() for run in runs)], delta)
    return epsilon if math.isfinite(epsilon) else None


def start_runs_section(
    runs: Sequence[StartRun], own: Mapping[float, float], delta: float, unit: str, secure: bool
) -> dict[str, Any] | None:
    """Return the ``start_runs`` section of a statement; ``None`` where no private run is behind the start."""
    if not runs:
        return None
    epsilon = composed_epsilon(runs, own, delta, unit, secure)
    return {
        "runs": [run.model_dump() for run in runs],
        "epsilon": epsilon,
        "delta": delta,
        "meaning": NOT_TOGETHER if epsilon is None else TOGETHER,
    }


def start_runs_words(section: Mapping[str, Any] | None) -> list[str]:
    """What a reader must know of a start that private runs made."""
    if section is None:
        return []
    text = f"{COME_FROM}{counted(len(section['runs']), 'private run')}"
    if section["epsilon"] is None:
        return [f"{text}: {section['meaning']}."]
    epsilon = f"epsilon {round_up(section['epsilon'])} at delta {section['delta']:.3g}"
    return [f"{text}. What they and this run cost together, {epsilon}, holds {section['meaning']}."]


def each_once(runs: Iterable[StartRun]) -> tuple[StartRun, ...]:
    """Return every run once, in the order in which they come."""
    return tuple({run.sha256: run for run in runs}.values())
