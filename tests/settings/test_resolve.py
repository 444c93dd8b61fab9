"""Every setting is checked once, in one line that names the key, the value and the fix."""

from __future__ import annotations

import dataclasses
import logging
import math
import re
from typing import Any

import pytest

from dptrain import Clipping
from dptrain.errors import ConfigError
from dptrain.privacy.plan import PrivacyPlan
from dptrain.settings import resolve as settings
from dptrain.settings.keys import keys
from dptrain.settings.schema import REFUSED_AUGMENTATIONS, TrainConfig

BASE: dict[str, Any] = {"model": "yolo26n.yaml", "data": "pets.yaml"}


def resolved(**kwargs: Any) -> TrainConfig:
    return settings.resolve(settings.from_kwargs(**{**BASE, **kwargs}))


def refusal(**kwargs: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        resolved(**kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def plan_refusal(**kwargs: Any) -> str:
    config = resolved(**kwargs)
    with pytest.raises(ConfigError) as caught:
        settings.make_plan(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("value", ["auto", 1, 64])
def test_a_physical_batch_size_is_a_number_or_auto(value: object) -> None:
    assert resolved(physical_batch_size=value).physical_batch_size == value


@pytest.mark.parametrize("value", ["lots", 0, 1.5, True, None])
def test_another_physical_batch_size_is_refused(value: object) -> None:
    assert "physical_batch_size=" in refusal(physical_batch_size=value)


def test_numbers_that_overflow_are_refused_by_name() -> None:
    assert refusal(steps=10**400).startswith("steps=1000")
    assert "augment.translate has too many digits" in refusal(augment={"translate": 10**400})
    assert "at most 1e+15" in refusal(privacy={"dataset_size": 10**16})
    assert "at most 2147483648" in plan_refusal(steps=2**31 + 1, privacy={"noise_multiplier": 1.0, "dataset_size": 100})


def test_what_is_no_setting_is_refused_without_pythons_objects() -> None:
    for value in (object(), object, len):
        assert "<" not in refusal(optimizer=value)
        assert "<" not in refusal(imgsz=value)


def test_the_defaults_are_accepted() -> None:
    config = resolved()
    assert config.imgsz == 640
    assert config.engine == "fused"
    assert config.privacy.clip_norm == 1.0
    assert re.fullmatch(r"runs/\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", config.output_dir)


def test_resolve_is_idempotent_and_leaves_its_argument_alone() -> None:
    given = settings.from_kwargs(**BASE, device=0, optimizer={"name": "SGD"})
    once = settings.resolve(given)
    assert settings.resolve(once) == once
    assert (given.device, given.optimizer.name) == ("0", "SGD")
    assert (once.device, once.optimizer.name) == ("cuda:0", "sgd")


def test_sections_are_dicts_and_keep_their_other_defaults() -> None:
    config = resolved(optimizer={"name": "sgd", "lr": 0.1})
    assert (config.optimizer.name, config.optimizer.lr, config.optimizer.betas) == ("sgd", 0.1, [0.9, 0.999])


def test_every_key_has_a_help_line() -> None:
    assert all(item.metadata["help"] for _, item in keys())


@pytest.mark.parametrize(
    ("kwargs", "key", "nearest"),
    [
        ({"imgz": 320}, "imgz", "imgsz"),
        ({"epsilon": 8}, "epsilon", "privacy.epsilon"),
        ({"mosaic": 1.0}, "mosaic", "augment.mosaic"),
        ({"privacy": {"epsilonn": 8}}, "privacy.epsilonn", "privacy.epsilon"),
        ({"optimizer": {"learning_rat": 1}}, "optimizer.learning_rat", None),
    ],
)
def test_a_misspelt_keyword_is_named_with_its_nearest(kwargs: dict[str, Any], key: str, nearest: str | None) -> None:
    message = refusal(**kwargs)
    assert message.startswith(f"unknown key {key}")
    assert nearest is None or f"did you mean {nearest}?" in message


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"privacy": {"epsilon": "abc"}}, "privacy.epsilon=abc is not a number"),
        ({"steps": 1.5}, "steps=1.5 is not a whole number"),
        ({"steps": True}, "steps=True is not a whole number"),
        ({"resume": "maybe"}, "resume=maybe is not true or false"),
        ({"privacy": {"clip_norm": None}}, "privacy.clip_norm=null is not a number"),
        ({"optimizer": {"betas": "x"}}, "optimizer.betas is not a list of numbers such as [0.9,0.999]"),
        ({"optimizer": {"betas": [0.9, "x"]}}, "optimizer.betas[1]=x is not a number"),
        ({"privacy": 8}, "privacy=8 is not a dict such as privacy={...}"),
        ({"model": None}, "model=null is not a text"),
    ],
)
def test_a_value_of_the_wrong_type_says_key_value_and_type(kwargs: dict[str, Any], message: str) -> None:
    assert refusal(**kwargs) == message


