"""The private runs that a start was made from, and what they and the run that starts there have cost together.

Weights of a private run, or a mean of several, may start another run. Whoever has the last weights has seen what all of
these runs released, so that for a unit that was in all of them the Rényi bounds add up (Mironov 2017, proposition 1).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..privacy import accounting, random_stopping
from ..privacy.ranges import check_noise_multiplier
from ..support.words import counted, round_up

TOGETHER = (
    "for a unit that was in this run and in every run that its start was made from: all planned steps of all of them, "
    "by RDP; the guarantee above is of this run alone"
)
NOT_TOGETHER = (
    "nothing is promised for a unit that was in all of these runs: one of them had a seed, or they protect different "
    "units; the guarantee above is of this run alone"
)
COME_FROM = "The start weights come from "


@dataclass(frozen=True)
class StartRun:
    """A private run that a start was made from, as its statement has it.

    Attributes:
        sha256: Of its statement.
        epsilon, delta, unit: Its guarantee.
        valid: False where it had a seed, so that nothing is promised.
        sample_rate, steps, noise_multiplier: Of its mechanism; all planned steps, wherever it was stopped.
        distribution, mean_runs: Of the tuning whose winner it is; ``None`` for a single run.
    """

    sha256: str
    epsilon: float
    delta: float
    unit: str
    valid: bool
    sample_rate: float
    steps: int
    noise_multiplier: float
    distribution: str | None
    mean_runs: float | None

    @classmethod
    def of(cls, statement: Mapping[str, Any], sha256: str) -> StartRun:
        """Return what a checked statement says of its own run."""
        guarantee, mechanism, tuning = statement["guarantee"], statement["mechanism"], statement["tuning"]
        return cls(
            sha256,
            guarantee["epsilon"],
            guarantee["delta"],
            guarantee["unit"],
            statement["valid"],
            mechanism["sample_rate"],
            mechanism["planned_steps"],
            mechanism["noise_multiplier"],
            tuning.get("distribution"),
            tuning.get("mean_runs"),
        )

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> StartRun:
        """Return it from what :meth:`plain` gave.

        Raises:
            ValueError: A value is missing, of another kind or out of range.
        """
        if not isinstance(values, Mapping) or values.keys() != {item.name for item in fields(cls)}:
            raise ValueError("not the fields of a run")
        run = cls(**values)
        numbers = (run.epsilon, run.delta, run.sample_rate, run.noise_multiplier)
        if not all(_is_positive(number) for number in numbers) or run.sample_rate > 1 or run.delta >= 1:
            raise ValueError("a number out of range")
        check_noise_multiplier(run.noise_multiplier)
        if isinstance(run.steps, bool) or not isinstance(run.steps, int) or not 1 <= run.steps <= accounting.MOST_STEPS:
            raise ValueError("steps out of range")
        if not isinstance(run.sha256, str) or not isinstance(run.unit, str) or not isinstance(run.valid, bool):
            raise ValueError("a value of another kind")
        if run.distribution is not None and (
            run.distribution not in list(random_stopping.RANDOM_STOPPING)
            or not _is_positive(run.mean_runs)
            or not 1.0 <= float(run.mean_runs or 0.0) <= 1e6
        ):
            raise ValueError("a tuning that dptrain does not draw")
        return run

    def plain(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)

    def curve(self) -> dict[float, float]:
        """Its Rényi divergence bound by order; of the winner of a tuning, that of the whole tuning."""
        if self.distribution is None:
            return accounting.dp_sgd_rdp_curve(self.sample_rate, self.steps, self.noise_multiplier)
        event = accounting.dp_sgd_event(self.sample_rate, self.steps, self.noise_multiplier)
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
        "runs": [run.plain() for run in runs],
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


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e300
