"""The privacy loss distribution of Poisson-sampled Gaussian steps, as dp-accounting's ``PLDAccountant`` composes it.

References: Koskela et al. (2020); Doroshenko et al. (2022).
"""

from __future__ import annotations

import functools

from dp_accounting import dp_event
from dp_accounting.pld import privacy_loss_distribution as pld

from .rdp import RELATION

_FINEST = 1e-4  # interval of the losses, PLDAccountant's own
_MOST_POINTS = 300_000  # of one step's losses, each of which takes some time to find
Steps = tuple[tuple[float, float, int], ...]  # (sample rate, noise multiplier, number of steps), one after the other


def sampled_gaussians(event: dp_event.DpEvent, count: int = 1) -> Steps | None:
    """The steps of an event in their order; None where it has others than Poisson-sampled Gaussian ones."""
    if isinstance(event, dp_event.SelfComposedDpEvent):
        return sampled_gaussians(event.event, event.count * count)
    if isinstance(event, dp_event.ComposedDpEvent):
        parts = [sampled_gaussians(part, count) for part in event.events]
        return None if None in parts else tuple(step for part in parts if part for step in part)
    if isinstance(event, dp_event.PoissonSampledDpEvent) and isinstance(event.event, dp_event.GaussianDpEvent):
        step = float(event.sampling_probability), float(event.event.noise_multiplier), int(count)
        return (step,) if min(step) > 0 else None
    return None


@functools.lru_cache(maxsize=8)
def loss_distribution(steps: Steps) -> pld.PrivacyLossDistribution:
    """The composed loss distribution, as ``PLDAccountant`` makes it; it serves epsilon and the bound on attacks."""
    return compose_losses(steps, max((interval_for(noise) for _, noise, _ in steps), default=_FINEST))


def compose_losses(steps: Steps, interval: float) -> pld.PrivacyLossDistribution:
    """The composed loss distribution with losses told apart by ``interval``."""
    composed = pld.identity(value_discretization_interval=interval)
    for sample_rate, noise_multiplier, count in steps:
        composed = composed.compose(_of_one_step(sample_rate, noise_multiplier, interval).self_compose(count))
    return composed


def interval_for(noise_multiplier: float) -> float:
    """How finely losses are told apart: ``PLDAccountant``'s 1e-4, or more coarsely where little noise makes them long.

    Losses are rounded up, so that a coarser reading is a larger epsilon. Those of a step reach to about 1 / (2 s^2) +
    9 / s for noise multiplier s; at 0.05, an interval of 1e-4 took a minute.
    """
    return max(_FINEST, (0.5 / noise_multiplier + 9.0) / noise_multiplier / _MOST_POINTS)


@functools.lru_cache(maxsize=8)
def _of_one_step(sample_rate: float, noise_multiplier: float, interval: float) -> pld.PrivacyLossDistribution:
    """The costly part, which serves any number of steps."""
    return pld.from_gaussian_mechanism(
        standard_deviation=noise_multiplier,
        value_discretization_interval=interval,
        sampling_prob=sample_rate,
        neighboring_relation=RELATION,
    )