@pytest.mark.parametrize("missing", ["model", "data"])
def test_model_and_data_must_be_set(missing: str) -> None:
    with pytest.raises(ConfigError, match=f"^{missing} is not set"):
        settings.resolve(settings.from_kwargs(**{key: value for key, value in BASE.items() if key != missing}))
    assert f"{missing} is not set" in refusal(**{missing: ""})


OUT_OF_RANGE = [
    ("privacy", "epsilon", [0, -1, math.inf, math.nan]),
    ("privacy", "delta", [0, 1, 1.5, -1e-5]),
    ("privacy", "noise_multiplier", [0, -1, math.inf]),
    ("privacy", "clip_norm", [0, -1, math.inf, math.nan]),
    ("privacy", "sample_rate", [0, 1.01, -0.1]),
    ("privacy", "expected_batch_size", [0, -5]),
    ("privacy", "dataset_size", [0]),
    ("optimizer", "lr", [0, -1, math.inf]),
    ("optimizer", "momentum", [1, -0.1]),
    ("optimizer", "weight_decay", [-1]),
    ("ema", "decay", [1, -0.1]),
    ("schedule", "final", [-0.1, 1.1]),
    ("schedule", "warmup_steps", [-1]),
    ("augment", "fliplr", [-0.1, 1.1]),
    ("augment", "scale", [1.0]),
    ("augment", "crop", [1.0]),
]


@pytest.mark.parametrize(
    ("section", "name", "value"), [(section, name, value) for section, name, values in OUT_OF_RANGE for value in values]
)
def test_a_value_out_of_range_is_refused_by_its_key(section: str, name: str, value: float) -> None:
    assert refusal(**{section: {name: value}}).startswith(f"{section}.{name}=")


@pytest.mark.parametrize(
    ("key", "value"),
    [("steps", 0), ("steps", -3), ("physical_batch_size", 0), ("workers", -1), ("evaluate_every", 0), ("seed", -1)],
)
def test_a_top_level_value_out_of_range_is_refused(key: str, value: int) -> None:
    assert refusal(**{key: value}).startswith(f"{key}={value} must be")


def test_the_edges_of_the_ranges_are_accepted() -> None:
    resolved(
        privacy={"sample_rate": 1.0, "delta": 0.5},
        ema={"decay": 0.0},
        schedule={"final": 1.0},
        augment={"fliplr": 1.0, "translate": 1.0},
        workers=0,
        imgsz=32,
        seed=0,
    )


@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [
        ("norm", "grup", "did you mean group?"),
        ("engine", "opacuss", "did you mean opacus?"),
        ("validation", "secret", "public, private, off"),
        ("device", "gpu", "cuda:0 (or, to train, several: 0,1)"),
        ("device", "0,gpu", "numbers of different GPUs"),
        ("device", "0,0", "numbers of different GPUs"),
        ("device", "cpu,0", "numbers of different GPUs"),
        ("device", "auto,auto", "numbers of different GPUs"),
        ("device", "cpu,", "numbers of different GPUs"),
        ("imgsz", 100, "give 96 or 128"),
        ("trainable", 3, "list of patterns"),
        ("trainable", [], "list of patterns"),
    ],
)
def test_a_wrong_choice_shows_the_right_ones(key: str, value: Any, hint: str) -> None:
    message = refusal(**{key: value})
    assert message.startswith(f"{key}={value}")
    assert hint in message


