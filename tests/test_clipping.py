"""What every clip rule states: its edge cases, its sensitivity, its options, and what a noised count costs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from dp_accounting.dp_event import (
    ComposedDpEvent,
    DpEvent,
    GaussianDpEvent,
    PoissonSampledDpEvent,
    SelfComposedDpEvent,
)

from dptrain import Clipping, ConfigError, FlatClip, PrivacyPlan, accounting
from dptrain.clip_settings import CLIPPINGS
from dptrain.clipping import COUNT, AdaptiveClip, AutomaticClip, ClipRule, GroupClip, RescaledClip, ScaledClip
from dptrain.noise import NoiseStream

SIZES = {"a.weight": 6, "a.bias": 2, "b.weight": 8, "c.d.weight": 16}
NEEDED: dict[str, dict[str, Any]] = {"groups": {"groups": ("a",)}, "scaled": {"scales": (("a", 8.0), ("c.*", 0.25))}}
ODD = torch.tensor([0.0, 1.0, 100.0, math.inf, math.nan, 1e-300], dtype=torch.float64)


def rule_of(name: str, clip_norm: float = 1.0, **options: Any) -> ClipRule:
    return Clipping(name, **{**NEEDED.get(name, {}), **options}).rule(clip_norm, SIZES, 1.0, 32)


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
    """Parts of every length in every group, and the count beside them."""
    rule = rule_of(name, clip_norm)
    columns = max(rule.groups.values()) + 1 if rule.groups else 1
    lengths = torch.logspace(-6, 6, 25, dtype=torch.float64)
    for norms in (lengths.view(-1, 1).expand(-1, columns), lengths[torch.randint(25, (200, columns))]):
        parts = rule.weights(norms.square()) * norms
        added = parts.square().sum(1)
        if isinstance(rule, AdaptiveClip):
            added += torch.stack([rule.count(row.view(1, 1).square()) for row in norms]).square().sum(1)
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
    if isinstance(rule, AdaptiveClip):
        assert float(rule.count(torch.tensor([[math.inf], [math.nan]]))) == 0.0


def test_the_rescaled_sum_is_the_flat_one_in_clip_norms() -> None:
    squared = torch.logspace(-4, 4, 9, dtype=torch.float64).view(-1, 1)
    torch.testing.assert_close(RescaledClip(0.2).weights(squared), FlatClip(0.2).weights(squared) / 0.2)
    assert RescaledClip(0.2).sensitivity() == 1.0


def test_automatic_clipping_is_the_papers() -> None:
    norms = torch.tensor([[0.0], [0.01], [3.0]], dtype=torch.float64)
    torch.testing.assert_close(AutomaticClip().weights(norms.square()), 1.0 / (norms + 0.01), rtol=1e-5, atol=0)


# --- groups ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["equal", "size"])
@pytest.mark.parametrize("name", ["per_layer", "groups"])
def test_the_norms_of_the_groups_add_up_to_the_clip_norm(name: str, split: str) -> None:
    rule = rule_of(name, 0.7, split=split)
    assert isinstance(rule, GroupClip)
    assert sum(norm**2 for norm in rule.norms) == pytest.approx(0.49, rel=1e-12)
    assert rule.sensitivity() == pytest.approx(0.7, rel=1e-12)


def test_groups_are_of_layers_the_first_pattern_wins_and_the_rest_is_one_more() -> None:
    sizes = {f"{layer}.{kind}": 1 for layer in ("x.1", "x.2", "y.1", "z") for kind in ("weight", "bias")}

    def groups(name: str, *patterns: str) -> list[int]:
        rule = Clipping(name, patterns).rule(1.0, sizes, 1.0, 32)
        assert rule.groups is not None and list(rule.groups) == list(sizes)
        return list(rule.groups.values())[::2]

    assert groups("per_layer") == [0, 1, 2, 3]
    assert groups("groups", "x.*") == [0, 0, 1, 1]
    assert groups("groups", "x.2", "*.[12]") == [0, 1, 0, 2]
    assert groups("groups", "x.1|z") == [0, 1, 1, 0]


def test_shares_by_size() -> None:
    rule = rule_of("per_layer", 2.0, split="size")
    assert isinstance(rule, GroupClip)
    assert rule.norms == pytest.approx([2.0 * math.sqrt(size / 32) for size in (8, 8, 16)])


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
    sizes = {f"{layer}.weight": 1 for layer in ("x.1", "x.2", "y")}
    rule = Clipping("scaled", scales=(("x.*", 2.0), ("x.2", 4.0), ("*", 0.5), ("*", 8.0))).rule(1.0, sizes, 1.0, 32)
    assert isinstance(rule, ScaledClip) and rule.groups is not None
    assert [rule.scales[group] for group in rule.groups.values()] == [2.0, 4.0, 0.5]


def test_scales_that_fit_no_layer_or_are_missing_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'d\.\*' is the first to match no trainable layer"):
        rule_of("scaled", scales=(("a", 2.0), ("d.*", 2.0)))
    with pytest.raises(ConfigError, match=r"has no scales: give them, or have dptrain\.train measure them"):
        rule_of("scaled", scales=())


# --- the adaptive norm -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count_noise", [1.4, 3.0, None])
@pytest.mark.parametrize("noise_multiplier", [0.6, 1.3])
def test_the_accounted_multiplier_is_that_of_gradient_and_count_together(
    noise_multiplier: float, count_noise: float | None
) -> None:
    """Theorem 1 of Andrew et al. 2021, held against dp-accounting's composition of two Gaussians under one draw."""
    clipping = Clipping("adaptive", count_noise=count_noise)
    plan = PrivacyPlan(0.1, 20, noise_multiplier, 0.4, 1e-5, 40, clipping=clipping)
    rule = plan.clip_rule({})
    assert isinstance(rule, AdaptiveClip)
    deviation = plan.noise_multiplier * rule.sensitivity()
    z_gradient, sigma_count = deviation / 0.4, deviation / (rule.count_weight * 0.4)
    assert sigma_count == pytest.approx(count_noise or max(2.0, noise_multiplier))

    def run(step: DpEvent) -> DpEvent:
        return SelfComposedDpEvent(PoissonSampledDpEvent(0.1, step), 20)

    both = run(ComposedDpEvent([GaussianDpEvent(z_gradient), GaussianDpEvent(2 * sigma_count)]))
    assert accounting.epsilon(both, 1e-5) == pytest.approx(plan.epsilon(), rel=1e-9)
    assert accounting.epsilon(run(GaussianDpEvent(z_gradient)), 1e-5) < plan.epsilon(), "the count is not for nothing"


