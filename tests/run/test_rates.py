"""The learning rate that a run begins with: from public numbers, with the scaling that the rule promises."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from dptrain import PrivacyPlan
from dptrain.privacy.bands import factor
from dptrain.run.rates import SCRATCH, SHARE, default_rate
from dptrain.settings.schema import OPTIMIZERS

CONVOLUTIONS, NORMS = [(64, 32, 3, 3)] * 50, [(64,)] * 100


def plan(**changes: Any) -> PrivacyPlan:
    given = {"sample_rate": 0.1, "steps": 100, "noise_multiplier": 2.0, "clip_norm": 1.0, "delta": 1e-5}
    return PrivacyPlan(**{**given, "expected_batch_size": 100, **changes})


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_has_one(name: str) -> None:
    assert 0 < default_rate(name, plan(), CONVOLUTIONS) < 10


def test_four_times_the_steps_halve_the_rate() -> None:
    for name in ("adamw", "sgd"):
        once, again = (default_rate(name, plan(steps=steps), CONVOLUTIONS) for steps in (100, 400))
        assert again == pytest.approx(once / 2, rel=0.1)


def test_norms_take_a_larger_rate_than_filters_and_frozen_statistics_a_smaller_one() -> None:
    filters, norms = (default_rate("adamw", plan(noise_multiplier=50.0), shapes) for shapes in (CONVOLUTIONS, NORMS))
    assert norms == pytest.approx(filters * math.sqrt(3 * 288), rel=0.1)
    assert default_rate("adamw", plan(), CONVOLUTIONS, norm="frozen_bn") < default_rate("adamw", plan(), CONVOLUTIONS)
    assert default_rate("adamw", plan(), CONVOLUTIONS, times=SCRATCH) > default_rate("adamw", plan(), CONVOLUTIONS)


@pytest.mark.parametrize("name", ["adam", "rmsprop", "adagrad", "sgd", "asgd"])
def test_noise_alone_moves_a_weight_by_the_share_that_the_rule_names(name: str) -> None:
    """The rule's claim, to a factor of 2, held against the optimizer itself fed with the noise of a run."""
    torch.manual_seed(0)
    its = plan(steps=200, noise_multiplier=20.0)
    weight = torch.nn.Parameter(torch.zeros(50, 32, 3, 3))
    rate = default_rate(name, its, [tuple(weight.shape)])
    kinds = {"adam": torch.optim.Adam, "rmsprop": torch.optim.RMSprop, "adagrad": torch.optim.Adagrad}
    kinds |= {"sgd": torch.optim.SGD, "asgd": torch.optim.ASGD}
    optimizer = kinds[name]([weight], lr=rate)
    for _ in range(its.steps):
        weight.grad = torch.randn_like(weight) * its.noise_multiplier * its.clip_norm / its.expected_batch_size
        optimizer.step()
    moved = float(weight.detach().square().mean().sqrt()) * math.sqrt(3 * 288)
    assert SHARE["group"] / 2 < moved < SHARE["group"] * 2


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_correlated_noise_may_have_a_larger_rate_for_it_moves_a_weight_no_further(name: str) -> None:
    torch.manual_seed(0)
    its = plan(sample_rate=0.01, steps=300, noise_multiplier=20.0, bands=8)
    weight = torch.nn.Parameter(torch.zeros(20, 32, 3, 3))
    rate = default_rate(name, its, [tuple(weight.shape)])
    assert rate > 1.9 * default_rate(name, plan(sample_rate=0.01, steps=300, noise_multiplier=20.0), CONVOLUTIONS)
    optimizer = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[name]([weight], lr=rate)
    column, made, squares = factor(8), [], []
    for _ in range(its.steps):
        past = sum((c * noise for c, noise in zip(column[1:], reversed(made[-7:]), strict=False)), torch.zeros(()))
        made.append((torch.randn_like(weight) - past) / column[0])
        weight.grad = made[-1] * its.noise_multiplier * its.clip_norm / its.expected_batch_size
        optimizer.step()
        squares.append(float(weight.detach().square().mean()))
    moved = math.sqrt(2 * sum(squares) / len(squares) * 3 * 288)  # where independent noise would end
    assert SHARE["group"] / 2 < moved < SHARE["group"] * 2


def test_the_clip_norm_changes_the_rate_of_plain_descent_only() -> None:
    for name, times in (("sgd", 0.25), ("adamw", 1.0)):
        one, four = (default_rate(name, plan(clip_norm=c), CONVOLUTIONS) for c in (1.0, 4.0))
        assert four == pytest.approx(one * times, rel=0.1)
