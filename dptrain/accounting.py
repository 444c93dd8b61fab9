"""DpEvent -> RDP curve, privacy loss distribution, epsilon; and calibration. A thin room over dp-accounting.

References: Mironov (2017) for RDP; Mironov, Talwar and Zhang (2019) for the sampled Gaussian mechanism; Koskela et al.
(2020) and Doroshenko et al. (2022) for privacy loss distributions.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from absl import logging as absl_logging
from dp_accounting import dp_event, privacy_accountant
from dp_accounting.mechanism_calibration import (
    ExplicitBracketInterval,
    NoBracketIntervalFoundError,
    calibrate_dp_mechanism,
)
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant, compute_epsilon

from .errors import ConfigError

ACCOUNTANTS = ("rdp", "pld")
RELATION = privacy_accountant.NeighboringRelation.ADD_OR_REMOVE_ONE

# dp-accounting's own, from 1.1 to 1024: wide enough for small budgets, which need large orders.
ORDERS: tuple[float, ...] = tuple(float(order) for order in RdpAccountant(neighboring_relation=RELATION)._orders)


# Above this the loss distribution takes minutes to compose, for a number that protects nobody; RDP's bound stands in.
PLD_UP_TO_EPSILON = 200.0

NOISE_RANGE = (1e-2, 1e4)  # where calibration looks for the noise multiplier
MOST_STEPS = 2**31


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep one warning of dp-accounting off the screen: it leaves out orders whose sum does not converge (safe)."""
    before = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.ERROR)
    try:
        yield
    finally:
        absl_logging.set_verbosity(before)


def dp_sgd_event(sample_rate: float, steps: int, noise_multiplier: float) -> dp_event.DpEvent:
    """Return the event of ``steps`` Poisson-sampled Gaussian steps (Abadi et al. 2016, algorithm 1)."""
    step = dp_event.PoissonSampledDpEvent(sample_rate, dp_event.GaussianDpEvent(noise_multiplier))
    return dp_event.SelfComposedDpEvent(step, steps)


def epsilon(event: dp_event.DpEvent, delta: float, accountant: str = "rdp") -> float:
    """Return the epsilon of an event at ``delta``, adding or removing one privacy unit.

    Guarantee: an upper bound. ``rdp`` is what is claimed and budgeted; ``pld`` is the tighter reading.

    Raises:
        ConfigError: ``accountant`` or ``delta`` is out of range.
    """
    check_delta(delta)
    with _quiet():
        return float(_composed(event, accountant).get_epsilon(delta))


def rdp_curve(event: dp_event.DpEvent) -> dict[float, float]:
    """Return the Rényi divergence bound at every order of ``ORDERS``."""
    with _quiet():
        account = _composed(event, "rdp")
    return {float(order): float(value) for order, value in zip(account._orders, account._rdp, strict=True)}


def _composed(event: dp_event.DpEvent, accountant: str) -> RdpAccountant | PLDAccountant:
    if accountant == "rdp":
        return RdpAccountant(ORDERS, RELATION).compose(event)
    if accountant == "pld":
        return PLDAccountant(RELATION).compose(event)
    raise ConfigError(f"accountant={accountant!r} is not one of {', '.join(ACCOUNTANTS)}")


@functools.lru_cache(maxsize=4096)
def dp_sgd_epsilon(
    sample_rate: float, steps: int, noise_multiplier: float, delta: float, accountant: str = "rdp"
) -> float:
    """Return the epsilon of :func:`dp_sgd_event`; 0 for no steps. An upper bound by either accountant.

    Where RDP already says more than 200, ``pld`` returns the RDP figure: a looser bound, and one that is there at once.
    """
    if steps == 0:
        check_delta(delta)
        return 0.0
    check_delta(delta)
    # RDP adds up over steps, so one step's curve, the costly part, serves any number of them.
    by_rdp = float(compute_epsilon(ORDERS, steps * _rdp_of_one_step(sample_rate, noise_multiplier), delta)[0])
    if accountant == "rdp" or (accountant == "pld" and by_rdp > PLD_UP_TO_EPSILON):
        return by_rdp
    if accountant == "pld":
        with _quiet():
            return float(_pld_of_steps(sample_rate, steps, noise_multiplier).get_epsilon(delta))
    return epsilon(dp_sgd_event(sample_rate, steps, noise_multiplier), delta, accountant)