def test_the_last_digits_of_a_norm_move_no_whole_count() -> None:
    """Which images share a batch shows in them, so that an image more could move the others' indicators."""
    rule = AdaptiveClip(2.0, 0.5, 1.0)
    norms = torch.linspace(1.7, 2.3, 100_000, dtype=torch.float64)
    entries = torch.cat([rule.count(norm.view(1, 1).square()) for norm in norms[::500]])
    assert float(entries.max()) == 1.0 and float(entries.min()) == -1.0
    assert float(rule.count(torch.tensor([[4.0]], dtype=torch.float64))) == 0.0
    near = [float(rule.count(torch.tensor([[(2.0 * (1 + shift)) ** 2]], dtype=torch.float64))) for shift in (0, 1e-5)]
    assert abs(near[1] - near[0]) <= 2e-4 * 1.01


def test_the_noise_of_gradient_and_count_is_the_accounted_one() -> None:
    plan = PrivacyPlan(0.1, 20, 0.9, 0.4, 1e-5, 1, clipping=Clipping("adaptive", count_noise=2.0))
    noised = plan.noise({"w": torch.zeros(200_000), COUNT: torch.zeros(200_000)}, NoiseStream())
    deviation = 0.4 / math.sqrt(0.9**-2 - 4.0**-2)  # z_delta C
    for entry in noised.values():
        assert float(entry.std()) == pytest.approx(deviation, rel=0.02)


def test_the_clip_norm_follows_the_quantile() -> None:
    norms = torch.linspace(0.1, 10.0, 400, dtype=torch.float64).view(-1, 1)
    norm = 100.0
    for _ in range(200):
        rule = AdaptiveClip(norm, 0.25, 0.1)
        norm = rule.next_norm(float(rule.count(norms.square())) / len(norms))
    assert norm == pytest.approx(float(norms.quantile(0.25)), rel=0.05)
    assert AdaptiveClip(1e-10, 0.5, 1.0).next_norm(1e30) == 1e-10
    assert AdaptiveClip(1e10, 0.5, 1.0).next_norm(-1e30) == 1e10


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"name": "layerwise"}, "layerwise"),
        ({"name": "groups"}, "clip_groups"),
        ({"name": "groups", "groups": "a"}, "clip_groups"),
        ({"groups": ("a",)}, "clip_groups means nothing with clipping=flat"),
        ({"split": "size"}, "clip_split means nothing"),
        ({"name": "per_layer", "split": "half"}, "clip_split='half'"),
        ({"name": "adaptive", "quantile": 1.0}, "clip_quantile=1.0"),
        ({"quantile": 0.3}, "clip_quantile means nothing"),
        ({"name": "adaptive", "count_noise": 0.0}, "clip_count_noise=0.0"),
        ({"name": "adaptive", "count_noise": math.nan}, "clip_count_noise=nan"),
        ({"name": "adaptive", "quantile": 10**400}, "clip_quantile=1000"),
        ({"scales": (("a", 2.0),)}, "clip_scales means nothing"),
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
    with pytest.raises(ConfigError, match=r"clip_norm=0\.5 means nothing with clipping=automatic"):
        PrivacyPlan(**values, clipping=Clipping("automatic"))
    with pytest.raises(ConfigError, match=r"clip_count_noise=1\.5 must be at least the noise multiplier \(3\)"):
        PrivacyPlan(**values, clipping=Clipping("adaptive", count_noise=1.5))
    with pytest.raises(ConfigError, match="does not adapt"):
        PrivacyPlan(**values).clip_rule({}, 0.6)
    with pytest.raises(ConfigError, match="no exact noise"):
        PrivacyPlan(**values, clipping=Clipping("adaptive")).refuse_exact()
    with pytest.raises(ConfigError, match="'nothing' is the first to match no"):
        PrivacyPlan(**values, clipping=Clipping("groups", ("*", "nothing"))).clip_rule({"a.weight": torch.zeros(1)})


@pytest.mark.parametrize("name", CLIPPINGS)
def test_a_rule_survives_json(name: str) -> None:
    import json

    needed = {**NEEDED, "groups": {"groups": ("a", "b|c")}}
    clipping = Clipping(name, **needed.get(name, {}))
    assert Clipping.read(json.loads(json.dumps(clipping.facts()))) == clipping
    assert clipping.words()
    assert Clipping.read(None) == Clipping()
    older = {key: value for key, value in Clipping().facts().items() if key != "scales"}
    assert Clipping.read(older) == Clipping(), "a record of before there were scales"
    for bad in ([], "flat", {}, {"name": name}, {**clipping.facts(), "groups": "a"}, {**clipping.facts(), "name": []}):
        with pytest.raises(ConfigError):
            Clipping.read(bad)
