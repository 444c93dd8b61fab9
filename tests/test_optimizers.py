"""What the optimizers do with noised gradients and with the noise that is known."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from dptrain import Clipping, ConfigError, PrivacyPlan
from dptrain.optimizers import DPAdamBC, make_optimizer
from dptrain.schema import OPTIMIZERS, OptimizerConfig

from .test_training import Batches, make, plan, weights


def fed(optimizer: DPAdamBC, gradients: list[torch.Tensor], deviations: list[float]) -> None:
    (p,) = optimizer.param_groups[0]["params"]
    for gradient, deviation in zip(gradients, deviations, strict=True):
        optimizer.param_groups[0]["noise_deviation"] = deviation
        p.grad = gradient.clone()
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_moves_the_weights(name: str) -> None:
    parameter = nn.Parameter(torch.ones(3))
    optimizer = make_optimizer(OptimizerConfig(name, lr=0.1), [parameter])
    for group in optimizer.param_groups:
        if "noise_deviation" in group:
            group["noise_deviation"] = 0.1
    parameter.grad = torch.ones(3)
    optimizer.step()
    assert not torch.equal(parameter.detach(), torch.ones(3))


def test_without_noise_it_is_adam() -> None:
    """The floor of no variance is nothing: v - 0 is Adam's second moment."""
    gradients = list(torch.randn(30, 5, generator=torch.Generator().manual_seed(0)))
    one, other = nn.Parameter(torch.zeros(5)), nn.Parameter(torch.zeros(5))
    fed(DPAdamBC([one], lr=0.01), gradients, [0.0] * 30)
    adam = torch.optim.Adam([other], lr=0.01, eps=0.0)
    for gradient in gradients:
        other.grad = gradient.clone()
        adam.step()
    torch.testing.assert_close(one, other)


def test_the_second_moment_is_that_of_the_gradient_alone() -> None:
    """A gradient of 0.3 under noise of 1: Adam's steps are a third of what they are without noise, these are not."""
    generator = torch.Generator().manual_seed(1)
    count, truth = 4000, 0.3
    deviations = [0.5 + 0.5 * (step % 2) for step in range(600)]
    gradients = [truth + d * torch.randn(count, generator=generator) for d in deviations]
    parameter = nn.Parameter(torch.zeros(count))
    optimizer = DPAdamBC([parameter], lr=0.0, betas=(0.9, 0.999), floor=1e-3)
    fed(optimizer, gradients, deviations)
    group, state = optimizer.param_groups[0], optimizer.state[parameter]
    seen = 1.0 - 0.999 ** group["steps"]
    assert group["noise_variance"] / seen == pytest.approx((0.25 + 1.0) / 2, rel=0.01)
    corrected = state["square"] / seen - group["noise_variance"] / seen
    assert float(corrected.mean()) == pytest.approx(truth**2, rel=0.05)


def test_the_floor_bounds_the_step() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    fed(DPAdamBC([parameter], lr=1.0, floor=0.25), [torch.tensor([0.5, -0.5])], [2.0])
    torch.testing.assert_close(parameter.detach(), torch.tensor([-0.5, 0.5]))  # 0.5 over the root of 0.25 * 2^2


def test_it_must_be_told_of_the_noise_and_takes_no_closure() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.ones(2)
    with pytest.raises(ConfigError, match="noise_deviation"):
        DPAdamBC([parameter]).step()
    with pytest.raises(ConfigError, match="closure"):
        DPAdamBC([parameter]).step(lambda: 1.0)


@pytest.mark.parametrize("clipping", ["flat", "rescaled", "per_layer", "adaptive"])
def test_the_trainer_tells_the_noise_of_the_plan_whatever_was_drawn(clipping: str) -> None:
    """(noise multiplier x sensitivity / expected batch size), with the clip norm of the step at hand."""
    how: PrivacyPlan = plan(clipping=Clipping(clipping), steps=6)
    trainer = make(how, batches=(batches := Batches()), seed=4, optimizer=DPAdamBC, lr=0.01)
    told, norms = [], []
    trainer.optimizer.register_step_pre_hook(
        lambda optimizer, *_: told.append(optimizer.param_groups[0]["noise_deviation"])
    )
    steps = trainer.run()
    for _ in range(6):
        norms.append(trainer.clip_norm)
        next(steps)
    assert len({len(drawn) for drawn in batches.served}) > 2
    scale = {"flat": 1.0, "rescaled": 2.0, "per_layer": 1.0, "adaptive": (4 / 3) ** 0.5}[clipping]
    assert told == pytest.approx([1.0 * scale * norm / 6 for norm in norms], rel=1e-9)
    assert (len(set(norms)) > 1) == (clipping == "adaptive")


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, DPAdamBC])
def test_a_run_that_is_cut_goes_on_with_its_clip_norm_and_its_moments(optimizer: Any) -> None:
    how = plan(clipping=Clipping("adaptive"))
    whole, first, rest = (make(how, seed=4, optimizer=optimizer, lr=0.05) for _ in range(3))
    list(whole.run())
    for step in first.run():
        if step == 4:
            break
    rest.restore(copy.deepcopy(first.state()))
    assert rest.clip_norm == first.clip_norm != 0.5
    list(rest.run())
    assert torch.equal(weights(whole), weights(rest)) and whole.clip_norm == rest.clip_norm
