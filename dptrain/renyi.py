"""Rényi orders, each a bound of its own: the divergence at each, and the search by one of them at a time.

References: Mironov (2017); Mironov, Talwar and Zhang (2019).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from absl import logging as absl_logging
from dp_accounting import dp_event, privacy_accountant
from dp_accounting.rdp import RdpAccountant
from scipy.optimize import brentq

RELATION = privacy_accountant.NeighboringRelation.ADD_OR_REMOVE_ONE

# dp-accounting's own, from 1.1 to 1024: wide enough for small budgets, which need large orders.
ORDERS: tuple[float, ...] = tuple(float(order) for order in RdpAccountant(neighboring_relation=RELATION)._orders)

_MOST_NOISE = 1e7


@contextmanager
def quiet() -> Iterator[None]:
    """Keep one warning of dp-accounting off the screen: it leaves out orders whose sum does not converge (safe)."""
    before = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.ERROR)
    try:
        yield
    finally:
        absl_logging.set_verbosity(before)


def rdp_at(event: dp_event.DpEvent, orders: Sequence[float]) -> np.ndarray:
    """Return the Rényi divergence bound of an event at some orders; infinity where there is none."""
    with quiet():
        return np.asarray(RdpAccountant(orders, RELATION).compose(event)._rdp)


def descend(by_order: Callable[[int], float], at: int) -> int:
    """The place of the order from which neither neighbour is better."""
    while (better := min(beside(at), key=lambda near: (by_order(near), near != at))) != at:
        at = better
    return at


def beside(at: int) -> tuple[int, ...]:
    """The places of an order and of its neighbours."""
    return max(0, at - 1), at, min(len(ORDERS) - 1, at + 1)


def nearest_order(order: float) -> int:
    """The place of the order of ``ORDERS`` that is nearest."""
    return min(range(len(ORDERS)), key=lambda at: abs(ORDERS[at] - order))


def noise_for_order(epsilon_at: Callable[[float], float], target: float, low: float, high: float) -> float:
    """The noise that reaches the target by one order alone; its epsilon falls as the noise grows.

    Infinity where the order never reaches it: its bound does not converge, or its conversion alone costs more.
    """
    while epsilon_at(low) <= target:
        low, high = low / 2, low
    while epsilon_at(high) > target:
        low, high = high, high * 2
        if high > _MOST_NOISE:
            return math.inf

    def excess(log_noise: float) -> float:
        epsilon = epsilon_at(math.exp(log_noise))
        return math.log(epsilon) - math.log(target) if epsilon > 0 else -1.0

    return math.exp(brentq(excess, math.log(low), math.log(high), xtol=1e-6))
