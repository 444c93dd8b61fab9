"""What a sweep costs: every job's own epsilon, and the composition of all of them.

Whoever chooses or publishes after a look at several runs has seen all of them, so their costs compose: the Rényi bounds
add up at every order (Mironov 2017, proposition 1). When to stop, a job or the whole sweep, may have been chosen by
looking, too: once a job has taken a step, every job counts with all the steps that were planned, also one that failed,
was stopped or never began. What a sweep releases is a function of what the whole of it would have, wherever it is cut.
"""

from __future__ import annotations

import functools
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dp_accounting.dp_event import ComposedDpEvent, DpEvent
from omegaconf.errors import OmegaConfBaseException

from ...errors import DptrainError
from ...privacy import accounting
from ...privacy.bands import rounds
from ...settings.schema import TrainConfig
from ...statement.start_runs import StartRun, composed_epsilon, each_once
from ...training.journal import steps_started
from .jobs import SweepJob


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
        unit: What one unit is.
        start_runs: The private runs that its start was made from.
        bands: Over how many steps the noise is correlated; 1 for independent noise.
    """

    steps: int
    planned_steps: int
    sample_rate: float
    noise_multiplier: float
    delta: float
    secure: bool
    unit: str = "image"
    start_runs: tuple[StartRun, ...] = ()
    bands: int = 1

    @property
    def ended_early(self) -> bool:
        """Whether steps that were planned were not taken."""
        return self.steps < self.planned_steps

    @property
    def counted_steps(self) -> int:
        """The steps that the job is charged with: those planned, wherever it was stopped."""
        return max(self.steps, self.planned_steps)

    def epsilon(self) -> float:
        """The job's own epsilon (RDP) at its own delta, all planned steps counted."""
        return accounting.dp_sgd_epsilon(*self.accounted(self.counted_steps), self.noise_multiplier, self.delta)

    def epsilon_pld(self) -> float | None:
        """The tighter reading; None for a job that ended early."""
        if self.ended_early:
            return None
        return accounting.dp_sgd_epsilon(
            *self.accounted(self.counted_steps), self.noise_multiplier, self.delta, accountant="pld"
        )

    def accounted(self, steps: int) -> tuple[float, int]:
        """Return the rate and the number of the Poisson-sampled Gaussians that this number of its steps costs."""
        return rounds(self.sample_rate, steps, self.bands)


@dataclass(frozen=True)
class SweepCost:
    """What having looked at all jobs costs; an upper bound, also where jobs share no image.

    Attributes:
        epsilon: RDP, composed.
        epsilon_of_steps: RDP of the steps that were started alone: less than ``epsilon`` where the sweep ended early,
            and then true only if it was decided beforehand where to stop.
        event: All planned steps of all jobs.
        delta: The largest of the jobs' deltas.
        deltas_differ: Whether the jobs had several.
        secure: False where any job had a seed.
        ended_early: Whether steps that were planned were not taken.
        start_runs: The private runs that a job's start was made from, each once.
        epsilon_with_start: RDP of these and all jobs, for a unit that was in all of them; infinite where nothing is
            promised for it.
    """

    epsilon: float
    epsilon_of_steps: float
    event: DpEvent
    delta: float
    deltas_differ: bool
    secure: bool
    ended_early: bool
    start_runs: tuple[StartRun, ...]
    epsilon_with_start: float

    @functools.cached_property
    def epsilon_pld(self) -> float | None:
        """The tighter reading of the same events; None where the sweep ended early.

        The RDP figure where that promises nothing anyway.
        """
        if self.ended_early:
            return None
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
        tuple(StartRun.model_validate(run) for run in settings.get("start_runs_found", [])),
        privacy.get("bands") or 1,
    )


def planned_cost(job: SweepJob) -> JobCost | None:
    """The cost of a job that took no step, with the steps that it was to take; None if its settings make no plan."""
    from omegaconf import OmegaConf

    from ...settings import resolve

    node = OmegaConf.structured(TrainConfig)
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # what is said of the settings was said when the job was tried
    try:
        for key, value in job.settings.items():
            OmegaConf.update(node, key, value)
        settings = resolve.resolve(resolve.from_omegaconf(node))
        plan = resolve.make_plan(settings)
    except (DptrainError, OmegaConfBaseException):
        return None
    finally:
        logging.disable(before)
    secure = settings.seed is None
    return JobCost(
        0, plan.steps, plan.sample_rate, plan.noise_multiplier, plan.delta, secure, plan.unit, (), plan.bands
    )


def compose(costs: Sequence[JobCost]) -> SweepCost | None:
    """Compose what the jobs have spent, planned steps of all of them counted; None if none took a step.

    Guarantee: all that the jobs released together is (``epsilon``, ``delta``)-differentially private with respect to
    adding or removing one unit from the data that all of them drew from. Of jobs with different units nothing is
    promised together: epsilon is infinite.
    """
    if not any(cost.steps for cost in costs):
        return None
    delta = max(cost.delta for cost in costs)
    event = _event([replace(cost, steps=cost.counted_steps) for cost in costs])
    one_unit = len({cost.unit for cost in costs}) == 1
    behind = each_once(run for cost in costs for run in cost.start_runs)
    secure = all(cost.secure for cost in costs)
    together = composed_epsilon(behind, accounting.rdp_curve(event), delta, costs[0].unit, one_unit and secure)
    return SweepCost(
        accounting.epsilon(event, delta) if one_unit else math.inf,
        accounting.epsilon(_event(costs), delta) if one_unit else math.inf,
        event,
        delta,
        len({cost.delta for cost in costs}) > 1,
        secure,
        any(cost.ended_early for cost in costs),
        behind,
        math.inf if together is None else together,
    )


def _event(costs: Sequence[JobCost]) -> DpEvent:
    """The steps of some jobs, one after the other."""
    return ComposedDpEvent(
        [accounting.dp_sgd_event(*cost.accounted(cost.steps), cost.noise_multiplier) for cost in costs if cost.steps]
    )
