"""Rényi orders, each a bound of its own: the divergence at each, and the search by one of them at a time.

References: Mironov (2017); Mironov, Talwar and Zhang (2019).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from absl import logging as absl_logging
from dp_accounting import dp_event, privacy_accountant
from dp_accounting.rdp import RdpAccountant

RELATION = privacy_accountant.NeighboringRelation.ADD_OR_REMOVE_ONE

# dp-accounting's own, from 1.1 to 1024: wide enough for small budgets, which need large orders.
ORDERS: tuple[float, ...] = tuple(float(order) for order in RdpAccountant(neighboring_relation=RELATION).orders)


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
        return np.asarray(RdpAccountant(orders, RELATION).compose(event).rdp)
