"""``phases``: what trains in which steps of a run, checked and made one with the other settings."""

from __future__ import annotations

from typing import Any

from ..errors import ConfigError
from .schema import PhaseConfig, TrainConfig

_EXAMPLE = "{trainable:head,steps:60}"
_LARGEST = 1e15


def in_phases(config: TrainConfig) -> bool:
    """Whether the run has phases, or every candidate of its tuning may bring its own."""
    return bool(config.phases) or "phases" in config.tuning.search


def settle_phases(config: TrainConfig) -> None:
    """Check the phases, in place; the run then has the steps of all of them.

    Raises:
        ConfigError: A phase has no ``trainable`` or no ``steps``, or another setting contradicts them.
    """
    if not config.phases:
        return
    for number, phase in enumerate(config.phases):
        _check(f"phases[{number}]", phase)
    if config.trainable is not None:
        raise ConfigError(f"trainable={config.trainable} and phases are one too many: every phase has its own")
    if config.optimizer.lr is not None:
        raise ConfigError(
            f"optimizer.lr={config.optimizer.lr} has no effect with phases: give a phase its own, as in "
            "{trainable:head,steps:60,lr:0.01}, or leave it to the rule"
        )
    steps = [phase.steps for phase in config.phases if phase.steps is not None]
    total = sum(steps)
    if config.steps is not None and config.steps != total:
        raise ConfigError(
            f"steps={config.steps}, and the phases have {total} in all: leave steps out, or change a phase's"
        )
    config.steps = total
    warmup = config.schedule.warmup_steps
    if warmup > min(steps):
        raise ConfigError(
            f"schedule.warmup_steps={warmup} is more than the {min(steps)} steps of a phase, each of which has its "
            "own warm-up: give a shorter one"
        )


def _check(key: str, phase: PhaseConfig) -> None:
    if phase.trainable is None:
        raise ConfigError(f"{key}.trainable is not set: say what trains in this phase, as in {_EXAMPLE}")
    phase.trainable = check_names(f"{key}.trainable", phase.trainable)
    if "lora" in ([phase.trainable] if isinstance(phase.trainable, str) else phase.trainable):
        raise ConfigError(f"{key}.trainable=lora: adapters are for a whole run; use trainable=lora without phases")
    if phase.steps is None:
        raise ConfigError(f"{key}.steps is not set: say how many steps this phase has, as in {_EXAMPLE}")
    if not 1 <= phase.steps <= _LARGEST:
        raise ConfigError(f"{key}.steps={phase.steps} must be 1 or more, and at most {_LARGEST:g}")
    if phase.lr is not None and not 0 < phase.lr <= _LARGEST:
        raise ConfigError(f"{key}.lr={phase.lr} must be more than 0 and at most {_LARGEST:g}")


def check_names(key: str, value: Any) -> str | list[str]:
    """Return a name or a list of several.

    Raises:
        ConfigError: It is neither.
    """
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise ConfigError(f"{key}={value} is not the name of a group such as head, nor a list of patterns")
    return names[0] if len(names) == 1 else names
