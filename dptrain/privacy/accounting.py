"""DpEvent -> RDP curve, privacy loss distribution, epsilon. A thin room over dp-accounting.

References: Mironov (2017) for RDP; Mironov, Talwar and Zhang (2019) for the sampled Gaussian mechanism; Koskela et al.
(2020) and Doroshenko et al. (2022) for privacy loss distributions.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant, compute_epsilon

from ..errors import ConfigError
from .outside_accountant import OWN, epsilon_by
from .pld import loss_distribution, sampled_gaussians
from .rdp import ORDERS, RELATION, quiet, rdp_at
from .trade_off import FALSE_POSITIVE_RATES, TradeOff, trade_off_of_curve, trade_off_of_steps

# Above this the loss distribution takes minutes to compose, for a number that protects nobody; RDP's bound stands in.
PLD_UP_TO_EPSILON = 200.0
PLD_UP_TO_STEPS = 10**6  # likewise: dp-accounting raises a whole number to this power

MOST_STEPS = 2**31


def dp_sgd_event(sample_rate: float, steps: int, noise_multiplier: float) -> dp_event.DpEvent:
    """Return the event of ``steps`` Poisson-sampled Gaussian steps (Abadi et al. 2016, algorithm 1)."""
    step = dp_event.PoissonSampledDpEvent(sample_rate, dp_event.GaussianDpEvent(noise_multiplier))
    return dp_event.SelfComposedDpEvent(step, steps)


def epsilon(event: dp_event.DpEvent, delta: float, accountant: str = "rdp") -> float:
    """Return the epsilon of an event at ``delta``, adding or removing one privacy unit.

    Guarantee: an upper bound. ``rdp`` is what is claimed and budgeted; ``pld`` is the tighter reading. Another name is
    that of :func:`~dptrain.register_accountant`, and the bound its author's word.

    Raises:
        ConfigError: ``accountant`` or ``delta`` is out of range.
    """
    check_delta(delta)
    if accountant not in OWN:
        return epsilon_by(accountant, event, delta)
    with quiet():
        if accountant == "pld" and (steps := sampled_gaussians(event)):
            return float(loss_distribution(steps).get_epsilon_for_delta(delta))
        return float(_composed(event, accountant).get_epsilon(delta))


def rdp_curve(event: dp_event.DpEvent) -> dict[float, float]:
    """Return the Rényi divergence bound at every order of ``ORDERS``."""
    return dict(zip(ORDERS, rdp_at(event, ORDERS).tolist(), strict=True))


def epsilon_of_curves(curves: Sequence[Mapping[float, float]], delta: float) -> float:
    """Return the RDP epsilon at ``delta`` of what several curves bound together: they add up order by order.

    An order that one of them lacks is left out, which is safe. Infinite where none is left.
    """
    check_delta(delta)
    orders = [order for order in ORDERS if all(math.isfinite(curve.get(order, math.inf)) for curve in curves)]
    if not orders:
        return math.inf
    return float(compute_epsilon(orders, [sum(curve[order] for curve in curves) for order in orders], delta)[0])


def _composed(event: dp_event.DpEvent, accountant: str) -> RdpAccountant | PLDAccountant:
    if accountant == "rdp":
        return RdpAccountant(ORDERS, RELATION).compose(event)
    return PLDAccountant(RELATION).compose(event)


@functools.lru_cache(maxsize=4096)
def dp_sgd_epsilon(
    sample_rate: float, steps: int, noise_multiplier: float, delta: float, accountant: str = "rdp"
) -> float:
    """Return the epsilon of :func:`dp_sgd_event`; 0 for no steps. An upper bound by either accountant.

    Where RDP already says more than 200, and for over a million steps, ``pld`` returns the RDP figure: a looser bound,
    and one that is there at once.
    """
    if steps == 0:
        check_delta(delta)
        return 0.0
    check_delta(delta)
    # RDP adds up over steps, so one step's curve, the costly part, serves any number of them.
    by_rdp = float(compute_epsilon(ORDERS, steps * _rdp_of_one_step(sample_rate, noise_multiplier), delta)[0])
    if accountant == "rdp" or (accountant == "pld" and (by_rdp > PLD_UP_TO_EPSILON or steps > PLD_UP_TO_STEPS)):
        return by_rdp
    return epsilon(dp_sgd_event(sample_rate, steps, noise_multiplier), delta, accountant)


def dp_sgd_rdp_curve(sample_rate: float, steps: int, noise_multiplier: float) -> dict[float, float]:
    """Return :func:`rdp_curve` of :func:`dp_sgd_event`, empty for no steps; one step's curve is computed once."""
    if steps == 0:
        return {}
    return dict(zip(ORDERS, (steps * _rdp_of_one_step(sample_rate, noise_multiplier)).tolist(), strict=True))


