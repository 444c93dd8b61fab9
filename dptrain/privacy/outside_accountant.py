"""Accountants from outside the package: shown beside the claimed epsilon, never claimed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from ..errors import ConfigError

if TYPE_CHECKING:
    from dp_accounting.dp_event import DpEvent

OWN = ("rdp", "pld")


class Accountant(Protocol):
    """Reads an epsilon from what a plan does to the data.

    The author's duty: an upper bound for adding or removing one unit, whatever the event; an error for an event that
    it does not know. dptrain cannot check that, so no claim rests on it: statements, budgets, calibration and the
    sweep's cost are by ``rdp``, and by ``pld`` where they say so, whatever is registered.
    """

    def __call__(self, event: DpEvent, delta: float) -> float:
        """Return the epsilon of a dp-accounting event at ``delta``, 0 or more; infinite where there is no bound."""


_ACCOUNTANTS: dict[str, Accountant] = {}


def register_accountant(name: str) -> Callable[[Accountant], Accountant]:
    """Register an :class:`Accountant` under a name, for ``plan.epsilon(name)``; a decorator.

    Raises:
        ConfigError: The name is one of dptrain's own, or taken.
    """
    if not isinstance(name, str) or not name or name in OWN or name in _ACCOUNTANTS:
        raise ConfigError(f"register_accountant({name!r}): the name is taken, or none; choose another")

    def decorate(accountant: Accountant) -> Accountant:
        _ACCOUNTANTS[name] = accountant
        return accountant

    return decorate


def epsilon_by(name: str, event: DpEvent, delta: float) -> float:
    """Return the epsilon by a registered accountant.

    Raises:
        ConfigError: There is none of that name, or what it returned is no epsilon.
    """
    if name not in _ACCOUNTANTS:
        raise ConfigError(f"accountant={name!r} is not one of {', '.join((*OWN, *_ACCOUNTANTS))}")
    found = float(_ACCOUNTANTS[name](event, delta))
    if math.isnan(found) or found < 0.0:
        raise ConfigError(f"accountant={name!r} returned epsilon {found}: it must be 0 or more")
    return found