def test_a_misspelt_optimizer_shows_the_nearest() -> None:
    assert "did you mean adamw?" in refusal(optimizer={"name": "adanw"})


@pytest.mark.parametrize("name", list(REFUSED_AUGMENTATIONS))
def test_what_would_void_the_guarantee_is_refused_with_the_reason(name: str) -> None:
    message = refusal(augment={name: 1.0 if name not in ("rect", "autobatch", "autoanchor") else True})
    assert message.startswith(f"augment.{name}=")
    assert REFUSED_AUGMENTATIONS[name] in message


def test_warmup_longer_than_the_run_is_refused() -> None:
    assert "schedule.warmup_steps=20" in refusal(steps=10, schedule={"warmup_steps": 20})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"privacy": {"clipping": "scale"}}, "privacy.clipping=scale is not one of .*did you mean scaled"),
        ({"privacy": {"clipping": "groups"}}, "privacy.clipping=groups needs clip_groups"),
        ({"privacy": {"clip_quantile": 0.4}}, "privacy.clip_quantile was removed: .*clipping=automatic"),
        ({"privacy": {"rows_per_unit": 4}}, "privacy.rows_per_unit was removed: use privacy.images_per_group"),
        ({"privacy": {"clip_split": "size"}}, "privacy.clip_split was removed: .*equally"),
        ({"privacy": {"clipping": "rescaled"}}, "privacy.clipping=rescaled was removed: .*clipping=flat"),
        ({"privacy": {"clipping": "per_layer"}}, "privacy.clipping=per_layer was removed: .*clipping=scaled"),
        ({"privacy": {"clipping": "scaled"}}, "privacy.clipping=scaled needs privacy.clip_scales"),
        ({"privacy": {"precondition": True}}, "privacy.precondition was removed: .*clipping=scaled"),
        ({"norm": "group_ws"}, "norm=group_ws was removed: .*norm=group"),
        ({"optimizer": {"name": "dp_adam_bc"}}, "optimizer.name=dp_adam_bc was removed: .*optimizer.name=adam"),
        ({"privacy": {"clip_scales": "x.yaml"}}, "privacy.clip_scales has no effect with clipping=auto: give"),
        ({"privacy": {"clip_groups": "head"}}, "privacy.clip_groups"),
        ({"privacy": {"clipping": "adaptive"}}, "privacy.clipping=adaptive was removed: .*clipping=automatic"),
    ],
)
def test_clip_rules_and_their_options_are_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        resolved(**changes)


def test_a_plan_with_scales_of_its_own_is_refused_since_a_run_measures_them() -> None:
    scaled = dataclasses.replace(PLAN, clipping=Clipping("scaled", scales=(("a", 2.0),)))
    assert refusal(plan=scaled, privacy={"clip_scales": "x.yaml"}).startswith("the plan has scales of its own")


def test_the_clip_rule_of_the_settings_is_the_plans_and_back() -> None:
    privacy = {
        **PUBLIC,
        "noise_multiplier": 1.1,
        "clipping": "groups",
        "clip_groups": ["a.*", "b"],
    }
    plan = settings.make_plan(resolved(steps=10, privacy=privacy))
    assert plan.clipping == Clipping("groups", ("a.*", "b"))
    settled = settings.with_plan(settings.from_kwargs(**BASE), plan)
    assert settings.make_plan(settled) == plan
    assert settings.from_kwargs(**BASE, plan=plan).privacy.clip_groups == ["a.*", "b"]
    with pytest.raises(ConfigError, match=r"privacy\.clipping=flat contradicts the plan"):
        settings.from_kwargs(**BASE, plan=plan, privacy={"clipping": "flat"})


# The plan


PUBLIC = {"sample_rate": 0.02, "expected_batch_size": 256, "delta": 1e-5}


