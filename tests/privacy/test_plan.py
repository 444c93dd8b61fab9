"""The plan cannot be changed, and refuses values that void it."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dptrain import Clipping, ConfigError, FlatClip, PrivacyPlan
from dptrain.privacy.noise import privatize
from dptrain.privacy.ranges import CLIP_NORM, NOISE_MULTIPLIER
from dptrain.privacy.streams import NoiseStream
from dptrain.settings.resolve import from_kwargs, resolve
from dptrain.statement.fields import read_as
from dptrain.statement.start_runs import StartRun

GOOD: dict[str, Any] = {
    "sample_rate": 0.02,
    "steps": 10,
    "noise_multiplier": 1.1,
    "clip_norm": 0.5,
    "delta": 1e-5,
    "expected_batch_size": 32,
}
PUBLIC = {"dataset_size": 100, "expected_batch_size": 10}


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
    noised = plan.mechanism(["w"]).noise({"w": torch.zeros(400_000)}, NoiseStream())
    expected = plan.noise_multiplier * plan.clip_norm / plan.expected_batch_size
    assert float(noised["w"].std()) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("names", [["w"], ["w", "b", "c"], ["w", "c"]])
def test_noise_is_for_the_parameters_of_its_clip_rule_only(names: list[str]) -> None:
    """A sum over other parameters was clipped by another rule."""
    with pytest.raises(ConfigError, match=r"other parameters than the clip rule: '[bc]' is in one"):
        PrivacyPlan(**GOOD).mechanism(["w", "b"]).noise({name: torch.zeros(2) for name in names}, NoiseStream())


def test_signal() -> None:
    plan = PrivacyPlan(**GOOD)
    assert plan.signal == pytest.approx(0.02 * math.sqrt(5) / 1.1)


# --- as values -------------------------------------------------------------------------------------------------------

SCALED = Clipping("scaled", scales=(("a", 2.0),))


@pytest.mark.parametrize("clipping", [Clipping(), Clipping("groups", ("a|b", "c.*")), SCALED])
def test_a_plan_survives_json(clipping: Clipping) -> None:
    plan = PrivacyPlan(**GOOD, unit="group", clipping=clipping)
    assert PrivacyPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert set(plan.to_dict()) == {item.name for item in dataclasses.fields(plan)}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"steps": 0}, "steps=0"), ({"steps": 10.0}, "steps=10.0"), ({"steps": True}, "steps=True"),
        ({"noise_multiplier": "1"}, "noise_multiplier='1' is not a number"), ({"noise_multiplier": 1e-4}, "0.0001"),
        ({"clip_norm": math.nan}, "clip_norm=nan"), ({"delta": None}, "delta=None is not a number"),
        ({"sample_rate": [0.5]}, "sample_rate"), ({"unit": ["image"]}, "unit"), ({"unit": "patient"}, "patient"),
        ({"clipping": "flat"}, "clip_rule='flat'"), ({"more": 1}, "is not made of sample_rate, steps"),
    ],
)  # fmt: skip
def test_what_is_no_plan_is_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(named)):
        PrivacyPlan.from_dict({**PrivacyPlan(**GOOD).to_dict(), **changes})
    for whole in (None, [1], "plan", GOOD):
        with pytest.raises(ConfigError, match="is not made of"):
            PrivacyPlan.from_dict(whole)


# --- ranges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [*NOISE_MULTIPLIER, NOISE_MULTIPLIER[0] / 2, NOISE_MULTIPLIER[1] * 2])
def test_one_range_of_the_noise_multiplier(value: float) -> None:
    """The plan, the settings, a start's statement and the noise itself agree on what is let through."""
    inside = NOISE_MULTIPLIER[0] <= value <= NOISE_MULTIPLIER[1]
    run = {
        "sha256": "0" * 64, "epsilon": 1.0, "delta": 1e-5, "unit": "image", "valid": True, "sample_rate": 0.1,
        "steps": 10, "noise_multiplier": value, "bands": 1, "distribution": None, "mean_runs": None,
    }  # fmt: skip

    def refused(call: Callable[[], object]) -> bool:
        try:
            call()
        except (ConfigError, ValueError) as error:
            assert f"noise_multiplier={value}" in str(error)
            return True
        return False

    config = from_kwargs(model="yolo26n.yaml", data="d.yaml", steps=2, privacy={"noise_multiplier": value, **PUBLIC})
    for call in (
        lambda: PrivacyPlan(**{**GOOD, "noise_multiplier": value}),
        lambda: resolve(config),
        lambda: read_as(StartRun, run, Path("statement.json")),
        lambda: privatize({"a": torch.zeros(1)}, sensitivity=1.0, noise_multiplier=value, stream=NoiseStream()),
    ):
        assert refused(call) is not inside


@pytest.mark.parametrize("value", [*CLIP_NORM, CLIP_NORM[0] / 2, CLIP_NORM[1] * 2])
def test_one_range_of_the_clip_norm(value: float) -> None:
    inside = CLIP_NORM[0] <= value <= CLIP_NORM[1]
    config = from_kwargs(model="yolo26n.yaml", data="d.yaml", steps=2, privacy={"clip_norm": value, **PUBLIC})
    for call in (
        lambda: PrivacyPlan(**{**GOOD, "clip_norm": value}),
        lambda: FlatClip(value),
        lambda: resolve(config),
    ):
        if inside:
            call()
        else:
            with pytest.raises(ConfigError, match=f"clip_norm={re.escape(str(value))} must be from 1e-10 to 1e"):
                call()
