"""Every clip rule on every engine: the sum is that of plain autograd, and one example moves it by the sensitivity."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import dptrain
from dptrain import Clipping
from dptrain.gradients import ENGINES, trainable_parameters
from dptrain.privacy.clip_rules import ClipRule
from dptrain.privacy.clipping import CLIPPINGS
from dptrain.training.clipped_sum import ClippedSum

from .oracle import one_at_a_time, projected_losses
from .test_engines import Cnn, images, seeded

losses = projected_losses()
NEEDED: dict[str, dict[str, Any]] = {
    "groups": {"groups": ("body.[03]", "head.*")},
    "scaled": {"scales": (("body.[03]", 8.0), ("head.*", 0.25))},
}
RULES = [Clipping(name, **NEEDED.get(name, {})) for name in CLIPPINGS]


def rule_for(clipping: Clipping, module: nn.Module, clip_norm: float) -> ClipRule:
    return clipping.rule(clip_norm, trainable_parameters(module))


def total(rule: ClipRule, module: nn.Module, x: Tensor, engine: str) -> dict[str, Tensor]:
    return dptrain.clipped_gradient_sum(module, losses, x, rule, engine)


@pytest.mark.parametrize("engine", list(ENGINES))
@pytest.mark.parametrize("clipping", RULES, ids=lambda clipping: clipping.name)
def test_the_sum_is_that_of_plain_autograd_one_example_at_a_time(clipping: Clipping, engine: str) -> None:
    module, x = seeded(Cnn), images(3)
    gradients = one_at_a_time(module, losses, x)
    for clip_norm in (1.0,) if clipping.name == "automatic" else (1e-3, 2.0, 1e6):
        rule = rule_for(clipping, module, clip_norm)
        of = rule.groups or dict.fromkeys(gradients, 0)
        squared = torch.zeros(3, max(of.values()) + 1, dtype=torch.float64)
        for name, rows in gradients.items():
            squared[:, of[name]] += rows.flatten(1).square().sum(1)
        weights = rule.weights(squared)
        got = total(rule, module, x, engine)
        for name, rows in gradients.items():
            wanted = torch.einsum("n,n...->...", weights[:, of[name]], rows)
            torch.testing.assert_close(got[name], wanted, rtol=1e-6, atol=1e-8 * rule.sensitivity(), msg=name)


@pytest.mark.parametrize("engine", list(ENGINES))
@pytest.mark.parametrize("clipping", RULES, ids=lambda clipping: clipping.name)
def test_one_example_moves_the_sum_by_at_most_the_sensitivity(clipping: Clipping, engine: str) -> None:
    """Ordinary ones, huge and tiny ones, one that is not finite, and one whose layers differ by orders of magnitude."""
    module = seeded(Cnn)
    largest = 0.0

    @settings(max_examples=4, database=None, deadline=None, derandomize=True)
    @given(
        st.integers(0, 3),
        st.sampled_from([1e-8, 1.0, 1e4, math.inf, math.nan]),
        st.sampled_from([1e-3, 1.0, 50.0]),
        st.integers(0, 99),
    )
    def holds(others: int, scale: float, clip_norm: float, seed: int) -> None:
        nonlocal largest
        rule = rule_for(clipping, module, 1.0 if clipping.name == "automatic" else clip_norm)
        x = images(others + 1, seed=seed)
        x[-1] *= scale
        both, without = total(rule, module, x, engine), total(rule, module, x[:-1], engine)
        moved = torch.cat([(both[name] - without[name]).flatten() for name in both]).norm()
        assert float(moved) <= rule.sensitivity() * (1 + 1e-9)
        if not math.isfinite(scale):
            assert float(moved) <= 1e-9 * rule.sensitivity()
        largest = max(largest, float(moved) / rule.sensitivity())

    holds()
    assert largest > 0.2, "nothing came near the bound"


@pytest.mark.parametrize("engine", list(ENGINES))
def test_a_layer_that_the_loss_does_not_reach_is_named_also_where_it_is_a_group(engine: str) -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(3, 4), nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    module = Half()
    with pytest.raises(dptrain.ModelError, match=r"'idle\.weight' got no gradient"):
        total(rule_for(Clipping("groups", ("used", "idle")), module, 1.0), module, torch.randn(2, 3), engine)


@pytest.mark.parametrize("clipping", RULES, ids=lambda clipping: clipping.name)
def test_whole_numbers_of_every_rule_stay_within_their_grid(clipping: Clipping) -> None:
    from dptrain.privacy.exact import SENSITIVITY

    module: Any = seeded(Cnn)
    norm = 1.0 if clipping.name == "automatic" else 0.1
    plan = dptrain.PrivacyPlan(0.5, 2, 1.1, norm, 1e-5, 8, clipping=clipping)
    summed = ClippedSum(plan, module, losses)
    one = summed.on_grid(100.0 * images(1))
    length = math.sqrt(sum(int(entry) ** 2 for tensor in one.values() for entry in tensor.flatten()))
    assert 0.9 * SENSITIVITY < length <= SENSITIVITY
    clipped = summed.over(100.0 * images(1))
    scale = summed.mechanism.rule.sensitivity() / SENSITIVITY
    for name, tensor in one.items():
        torch.testing.assert_close(tensor.double() * scale, clipped[name], rtol=1e-4, atol=1e-6)
