"""DpEvent -> RDP curve, privacy loss distribution, epsilon; and calibration. A thin room over dp-accounting.

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

from .errors import ConfigError
from .loss_distribution import loss_distribution, sampled_gaussians
from .renyi import ORDERS, RELATION, beside, descend, nearest_order, noise_for_order, quiet, rdp_at
from .trade_off import FALSE_POSITIVE_RATES, TradeOff, trade_off_of_curve, trade_off_of_steps

ACCOUNTANTS = ("rdp", "pld")

# Above this the loss distribution takes minutes to compose, for a number that protects nobody; RDP's bound stands in.
PLD_UP_TO_EPSILON = 200.0
PLD_UP_TO_STEPS = 10**6  # likewise: dp-accounting raises a whole number to this power

NOISE_RANGE = (1e-2, 1e4)  # where calibration looks for the noise multiplier
MOST_STEPS = 2**31

# Calibration first looks at these orders and places.
_COARSE = (1.1, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0, 9.0, 12.0, 16.0, 24.0, 36.0, 52.0, 128.0, 256.0, 512.0, 1024.0)
_PLACES = 48


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
    if accountant == "pld":
        return PLDAccountant(RELATION).compose(event)
    raise ConfigError(f"accountant={accountant!r} is not one of {', '.join(ACCOUNTANTS)}")


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


RANDOM_STOPPING = {"geometric": 1.0, "logarithmic": 0.0, "poisson": math.inf}  # the shape of each distribution


def random_stopping_event(event: dp_event.DpEvent, mean: float, distribution: str) -> dp_event.DpEvent:
    """Return the event of releasing the best of a random number of runs (Papernot and Steinke 2022).

    Args:
        event: Of every one of the runs.
        mean: Expected number of runs.
        distribution: Of that number: ``geometric``, ``logarithmic`` or ``poisson``.
    """
    return dp_event.RepeatAndSelectDpEvent(event, mean, RANDOM_STOPPING[distribution])


@functools.lru_cache(maxsize=256)
def _rdp_of_one_step(sample_rate: float, noise_multiplier: float) -> np.ndarray:
    return _rdp(sample_rate, noise_multiplier, ORDERS)


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
    value, order = compute_epsilon(_COARSE, steps * _rdp(sample_rate, noise_multiplier, _COARSE), delta)
    by_order = functools.partial(_by_order, sample_rate, steps, delta, noise_multiplier)
    return min(float(value), by_order(descend(by_order, nearest_order(float(order)))))


def divergence_for(target: float, delta: float, order: float) -> float:
    """Return the largest Rényi divergence at one order that converts to at most ``target`` at ``delta``."""
    low, high = 0.0, target + 3.0 - math.log(delta)  # more than any order gives back in the conversion
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        fits = float(compute_epsilon([order], [middle], delta)[0]) <= target
        low, high = (middle, high) if fits else (low, middle)
        if not low < (low + high) / 2 < high:
            break
    return low


def calibrate_to_divergence(divergence: float, order: float, sample_rate: float, steps: int) -> float:
    """Return the least noise multiplier, to four digits and rounded up, of at most this Rényi divergence at one order.

    That is what the filter of a budget leaves over for the next run.

    Raises:
        ConfigError: Nothing is left, or no noise multiplier up to 10,000 is enough.
    """

    def total(noise: float) -> float:
        return float(steps * _rdp(sample_rate, noise, (order,))[0])

    least, most = NOISE_RANGE
    if not divergence > 0 or total(most) > divergence:
        raise ConfigError(
            f"nothing fits: {steps} steps at sample_rate={sample_rate:.6g} pass what is left, whatever the noise"
        )
    noise = _ceiling(noise_for_order(total, divergence, least, most))
    while total(noise) > divergence:
        noise = _next(noise, 1)
    return noise


@functools.lru_cache(maxsize=4096)
def _by_order(sample_rate: float, steps: int, delta: float, noise_multiplier: float, at: int) -> float:
    """Epsilon by one order alone, which bounds it from above."""
    order = (ORDERS[at],)
    return float(compute_epsilon(order, steps * _rdp(sample_rate, noise_multiplier, order), delta)[0])


def _rdp(sample_rate: float, noise_multiplier: float, orders: tuple[float, ...]) -> np.ndarray:
    return rdp_at(dp_sgd_event(sample_rate, 1, noise_multiplier), orders)


def _noise_at(place: int) -> float:
    """Places from 0 to ``_PLACES``, evenly spread over ``NOISE_RANGE`` by their logarithm."""
    least, most = NOISE_RANGE
    return least * (most / least) ** (place / _PLACES)


@functools.lru_cache(maxsize=4096)
def _coarse_rdp(sample_rate: float, place: int) -> np.ndarray:
    """One step's curve at a place, which serves every number of steps."""
    return _rdp(sample_rate, _noise_at(place), _COARSE)


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