def test_noise_and_steps_give_the_plan_as_it_stands() -> None:
    plan = settings.make_plan(resolved(steps=100, privacy={**PUBLIC, "noise_multiplier": 1.1, "clip_norm": 0.5}))
    assert plan == PrivacyPlan(
        sample_rate=0.02, steps=100, noise_multiplier=1.1, clip_norm=0.5, delta=1e-5, expected_batch_size=256
    )


def test_epsilon_and_steps_find_the_noise() -> None:
    plan = settings.make_plan(resolved(steps=100, privacy={**PUBLIC, "epsilon": 2.0}))
    assert plan.steps == 100
    assert 1.95 < plan.epsilon() <= 2.0


def test_epsilon_and_noise_find_the_steps() -> None:
    plan = settings.make_plan(resolved(privacy={**PUBLIC, "epsilon": 2.0, "noise_multiplier": 1.0}))
    assert plan.epsilon() <= 2.0 < plan.epsilon(steps=plan.steps + 1)


@pytest.mark.parametrize("given", [{"epsilon": 2.0}, {"noise_multiplier": 1.0}])
def test_one_alone_makes_no_plan(given: dict[str, float]) -> None:
    assert "steps is not set: give a number" in plan_refusal(privacy={**PUBLIC, **given})


def test_all_three_are_one_too_many() -> None:
    message = plan_refusal(steps=10, privacy={**PUBLIC, "epsilon": 2.0, "noise_multiplier": 1.0})
    assert "one too many" in message


def test_no_guarantee_asked_for_is_refused() -> None:
    assert "no guarantee is set" in plan_refusal(steps=10, privacy=PUBLIC)


def test_a_target_that_cannot_be_met_is_refused() -> None:
    assert "epsilon=1e-07" in plan_refusal(steps=1500, privacy={**PUBLIC, "epsilon": 1e-7})
    assert "epsilon=0.01" in plan_refusal(privacy={**PUBLIC, "epsilon": 0.01, "noise_multiplier": 0.5})


def test_rate_batch_and_delta_come_from_the_declared_size_and_are_shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dptrain")
    plan = settings.make_plan(resolved(steps=10, privacy={"noise_multiplier": 2.0, "dataset_size": 10_000}))
    assert (plan.expected_batch_size, plan.sample_rate) == (256, 0.0256)
    assert plan.delta == pytest.approx(10_000**-1.1)
    assert all(key in caplog.text for key in ("expected_batch_size", "sample_rate", "delta"))


def test_the_batch_size_follows_the_rate_and_the_declared_size() -> None:
    privacy = {"noise_multiplier": 2.0, "dataset_size": 1000, "sample_rate": 0.05}
    assert settings.make_plan(resolved(steps=1, privacy=privacy)).expected_batch_size == 50


def test_a_small_declared_dataset_lowers_the_default_batch() -> None:
    plan = settings.make_plan(resolved(steps=1, privacy={"noise_multiplier": 2.0, "dataset_size": 100}))
    assert (plan.expected_batch_size, plan.sample_rate) == (100, 1.0)


@pytest.mark.parametrize(
    ("privacy", "key"),
    [
        ({"expected_batch_size": 64, "delta": 1e-5}, "privacy.sample_rate is not set"),
        ({"sample_rate": 0.1, "delta": 1e-5}, "privacy.expected_batch_size is not set"),
        ({"sample_rate": 0.1, "expected_batch_size": 64}, "privacy.delta is not set"),
        ({"expected_batch_size": 64, "dataset_size": 32}, "privacy.expected_batch_size=64 is more than"),
    ],
)
def test_what_only_the_private_folder_could_tell_must_be_declared(privacy: dict[str, Any], key: str) -> None:
    assert plan_refusal(steps=1, privacy={"noise_multiplier": 1.0, **privacy}).startswith(key)


@pytest.mark.parametrize(("delta", "warns"), [(0.01, True), (0.02, True), (0.0099, False)])
def test_a_delta_not_below_one_over_n_warns(delta: float, warns: bool, caplog: pytest.LogCaptureFixture) -> None:
    privacy = {"noise_multiplier": 2.0, "dataset_size": 100, "delta": delta}
    settings.make_plan(resolved(steps=1, privacy=privacy))
    warned = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert bool(warned) is warns
    assert all("privacy.delta" in record.getMessage() for record in warned)


