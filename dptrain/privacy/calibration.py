"""Calibration: the noise, or the number of steps, that meets a target epsilon."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
from dp_accounting.rdp import compute_epsilon
from scipy.optimize import brentq

from ..errors import ConfigError
from .accounting import MOST_STEPS, check_delta, check_epsilon, dp_sgd_epsilon, rdp_of_step
from .rdp import ORDERS

# Instead of dp_accounting.calibrate_dp_mechanism, which tries all orders each time: with it `dptrain plan` of 25 runs
# took 24.7 s of CPU (9.4 s by the coarse orders below), with this search 2.5 s and never more noise.
NOISE_RANGE = (1e-2, 1e4)  # where calibration looks for the noise multiplier
# Calibration first looks at these orders and places.
_COARSE = (1.1, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0, 9.0, 12.0, 16.0, 24.0, 36.0, 52.0, 128.0, 256.0, 512.0, 1024.0)
_PLACES = 48
_MOST_NOISE = 1e7


def calibrate_noise(target: float, delta: float, sample_rate: float, steps: int) -> float:
    """Return the least noise multiplier, to four digits and rounded up, whose RDP epsilon is at most ``target``.

    Raises:
        ConfigError: No noise multiplier up to 10,000 meets the target.
    """
    noise = calibrate_quickly(target, delta, sample_rate, steps)[0]

    def exceeds(noise: float) -> bool:
        return dp_sgd_epsilon(sample_rate, steps, noise, delta) > target

    if exceeds(_next(noise, -1)):
        return noise
    low, high = noise / 2, noise  # the quick search came to rest at an order that is not the best
    while not exceeds(low):
        low, high = low / 2, low
    while high - low > 1e-5 * high:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if exceeds(middle) else (low, middle)
    noise = _ceiling(high)
    return noise if not exceeds(noise) else _next(noise, 1)


def calibrate_quickly(target: float, delta: float, sample_rate: float, steps: int) -> tuple[float, float]:
    """Return a noise multiplier, to four digits, that meets ``target``, and its RDP epsilon by a few orders.

    The search follows one order at a time to the best one. The minimum over some orders is never below that over all,
    so what it finds always suffices; where there are several local minima it may be more noise than is needed.

    Raises:
        ConfigError: No noise multiplier up to 10,000 meets the target.
    """
    check_epsilon(target)
    check_delta(delta)

    def coarse(place: int) -> tuple[float, float]:
        value, order = compute_epsilon(_COARSE, steps * _coarse_rdp(sample_rate, place), delta)
        return float(value), float(order)

    if coarse(0)[0] <= target:
        raise ConfigError(f"epsilon={target} is met with hardly any noise and so promises nothing: lower it")
    if coarse(_PLACES)[0] > target:
        raise ConfigError(
            f"epsilon={target} cannot be met with delta={delta}, sample_rate={sample_rate:.6g} and steps={steps}: "
            "raise epsilon, or take fewer steps or a lower sample rate"
        )
    low, high = 0, _PLACES
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if coarse(middle)[0] <= target else (middle, high)

    def by_order(noise: float, at: int) -> float:
        return _by_order(sample_rate, steps, delta, noise, at)

    at, seen = nearest_order(coarse(high)[1]), set[int]()
    while at not in seen:
        seen.add(at)
        exact = noise_for_order(functools.partial(by_order, at=at), target, _noise_at(low), _noise_at(high))
        if math.isinf(exact):
            return _ceiling(_noise_at(high)), coarse(high)[0]
        at = descend(functools.partial(_by_order, sample_rate, steps, delta, exact), at)
    noise = _ceiling(exact)
    while (reached := min(by_order(noise, near) for near in beside(at))) > target:
        noise = _next(noise, 1)
    return noise, reached


def _decimals(noise: float) -> int:
    """How many decimals a number of four digits has; negative above 9,999."""
    return 3 - math.floor(math.log10(noise))


def _ceiling(noise: float) -> float:
    scale = 10.0 ** _decimals(noise)
    return math.ceil(noise * scale) / scale


def _next(noise: float, steps: int) -> float:
    """The noise some steps of its fourth digit further."""
    scale = 10.0 ** _decimals(noise)
    return (round(noise * scale) + steps) / scale


def epsilon_quickly(sample_rate: float, steps: int, noise_multiplier: float, delta: float) -> float:
    """Return an RDP epsilon by a few orders: never below :func:`dp_sgd_epsilon`, mostly equal, much sooner."""
    value, order = compute_epsilon(_COARSE, steps * rdp_of_step(sample_rate, noise_multiplier, _COARSE), delta)
    by_order = functools.partial(_by_order, sample_rate, steps, delta, noise_multiplier)
    return min(float(value), by_order(descend(by_order, nearest_order(float(order)))))


def calibrate_to_divergence(divergence: float, order: float, sample_rate: float, steps: int) -> float:
    """Return the least noise multiplier, to four digits and rounded up, of at most this Rényi divergence at one order.

    That is what the filter of a budget leaves over for the next run.

    Raises:
        ConfigError: Nothing is left, or no noise multiplier up to 10,000 is enough.
    """

    def total(noise: float) -> float:
        return float(steps * rdp_of_step(sample_rate, noise, (order,))[0])

    least, most = NOISE_RANGE
    if not divergence > 0 or total(most) > divergence:
        raise ConfigError(
            f"nothing fits: {steps} steps at sample_rate={sample_rate:.6g} exceed what is left, whatever the noise"
        )
    noise = _ceiling(noise_for_order(total, divergence, least, most))
    while total(noise) > divergence:
        noise = _next(noise, 1)
    return noise


@functools.lru_cache(maxsize=4096)
def _by_order(sample_rate: float, steps: int, delta: float, noise_multiplier: float, at: int) -> float:
    """Epsilon by one order alone, which bounds it from above."""
    order = (ORDERS[at],)
    return float(compute_epsilon(order, steps * rdp_of_step(sample_rate, noise_multiplier, order), delta)[0])


def _noise_at(place: int) -> float:
    """Places from 0 to ``_PLACES``, evenly spread over ``NOISE_RANGE`` by their logarithm."""
    least, most = NOISE_RANGE
    return least * (most / least) ** (place / _PLACES)


@functools.lru_cache(maxsize=4096)
def _coarse_rdp(sample_rate: float, place: int) -> np.ndarray:
    """One step's curve at a place, which serves every number of steps."""
    return rdp_of_step(sample_rate, _noise_at(place), _COARSE)


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
