"""The phases of a run, from its settings: what trains in which steps, and at what learning rate."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from typing import Any

from ..detection import DetectionModel
from ..detection.trainable import trainable_names
from ..privacy.plan import PrivacyPlan
from ..settings.schema import PhaseConfig, TrainConfig
from ..training.phases import Phase, last_steps
from ..training.trainer import PrivateTrainer, learning_rate


def trains_in_any(config: TrainConfig) -> str | list[str]:
    """Return what trains at some time of the run, as ``trainable`` names it."""
    if not config.phases:
        return config.trainable  # type: ignore[no-any-return]
    named = [[p.trainable] if isinstance(p.trainable, str) else p.trainable for p in config.phases]
    return list(dict.fromkeys(name for names in named for name in names))


def phases_of(config: TrainConfig, model: DetectionModel) -> tuple[Phase, ...]:
    """Return the phases with the names of their parameters; none for a run without."""
    return tuple(Phase(_steps(phase), tuple(trainable_names(model, phase.trainable))) for phase in config.phases)


def rate_of(config: TrainConfig, plan: PrivacyPlan) -> Callable[[int], float]:
    """Return the learning rate of a step, by its number; the schedule runs anew in every phase."""
    schedule = config.schedule
    parts = [(_steps(phase), phase.lr) for phase in config.phases] or [(plan.steps, config.optimizer.lr)]
    starts = [sum(steps for steps, _ in parts[:number]) for number in range(len(parts))]

    def rate(step: int) -> float:
        number = bisect_right(starts, step) - 1
        steps, highest = parts[number]
        assert highest is not None, "with_rate settles it"
        warmup, final = schedule.warmup_steps, schedule.final
        return learning_rate(schedule.name, highest, step - starts[number], steps, warmup, final)

    return rate


def number_of(phases: tuple[Phase, ...], step: int) -> int:
    """Return the number, from 1, of the phase in which step ``step`` (from 1) was taken; the start is the first's."""
    return bisect_left(last_steps(phases), step) + 1


def in_words(config: TrainConfig, trainer: PrivateTrainer, by_rule: tuple[bool, ...]) -> str:
    """Say of every phase which steps it has, what trains and at what rate; ``by_rule``: where nobody gave the rate."""
    said, start = [], 0
    for phase, made, ruled in zip(config.phases, trainer.phases, by_rule, strict=True):
        trains = phase.trainable if isinstance(phase.trainable, str) else "+".join(phase.trainable)
        count = sum(trainer.parameters[name].numel() for name in made.names)
        rule = " by the rule of docs/training.md" if ruled else ""
        said.append(f"steps {start + 1} to {start + made.steps} {trains} ({count:,} parameters, lr {phase.lr:g}{rule})")
        start += made.steps
    return "phases: " + "; ".join(said)


def facts_of(config: TrainConfig) -> list[dict[str, Any]]:
    """Return the phases as the statement has them."""
    return [vars(phase).copy() for phase in config.phases]


def _steps(phase: PhaseConfig) -> int:
    assert phase.steps is not None, "resolve settles it"
    return phase.steps
