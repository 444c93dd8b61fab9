"""The white-box audit: Dirac canaries through the trainer itself, watched by someone who sees every iterate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import nn

from ..detection.data import StepLoader
from ..gradients import LossFunction
from ..privacy.plan import PrivacyPlan
from ..run.optimizers import make_optimizer
from ..settings.schema import OptimizerConfig
from ..training.trainer import PrivateTrainer
from .canaries import DiracLoss, Examples, WithCanaries, choose_sites, read_sites

_NOISE_STEP = 1e-4  # what noise moves a weight by in a step: far above rounding, and no plan makes training diverge
_FALSE_ALARM = 1e-4  # chance that one of the measures accuses a correct run
_TOLERANCE = 0.01  # the clip rounds down, and the other examples' gradients are seen as noise
_FEWEST_DRAWS = 100  # of canaries that are in, over all steps; of fewer the share says nothing
_MOST_REPEATED = 0.25  # the other examples' gradients resemble those of the step before


@dataclass(frozen=True)
class Measured:
    """What the claim rests on, as seen at the canaries' weights; 1, 1 and about 0 in a correct run.

    Attributes:
        noise: Standard deviation of the noise, in parts of the plan's.
        noise_at_most: It is at most that, but for a chance of 1 in 10,000.
        share: What one canary adds to a step's sum on average, in parts of ``sample_rate * clip_norm``.
        share_at_least: It is at least that, but for a chance of 1 in 10,000.
        repeated: How much of the noise is that of the step before: mean product over variance.
        repeated_at_least: It is at least that, but for a chance of 1 in 10,000.
    """

    noise: float
    noise_at_most: float
    share: float
    share_at_least: float
    repeated: float
    repeated_at_least: float

    @property
    def faults(self) -> tuple[str, ...]:
        """What is not as planned, in words."""
        found = []
        if self.noise_at_most < 1.0 - _TOLERANCE:
            found.append(f"the noise is {self.noise:.3f} of what the plan accounts for")
        if self.share_at_least > 1.0 + _TOLERANCE:
            found.append(f"one unit adds {self.share:.3f} times what the plan accounts for")
        if self.repeated_at_least > _MOST_REPEATED:
            found.append(f"{self.repeated:.0%} of the noise is that of the step before")
        return tuple(found)


class Watcher:
    """Someone who sees every iterate and knows everything but which canaries are in.

    A canary that is in adds 1 to its coordinate of a step's sum (in clip norms) with chance q; noise of standard
    deviation sigma comes on top. The score is the log-likelihood ratio of "in" to "out" over all the steps seen,
    sum_t log(1 - q + q exp((2 x_t - 1) / (2 sigma^2))), which no test beats (Neyman and Pearson); without subsampling
    it is the inner product with the canary's direction.
    """

    def __init__(self, plan: PrivacyPlan, canaries: int) -> None:
        self.plan = plan
        self.scores = np.zeros(canaries)
        self._sum, self._squares, self._products = np.zeros(canaries), np.zeros(canaries), np.zeros(canaries)
        self._before, self._steps = np.zeros(canaries), 0

    def see(self, x: np.ndarray) -> None:
        """Take in what one step added to the canaries' coordinates, in clip norms, shape (m,)."""
        rate, sigma = self.plan.sample_rate, self.plan.noise_multiplier
        drawn = (2.0 * x - 1.0) / (2.0 * sigma**2)
        self.scores += drawn if rate == 1.0 else np.logaddexp(math.log1p(-rate), math.log(rate) + drawn)
        self._sum += x
        self._squares += x**2
        self._products += x * self._before
        self._before = x
        self._steps += 1

    def measure(self, included: np.ndarray) -> Measured:
        """Compare what was seen with the plan, once it is known which canaries were in."""
        from scipy.stats import chi2, norm

        alarm, canaries_out = float(norm.isf(_FALSE_ALARM)), int((~included).sum())
        count = self._steps * canaries_out
        variance = self._squares[~included].sum() / count
        noise = math.sqrt(variance) / self.plan.noise_multiplier
        noise_at_most = noise * math.sqrt(count / chi2.ppf(_FALSE_ALARM, count))
        means = self._sum / self._steps / self.plan.sample_rate
        inside, outside = means[included], means[~included]
        share = float(inside.mean() - outside.mean())
        error = math.sqrt(inside.var(ddof=1) / len(inside) + outside.var(ddof=1) / len(outside))
        share_at_least = share - alarm * error
        if self._steps * self.plan.sample_rate * len(inside) < _FEWEST_DRAWS:
            share_at_least = 0.0
        pairs = max(1, count - canaries_out)
        repeated = float(self._products[~included].sum() / (pairs * variance))
        return Measured(noise, noise_at_most, share, share_at_least, repeated, repeated - alarm / math.sqrt(pairs))


def watch_training(
    plan: PrivacyPlan,
    module: nn.Module,
    loss: LossFunction,
    examples: Examples,
    included: np.ndarray,
    *,
    physical_batch_size: int = 256,
    engine: str = "fused",
    seed: int | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Watcher:
    """Train ``module`` on ``examples`` and the canaries that are in, by the plan; return who has seen every iterate.

    It is ``PrivateTrainer`` that trains, with the plan's sampler, the step loader, the engine and plain SGD, whose
    steps show the noised gradient to whoever compares two iterates.
    """
    sites = choose_sites(module, len(included))
    data = WithCanaries(examples, included)
    device = next(module.parameters()).device
    rate = _NOISE_STEP * plan.expected_batch_size / (plan.noise_multiplier * plan.clip_norm)
    trainer = PrivateTrainer(
        module,
        DiracLoss(loss, sites, plan.clip_norm),
        plan,
        make_optimizer(OptimizerConfig(name="sgd", lr=rate), [p for p in module.parameters() if p.requires_grad]),
        StepLoader(data, physical_batch_size, device=device),
        len(data),
        seed=seed,
        engine=engine,
    )
    watcher = Watcher(plan, len(included))
    before = read_sites(module, sites)
    for step in trainer.run():
        after = read_sites(module, sites)
        watcher.see((before - after) * (plan.noise_multiplier / _NOISE_STEP))
        before = after
        if on_step is not None:
            on_step(step)
    return watcher
