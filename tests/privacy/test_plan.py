"""The plan cannot be changed, and refuses values that void it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from dptrain import ConfigError, PrivacyPlan
from dptrain.privacy.streams import NoiseStream

GOOD: dict[str, Any] = {
    "sample_rate": 0.02,
    "steps": 10,
    "noise_multiplier": 1.1,
    "clip_norm": 0.5,
    "delta": 1e-5,
    "expected_batch_size": 32,
}


def test_plan_is_frozen() -> None:
    plan = PrivacyPlan(**GOOD)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.noise_multiplier = 0.1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sample_rate", 0.0), ("sample_rate", 1.5), ("sample_rate", math.nan), ("steps", 0),
        ("steps", 2.5), ("steps", 10.0), ("steps", math.nan), ("expected_batch_size", math.inf),
        ("noise_multiplier", 0.0), ("noise_multiplier", 1e-170),
        ("noise_multiplier", -1.0), ("noise_multiplier", math.inf), ("clip_norm", 0.0),
        ("clip_norm", math.inf), ("clip_norm", math.nan), ("delta", 0.0), ("delta", 1.0), ("expected_batch_size", 0),
        ("unit", "patient"),
    ],
)  # fmt: skip
def test_bad_values_are_named(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        PrivacyPlan(**{**GOOD, name: value})


def test_parts_come_from_the_plan() -> None:
    plan = PrivacyPlan(**GOOD)
    stream = NoiseStream(seed=1, purpose="test")
    assert plan.sampler(100, stream).sample_rate == plan.sample_rate
    assert plan.event().event.sampling_probability == plan.sample_rate
    assert plan.event().event.event.noise_multiplier == plan.noise_multiplier
    assert plan.event().count == plan.steps


def test_noise_has_the_plans_scale_and_the_expected_batch_divides_it() -> None:
    plan = PrivacyPlan(**GOOD)
    noised = plan.noise({"w": torch.zeros(400_000)}, NoiseStream())
    expected = plan.noise_multiplier * plan.clip_norm / plan.expected_batch_size
    assert float(noised["w"].std()) == pytest.approx(expected, rel=0.01)


def test_signal() -> None:
    plan = PrivacyPlan(**GOOD)
    assert plan.signal == pytest.approx(0.02 * math.sqrt(5) / 1.1)