@functools.lru_cache(maxsize=4)
def _pld_of_steps(sample_rate: float, steps: int, noise_multiplier: float) -> PLDAccountant:
    """The composed loss distribution, the costly part; it serves epsilon and the bound on attacks alike."""
    return PLDAccountant(RELATION).compose(dp_sgd_event(sample_rate, steps, noise_multiplier))


def attack_accuracy(sample_rate: float, steps: int, noise_multiplier: float, delta: float) -> float:
    """Return a bound on how often anyone can say rightly whether one given unit was in the dataset.

    Guarantee: with even odds beforehand, no test that sees every iterate and all other units is right more often. It is
    the lower of (1 + delta(0)) / 2, where delta(0) bounds the total variation by PLD, and (e^epsilon + delta) /
    (1 + e^epsilon) by RDP (Kairouz, Oh and Viswanath 2015, theorem 2.1). Between 0.5 (a coin) and 1 (no protection).
    """
    by_rdp = dp_sgd_epsilon(sample_rate, steps, noise_multiplier, delta)
    if steps == 0:
        return 0.5
    from_epsilon = 1.0 - (1.0 - delta) / (1.0 + math.exp(min(by_rdp, 700.0)))
    if by_rdp > PLD_UP_TO_EPSILON:
        return from_epsilon
    with _quiet():
        variation = float(_pld_of_steps(sample_rate, steps, noise_multiplier).get_delta(0.0))
    return min(from_epsilon, (1.0 + variation) / 2)


@functools.lru_cache(maxsize=256)
def _rdp_of_one_step(sample_rate: float, noise_multiplier: float) -> np.ndarray:
    return np.array(list(rdp_curve(dp_sgd_event(sample_rate, 1, noise_multiplier)).values()))


def check_delta(delta: float) -> None:
    """Refuse a delta outside (0, 1)."""
    if not 0.0 < delta < 1.0:
        raise ConfigError(f"delta={delta} is not in (0, 1): use less than one over the number of units, such as 1e-5")


def check_epsilon(value: float) -> None:
    """Refuse an epsilon that is not a finite number above 0."""
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"epsilon={value} must be a finite number above 0")


def calibrate_noise(target: float, delta: float, sample_rate: float, steps: int) -> float:
    """Return the least noise multiplier, to four digits and rounded up, whose RDP epsilon is at most ``target``.

    Raises:
        ConfigError: No noise multiplier up to 10,000 meets the target.
    """
    check_epsilon(target)
    check_delta(delta)
    least, most = NOISE_RANGE
    if dp_sgd_epsilon(sample_rate, steps, least, delta) <= target:
        raise ConfigError(f"epsilon={target} is met with hardly any noise and so promises nothing: lower it")
    try:
        with _quiet():
            exact = calibrate_dp_mechanism(
                lambda: RdpAccountant(ORDERS, RELATION),
                lambda noise: dp_sgd_event(sample_rate, steps, noise),
                target,
                delta,
                bracket_interval=ExplicitBracketInterval(least, most),
                tol=1e-5,
            )
    except (NoBracketIntervalFoundError, ValueError) as error:
        raise ConfigError(
            f"epsilon={target} cannot be met with delta={delta}, sample_rate={sample_rate:.6g} and steps={steps}: "
            "raise epsilon, or take fewer steps or a lower sample rate"
        ) from error
    scale = 10.0 ** (3 - math.floor(math.log10(exact)))
    noise = math.ceil(exact * scale) / scale
    while dp_sgd_epsilon(sample_rate, steps, noise, delta) > target:
        noise = (round(noise * scale) + 1) / scale
    return noise


def calibrate_steps(target: float, delta: float, sample_rate: float, noise_multiplier: float) -> int:
    """Return the largest number of steps whose RDP epsilon is at most ``target``.

    Raises:
        ConfigError: Not even one step fits.
    """
    check_epsilon(target)

    def fits(steps: int) -> bool:
        return dp_sgd_epsilon(sample_rate, steps, noise_multiplier, delta) <= target

    if not fits(1):
        raise ConfigError(
            f"epsilon={target} is passed by the first step at noise_multiplier={noise_multiplier}, "
            f"sample_rate={sample_rate:.6g} and delta={delta}: raise the noise multiplier or epsilon"
        )
    low, high = 1, 2
    while fits(high):
        low, high = high, 2 * high
        if high > MOST_STEPS:
            raise ConfigError(
                f"epsilon={target} leaves room for over {MOST_STEPS} steps at noise_multiplier={noise_multiplier}: "
                "give the number of steps instead"
            )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