def test_a_seed_warns_that_the_guarantee_is_void(caplog: pytest.LogCaptureFixture) -> None:
    settings.make_plan(resolved(steps=1, seed=1, privacy={**PUBLIC, "noise_multiplier": 2.0}))
    assert "void" in caplog.text


# A plan of one's own


PLAN = PrivacyPlan(
    sample_rate=0.03, steps=70, noise_multiplier=1.3, clip_norm=0.7, delta=1e-6, expected_batch_size=99, unit="image"
)


def test_a_plan_given_beside_keywords_is_the_plan_that_is_made() -> None:
    assert settings.make_plan(resolved(plan=PLAN)) == PLAN
    assert settings.make_plan(resolved(plan=PLAN, steps=70, privacy={"dataset_size": 5000})) == PLAN


@pytest.mark.parametrize(
    ("kwargs", "key"),
    [
        ({"steps": 71}, "steps=71"),
        ({"privacy": {"noise_multiplier": 1.0}}, "privacy.noise_multiplier=1.0"),
        ({"privacy": {"clip_norm": 1.0}}, "privacy.clip_norm=1.0"),
        ({"privacy": {"epsilon": 3.0}}, "privacy.epsilon"),
    ],
)
def test_a_keyword_that_contradicts_the_plan_is_refused(kwargs: dict[str, Any], key: str) -> None:
    assert refusal(plan=PLAN, **kwargs).startswith(key)


def test_the_settled_configuration_makes_the_same_plan_again() -> None:
    config = resolved(privacy={"epsilon": 3.0, "dataset_size": 10_000}, steps=95)
    plan = settings.make_plan(config)
    settled = settings.with_plan(config, plan)
    assert settings.make_plan(settings.resolve(settled)) == plan
    assert settled.evaluate_every == 9
    assert config.evaluate_every is None


def test_groups_need_one_way_to_tell_them_and_images_none() -> None:
    grouped = resolved(privacy={"unit": "group", "groups": {"csv": "p.csv", "column": "patient"}})
    assert (grouped.privacy.groups.column, grouped.privacy.images_per_group) == ("patient", 8)
    assert resolved().privacy.images_per_group is None
    assert settings.resolve(grouped) == grouped
    for privacy, said in (
        ({"unit": "group"}, "exactly one must"),
        ({"unit": "group", "groups": {"csv": "p.csv", "regex": "(a)"}}, "exactly one must"),
        ({"unit": "patient"}, "privacy.unit=patient is not one of image, group"),
        ({"groups": {"folder": 1}}, "privacy.groups.folder=1 is of groups"),
        ({"images_per_group": 4}, "privacy.images_per_group=4 is of groups"),
        (
            {"unit": "group", "groups": {"folder": 1}, "images_per_group": 0},
            "privacy.images_per_group=0 must be 1 or more",
        ),
        ({"unit": "group", "groups": {"fodler": 1}}, "unknown key privacy.groups.fodler; did you mean"),
    ):
        assert said in refusal(privacy=privacy)


def test_a_multiplicity_needs_augmentations_that_differ() -> None:
    assert resolved(augment={"multiplicity": 4, "crop": 0.3}).augment.multiplicity == 4
    assert "augment.multiplicity=4 without an augmentation" in refusal(augment={"multiplicity": 4})
    assert "augment.multiplicity=0 must be 1 or more" in refusal(augment={"multiplicity": 0, "crop": 0.3})


@pytest.mark.parametrize(("key", "value"), [("budget.key", "0f" * 32), ("seal.identity", "AGE-SECRET-KEY-1QQQQQQQQQQ")])
def test_a_key_itself_is_refused_since_the_settings_are_published(key: str, value: str) -> None:
    section, _, name = key.partition(".")
    with pytest.raises(ConfigError, match="holds the key itself") as caught:
        settings.resolve(settings.from_kwargs(model="a.pt", data="b.yaml", steps=1, **{section: {name: value}}))
    assert value not in str(caught.value)
