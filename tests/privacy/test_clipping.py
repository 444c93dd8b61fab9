"""What every clip rule states: its edge cases, its sensitivity and its options."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from dptrain import Clipping, ConfigError, FlatClip, PrivacyPlan
from dptrain.privacy.clip_rules import AutomaticClip, ClipRule, GroupClip, ScaledClip
from dptrain.privacy.clipping import CLIPPINGS

NAMES = ("a.weight", "a.bias", "b.weight", "c.d.weight")
NEEDED: dict[str, dict[str, Any]] = {"groups": {"groups": ("a",)}, "scaled": {"scales": (("a", 8.0), ("c.*", 0.25))}}
ODD = torch.tensor([0.0, 1.0, 100.0, math.inf, math.nan, 1e-300], dtype=torch.float64)


def rule_of(name: str, clip_norm: float = 1.0, **options: Any) -> ClipRule:
    return Clipping(name, **{**NEEDED.get(name, {}), **options}).rule(clip_norm, NAMES)


def test_edge_table() -> None:
    weights = FlatClip(2.0).weights(torch.tensor([0.0, 1.0, 100.0, math.inf, math.nan, 1e-300], dtype=torch.float64))
    assert weights.tolist() == [1.0, 1.0, pytest.approx(0.2, rel=1e-5), 0.0, 0.0, 1.0]
    assert float(weights[2]) * 10.0 <= 2.0
    assert FlatClip(1.0).weights(torch.zeros(0)).shape == (0,)


def test_a_factor_that_single_precision_cannot_hold_drops_the_example() -> None:
    assert FlatClip(1.0).weights(torch.tensor([1e90], dtype=torch.float64)).tolist() == [0.0]


@pytest.mark.parametrize("bad", [0.0, -1.0, 1e-40, 1e30, math.inf, math.nan])
def test_clip_norms_that_bound_nothing_are_refused(bad: float) -> None:
    with pytest.raises(ConfigError, match="clip_norm"):
        FlatClip(bad)


def test_sensitivity() -> None:
    assert FlatClip(0.3).sensitivity() == 0.3
    assert FlatClip(0.3).sensitivity("replace_one") == 0.6
    with pytest.raises(ConfigError, match="edge"):
        FlatClip(0.3).sensitivity("edge")


@pytest.mark.parametrize("name", CLIPPINGS)
@pytest.mark.parametrize("clip_norm", [1e-3, 1.0, 70.0])
def test_no_unit_passes_the_sensitivity_of_any_rule(name: str, clip_norm: float) -> None:
    """Parts of every length in every group."""
    rule = rule_of(name, clip_norm)
    columns = max(rule.groups.values()) + 1 if rule.groups else 1
    lengths = torch.logspace(-6, 6, 25, dtype=torch.float64)
    for norms in (lengths.view(-1, 1).expand(-1, columns), lengths[torch.randint(25, (200, columns))]):
        parts = rule.weights(norms.square()) * norms
        added = parts.square().sum(1)
        assert float(added.max()) <= rule.sensitivity() ** 2
        assert float(added.max()) > 0.98 * rule.sensitivity() ** 2, "more noise than this rule needs"
    assert rule.sensitivity("replace_one") == 2 * rule.sensitivity()


@pytest.mark.parametrize("name", CLIPPINGS)
def test_a_gradient_that_is_not_finite_counts_as_zero_in_every_group(name: str) -> None:
    rule = rule_of(name)
    columns = max(rule.groups.values()) + 1 if rule.groups else 1
    for column in range(columns):
        squared = torch.full((len(ODD), columns), 0.25, dtype=torch.float64)
        squared[:, column] = ODD
        weights = rule.weights(squared)
        assert (weights[[3, 4]] == 0).all() and (weights[[0, 1, 2, 5]] > 0).all()
    assert rule.weights(torch.zeros(0, columns)).shape == (0, columns)


def test_automatic_clipping_is_the_papers() -> None:
    norms = torch.tensor([[0.0], [0.01], [3.0]], dtype=torch.float64)
    torch.testing.assert_close(AutomaticClip().weights(norms.square()), 1.0 / (norms + 0.01), rtol=1e-5, atol=0)


# --- groups ----------------------------------------------------------------------------------------------------------


def test_the_norms_of_the_groups_add_up_to_the_clip_norm() -> None:
    rule = rule_of("groups", 0.7, groups=("a", "b"))
    assert isinstance(rule, GroupClip)
    assert sum(norm**2 for norm in rule.norms) == pytest.approx(0.49, rel=1e-12)
    assert rule.sensitivity() == pytest.approx(0.7, rel=1e-12)


def test_groups_are_of_layers_the_first_pattern_wins_and_the_rest_is_one_more() -> None:
    names = [f"{layer}.{kind}" for layer in ("x.1", "x.2", "y.1", "z") for kind in ("weight", "bias")]

    def groups(*patterns: str) -> list[int]:
        rule = Clipping("groups", patterns).rule(1.0, names)
        assert rule.groups is not None and list(rule.groups) == names
        return list(rule.groups.values())[::2]

    assert groups("x.*") == [0, 0, 1, 1]
    assert groups("x.2", "*.[12]") == [0, 1, 0, 2]
    assert groups("x.1|z") == [0, 1, 1, 0]


# --- scales ----------------------------------------------------------------------------------------------------------


def test_scaled_clipping_is_flat_clipping_of_the_scaled_gradient() -> None:
    rule = rule_of("scaled", 2.0)
    assert isinstance(rule, ScaledClip) and rule.groups == {"a.weight": 0, "a.bias": 0, "b.weight": 1, "c.d.weight": 2}
    assert rule.scales == (8.0, 1.0, 0.25)
    norms = torch.tensor([[0.01, 0.1, 0.5], [3.0, 0.0, 0.0], [0.0, 5.0, 40.0]], dtype=torch.float64)
    scaled = norms * torch.tensor(rule.scales, dtype=torch.float64)
    wanted = scaled / (scaled.norm(dim=1, keepdim=True) / 2.0).clamp(min=1.0)
    torch.testing.assert_close(rule.weights(norms.square()) * norms, wanted, rtol=1e-5, atol=0.0)


def test_a_layers_own_scale_goes_before_a_pattern_and_the_first_pattern_before_others() -> None:
    names = [f"{layer}.weight" for layer in ("x.1", "x.2", "y")]
    rule = Clipping("scaled", scales=(("x.*", 2.0), ("x.2", 4.0), ("*", 0.5), ("*", 8.0))).rule(1.0, names)
    assert isinstance(rule, ScaledClip) and rule.groups is not None
    assert [rule.scales[group] for group in rule.groups.values()] == [2.0, 4.0, 0.5]


def test_scales_that_fit_no_layer_or_are_missing_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'d\.\*' is the first to match no trainable layer"):
        rule_of("scaled", scales=(("a", 2.0), ("d.*", 2.0)))
    with pytest.raises(ConfigError, match=r"has no scales: give them, or have dptrain\.train measure them"):
        rule_of("scaled", scales=())


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"name": "layerwise"}, "layerwise"),
        ({"name": "groups"}, "clip_groups"),
        ({"name": "groups", "groups": "a"}, "clip_groups"),
        ({"groups": ("a",)}, "clip_groups has no effect with clipping=flat"),
        ({"scales": (("a", 2.0),)}, "clip_scales has no effect"),
        ({"name": "scaled", "scales": {"a": 2.0}}, "clip_scales="),
        ({"name": "scaled", "scales": (("a", 0.0),)}, r"\('a', 0.0\)"),
        ({"name": "scaled", "scales": (("a", math.inf),)}, r"from 1e-06 to 1e\+06"),
        ({"name": "scaled", "scales": (("a", math.nan),)}, "nan"),
        ({"name": "scaled", "scales": (("a", True),)}, "True"),
        ({"name": "scaled", "scales": ((2.0, "a"),)}, "clip_scales="),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Clipping(**options)


def test_what_does_not_go_with_the_rest_of_a_plan_is_refused() -> None:
    values: dict[str, Any] = {
        "sample_rate": 0.1, "steps": 2, "noise_multiplier": 3.0, "clip_norm": 0.5, "delta": 1e-5,
        "expected_batch_size": 8,
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"clip_norm=0\.5 has no effect with clipping=automatic"):
        PrivacyPlan(**values, clipping=Clipping("automatic"))
    with pytest.raises(ConfigError, match="'nothing' is the first to match no"):
        PrivacyPlan(**values, clipping=Clipping("groups", ("*", "nothing"))).mechanism(["a.weight"])


@pytest.mark.parametrize("name", CLIPPINGS)
def test_a_rule_survives_json(name: str) -> None:
    import json

    needed = {**NEEDED, "groups": {"groups": ("a", "b|c")}}
    clipping = Clipping(name, **needed.get(name, {}))
    assert Clipping.from_dict(json.loads(json.dumps(clipping.to_dict()))) == clipping
    assert clipping.words()
    for bad in (
        None,
        [],
        "flat",
        {},
        {"name": name},
        {**clipping.to_dict(), "groups": "a"},
        {**clipping.to_dict(), "name": []},
    ):
        with pytest.raises(ConfigError):
            Clipping.from_dict(bad)