def attack_accuracy(sample_rate: float, steps: int, noise_multiplier: float, delta: float) -> float:
    """Return a bound on how often anyone can say rightly whether one given unit was in the dataset.

    Guarantee: with even odds beforehand, no test that sees every iterate and all other units is right more often. It is
    the lower of (1 + delta(0)) / 2, where delta(0) bounds the total variation by PLD, and (e^epsilon + delta) /
    (1 + e^epsilon) by RDP (Kairouz, Oh and Viswanath 2015, theorem 2.1). Between 0.5 (a coin) and 1 (no protection).
    """
    by_rdp = dp_sgd_epsilon(sample_rate, steps, noise_multiplier, delta)
    if steps == 0:
        return 0.5
    from_epsilon = accuracy_within(by_rdp, delta)
    if by_rdp > PLD_UP_TO_EPSILON or steps > PLD_UP_TO_STEPS:
        return from_epsilon
    sampled = sampled_gaussians(dp_sgd_event(sample_rate, steps, noise_multiplier)) or ()  # a rate of 0: no step
    variation = float(loss_distribution(sampled).get_delta_for_epsilon(0.0))
    return min(from_epsilon, (1.0 + variation) / 2)


def accuracy_within(epsilon: float, delta: float) -> float:
    """Return the bound of :func:`attack_accuracy` that follows from (epsilon, delta) alone."""
    return 1.0 - (1.0 - delta) / (1.0 + math.exp(min(epsilon, 700.0)))


def true_positive_rates(sample_rate: float, steps: int, noise_multiplier: float, delta: float) -> dict[str, float]:
    """Return the best true-positive rate of any test for one given unit, at each of ``FALSE_POSITIVE_RATES``.

    Guarantee: an upper bound for whoever sees every iterate and all other units, by PLD; by RDP where PLD would take
    minutes (see :func:`dp_sgd_epsilon`; ``delta`` decides that and nothing else). A coin has the two rates equal.
    """
    sampled = sampled_gaussians(dp_sgd_event(sample_rate, steps, noise_multiplier)) if steps else None
    if sampled is None:  # no step, or none that draws anyone
        return dict(FALSE_POSITIVE_RATES)
    if dp_sgd_epsilon(sample_rate, steps, noise_multiplier, delta) > PLD_UP_TO_EPSILON or steps > PLD_UP_TO_STEPS:
        return true_positive_rates_within(dp_sgd_rdp_curve(sample_rate, steps, noise_multiplier))
    return _true_positive_rates(trade_off_of_steps(sampled))


def true_positive_rates_within(curve: Mapping[float, float]) -> dict[str, float]:
    """Return the bounds of :func:`true_positive_rates` that follow from a Rényi divergence at every order alone."""
    return _true_positive_rates(trade_off_of_curve(curve))


def _true_positive_rates(bound: TradeOff) -> dict[str, float]:
    return {name: bound.most(rate) for name, rate in FALSE_POSITIVE_RATES.items()}


@functools.lru_cache(maxsize=256)
def _rdp_of_one_step(sample_rate: float, noise_multiplier: float) -> np.ndarray:
    return rdp_of_step(sample_rate, noise_multiplier, ORDERS)


def check_delta(delta: float) -> None:
    """Refuse a delta outside (0, 1)."""
    if not 0.0 < delta < 1.0:
        raise ConfigError(f"delta={delta} is not in (0, 1): use less than one over the number of units, such as 1e-5")


def check_epsilon(value: float) -> None:
    """Refuse an epsilon that is not a finite number above 0."""
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"epsilon={value} must be a finite number above 0")


def rdp_of_step(sample_rate: float, noise_multiplier: float, orders: tuple[float, ...]) -> np.ndarray:
    return rdp_at(dp_sgd_event(sample_rate, 1, noise_multiplier), orders)
