"""What the optimizers do with noised gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from dptrain.run.optimizers import make_optimizer
from dptrain.settings.schema import OPTIMIZERS, OptimizerConfig

from ..training.test_trainer import make, plan, weights


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_moves_the_weights(name: str) -> None:
    parameter = nn.Parameter(torch.ones(3))
    optimizer = make_optimizer(OptimizerConfig(name, lr=0.1), [parameter])
    parameter.grad = torch.ones(3)
    optimizer.step()
    assert not torch.equal(parameter.detach(), torch.ones(3))


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_a_run_that_is_cut_resumes_with_its_moments(optimizer: Any) -> None:
    whole, first, rest = (make(plan(), seed=4, optimizer=optimizer, lr=0.05) for _ in range(3))
    list(whole.run())
    for step in first.run():
        if step == 4:
            break
    rest.restore(copy.deepcopy(first.state()))
    list(rest.run())
    assert torch.equal(weights(whole), weights(rest))
