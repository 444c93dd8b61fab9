"""Phases of one run: which parameters train in which of its steps. All of it is public, and fixed before step one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import ConfigError
from ..gradients.checks import trainable_parameters
from ..privacy.ranges import check_clip_norm


@dataclass(frozen=True)
class Phase:
    """Consecutive steps in which the same parameters train; all others keep their values.

    Formal guarantee: a step costs the same whatever trains in it. Its noise is the plan's noise multiplier times the
    sensitivity of the clip rule of its own phase, and the phase follows from the step's number alone.

    Attributes:
        steps: Number of steps, at least 1.
        names: Of the parameters that train.
        clip_norm: Clip norm of these steps; None for the plan's.
    """

    steps: int
    names: tuple[str, ...]
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ConfigError(f"a phase of steps={self.steps} must have a whole number of them, at least 1")
        if not isinstance(self.names, tuple) or not all(isinstance(name, str) for name in self.names):
            raise ConfigError(f"a phase's names={self.names!r} is not a tuple of names of parameters")
        if not self.names:
            raise ConfigError("a phase has no names: name the parameters that train in it")
        if self.clip_norm is not None:
            check_clip_norm(self.clip_norm)

    def to_list(self) -> list[Any]:
        """Return the fields as a checkpoint has them."""
        return [self.steps, list(self.names), None if self.clip_norm is None else float(self.clip_norm)]


def last_steps(phases: Iterable[Phase]) -> tuple[int, ...]:
    """Return, for every phase, how many steps are done at its end."""
    ends: list[int] = []
    for phase in phases:
        ends.append(phase.steps + (ends[-1] if ends else 0))
    return tuple(ends)


def parameters_of(module: nn.Module, phases: Sequence[Phase], steps: int) -> dict[str, nn.Parameter]:
    """Return the parameters that train in any of the phases, in the module's order; all of them then need gradients.

    Raises:
        ConfigError: The phases do not have ``steps`` steps in all, one of them names a parameter that the module does
            not have, or a trainable parameter is in none.
    """
    planned = last_steps(phases)[-1]
    if planned != steps:
        raise ConfigError(f"the phases have {planned} steps in all, and the plan has steps={steps}: make them one")
    known = dict(module.named_parameters())
    named = {name for phase in phases for name in phase.names}
    if unknown := sorted(named - known.keys()):
        raise ConfigError(f"a phase names {unknown[0]!r}, which is not a parameter of the module: leave it out")
    if left := sorted(trainable_parameters(module).keys() - named):
        raise ConfigError(f"parameter {left[0]!r} is trainable and in no phase: freeze it, or name it in one")
    let_train({name: known[name] for name in named}, named)
    return trainable_parameters(module)


def let_train(parameters: Mapping[str, nn.Parameter], names: Iterable[str]) -> None:
    """Let the parameters of these names train, and freeze the others."""
    chosen = frozenset(names)
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in chosen)
