"""What a sweep costs: every job's own epsilon, and the composition of all of them.

Whoever chooses or publishes after a look at several runs has seen all of them, so their costs compose: the Rényi bounds
add up at every order (Mironov 2017, proposition 1). Jobs that failed or were stopped count with the steps they started.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dp_accounting.dp_event import ComposedDpEvent, DpEvent

from .. import accounting
from ..files import steps_started


@dataclass(frozen=True)
class JobCost:
    """What one job has spent.

    Attributes:
        steps: Steps started, also those that a crash lost.
        planned_steps: Steps of its plan.
        sample_rate: Chance that one unit is in one step.
        noise_multiplier: Standard deviation of the noise in units of the clip norm.
        delta: The job's own.
        secure: False where a seed was set, so that nothing is promised.
        unit: What one record is.
    """

    steps: int
    planned_steps: int
    sample_rate: float
    noise_multiplier: float
    delta: float
    secure: bool
    unit: str = "image"

    def epsilon(self, accountant: str = "rdp") -> float:
        """The job's own epsilon at its own delta."""
        return accounting.dp_sgd_epsilon(
            self.sample_rate, self.steps, self.noise_multiplier, self.delta, accountant=accountant
        )


@dataclass(frozen=True)
class SweepCost:
    """What having looked at all jobs costs; an upper bound, also where jobs share no image.

    Attributes:
        epsilon: RDP, composed.
        event: All steps of all jobs.
        delta: The largest of the jobs' deltas.
        deltas_differ: Whether the jobs had several.
        secure: False where any job had a seed.
    """

    epsilon: float
    event: DpEvent
    delta: float
    deltas_differ: bool
    secure: bool

    @functools.cached_property
    def epsilon_pld(self) -> float:
        """The tighter reading of the same events; the RDP figure where that promises nothing anyway."""
        if self.epsilon > accounting.PLD_UP_TO_EPSILON:
            return self.epsilon
        return accounting.epsilon(self.event, self.delta, "pld")


def read_cost(folder: Path) -> JobCost | None:
    """The cost of the run in a folder; None if it took no step."""
    steps = steps_started(folder)
    if steps == 0:
        return None
    settings = json.loads((folder / "settings.json").read_text())
    privacy = settings["privacy"]
    return JobCost(
        steps,
        settings["steps"],
        privacy["sample_rate"],
        privacy["noise_multiplier"],
        privacy["delta"],
        settings["seed"] is None,
        privacy.get("unit", "image"),
    )


def compose(costs: Sequence[JobCost]) -> SweepCost | None:
    """Compose what the jobs have spent; None if none took a step.

    Guarantee: all that the jobs released together is (``epsilon``, ``delta``)-differentially private with respect to
    adding or removing one unit from the data that all of them drew from. Of jobs with different units nothing is
    promised together: epsilon is infinite.
    """
    if not costs:
        return None
    delta = max(cost.delta for cost in costs)
    event = ComposedDpEvent(
        [accounting.dp_sgd_event(cost.sample_rate, cost.steps, cost.noise_multiplier) for cost in costs]
    )
    return SweepCost(
        accounting.epsilon(event, delta) if len({cost.unit for cost in costs}) == 1 else math.inf,
        event,
        delta,
        len({cost.delta for cost in costs}) > 1,
        all(cost.secure for cost in costs),
    )
