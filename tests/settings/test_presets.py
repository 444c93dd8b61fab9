"""What a preset settles, and what it leaves to the user."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from dptrain import ConfigError
from dptrain.settings import resolve as settings
from dptrain.settings.keys import keys
from dptrain.settings.presets import _RECIPES
from dptrain.settings.schema import PRESETS, TrainConfig


def resolved(**options: Any) -> TrainConfig:
    return settings.resolve(settings.from_kwargs(model="a.pt", data="b.yaml", **options))


def chosen(config: TrainConfig) -> tuple[Any, ...]:
    return config.privacy.expected_batch_size, config.steps, config.trainable, config.ema.decay, config.head


def test_without_a_preset_nothing_is_settled() -> None:
    assert chosen(resolved()) == (None, None, "all", 0.99, "auto")


@pytest.mark.parametrize(
    ("size", "name"), [(2, "small"), (1000, "small"), (1001, "medium"), (20_000, "medium"), (20_001, "large")]
)
def test_auto_goes_by_the_declared_size(size: int, name: str) -> None:
    config = resolved(privacy={"preset": "auto", "dataset_size": size, "epsilon": 8})
    assert config.privacy.preset == name
    assert chosen(config) == chosen(resolved(privacy={"preset": name, "dataset_size": size, "epsilon": 8}))
    assert settings.make_plan(config).sample_rate <= 1


def test_what_is_given_wins_also_where_it_is_the_default() -> None:
    config = resolved(
        privacy={"preset": "small", "expected_batch_size": 8, "epsilon": 8.0, "dataset_size": 500},
        steps=7, trainable="norm_and_bias", ema={"decay": 0.99}, head="both",
    )  # fmt: skip
    assert chosen(config) == (8, 7, "norm_and_bias", 0.99, "both")


def test_what_follows_from_other_settings_is_left_to_them() -> None:
    found = resolved(privacy={"preset": "small", "epsilon": 8.0, "noise_multiplier": 2.0, "dataset_size": 500})
    assert found.steps is None and settings.make_plan(found).steps > 0
    rate = resolved(privacy={"preset": "small", "sample_rate": 0.01, "dataset_size": 500, "epsilon": 8.0})
    assert settings.make_plan(rate).expected_batch_size == 5


def test_the_run_says_once_what_the_preset_chose(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    config = resolved(privacy={"preset": "medium", "dataset_size": 5000}, steps=9)
    assert "privacy.preset=medium: privacy.expected_batch_size=512, ema.decay=0.95, head=one_to_many" in caplog.text
    assert "steps=" not in caplog.text
    caplog.clear()
    assert settings.resolve(config) == config
    assert not caplog.text


def test_refusals_are_one_line() -> None:
    for privacy, words in (
        ({"preset": "huge"}, f"privacy.preset=huge is not one of {', '.join(PRESETS)}"),
        ({"preset": "auto"}, "give privacy.dataset_size"),
    ):
        with pytest.raises(ConfigError) as caught:
            resolved(privacy=privacy)
        assert words in str(caught.value) and "\n" not in str(caught.value)


def test_recipes_settle_keys_that_exist_and_that_can_be_left_open() -> None:
    known = dict(keys())
    for _, recipe in _RECIPES.values():
        assert all(known[key].default is None for key in recipe), "else nobody could tell what was given"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lora": {"rank": 8}}, "lora.rank=8 has no effect without trainable=lora"),
        ({"trainable": "lora", "lora": {"rank": 0}}, "lora.rank=0 must be 1 or more"),
        ({"trainable": "lora", "lora": {"targets": 3}}, "lora.targets=3 is not"),
        ({"loss": {"constant": 5.0}}, "loss.constant=5.0 has no effect"),
        ({"loss": {"normaliser": "batch"}}, "loss.normaliser=batch is not one of image, constant"),
        ({"loss": {"focal_gamma": 0.5}}, "loss.focal_gamma=0.5 must be 0, or from 1 to 10"),
        ({"loss": {"box": 0, "cls": 0, "dfl": 0}}, "all 0"),
        ({"head": "one2one"}, "head=one2one is not one of auto, both, one_to_many, one_to_one"),
        ({"new_classes": "best"}, "new_classes=best is not one of random, zero, mean"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolved(**options)
    assert words in str(caught.value) and "\n" not in str(caught.value)
