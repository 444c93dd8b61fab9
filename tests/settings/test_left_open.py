"""What a run settles by itself where ``steps`` is open, and what it leaves to the user."""

from __future__ import annotations

from typing import Any

import pytest

from dptrain import ConfigError
from dptrain.settings import resolve as settings
from dptrain.settings.left_open import steps_are_open
from dptrain.settings.schema import TrainConfig
from dptrain.settings.times import seconds_of


def resolved(**options: Any) -> TrainConfig:
    return settings.resolve(settings.from_kwargs(model="a.pt", data="b.yaml", **options))


def chosen(config: TrainConfig) -> tuple[Any, ...]:
    return config.steps, config.trainable, config.ema.decay, config.head


def test_with_steps_the_defaults_depend_on_no_start() -> None:
    assert chosen(resolved(steps=7)) == (7, "all", 0.99, "auto")
    given = resolved(steps=7, trainable="head", ema={"decay": 0.5}, head="both")
    assert chosen(given) == (7, "head", 0.5, "both")


def test_without_steps_what_nobody_gave_is_left_to_the_run() -> None:
    config = resolved(privacy={"epsilon": 8.0, "dataset_size": 500})
    assert steps_are_open(config) and chosen(config) == (None, None, None, None)
    given = resolved(trainable="head", ema={"decay": 0.5}, head="both", time="2h")
    assert steps_are_open(given) and chosen(given) == (None, "head", 0.5, "both")
    with pytest.raises(ConfigError, match="steps is not set"):
        settings.make_plan(config)


@pytest.mark.parametrize(
    "options",
    [
        {"privacy": {"epsilon": 8.0, "noise_multiplier": 2.0}},
        {"phases": [{"trainable": "head", "steps": 3}]},
        {"steps": 3},
    ],
)
def test_steps_that_follow_from_other_settings_are_not_open(options: dict[str, Any]) -> None:
    assert not steps_are_open(resolved(**options))
    with pytest.raises(ConfigError, match="time=1h chooses the number of steps, which"):
        resolved(time="1h", **options)


def test_a_tunings_candidates_are_not_left_to_a_clock() -> None:
    tuned = {"tuning": {"method": "random_stopping", "search": {"optimizer.lr": [1e-3, 3e-3]}}}
    assert resolved(**tuned).trainable == "all"
    with pytest.raises(ConfigError, match="time=1h"):
        resolved(time="1h", **tuned)


def test_what_is_settled_once_stays() -> None:
    config = resolved(steps=9, privacy={"dataset_size": 5000})
    assert settings.resolve(config) == config


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("30m", 1800), ("1.5h", 5400), ("90s", 90), ("2d", 172_800), (" 10S ", 10), ("0.5", 1800), (1, 3600)],
)
def test_a_time_has_a_unit_or_is_of_hours(value: object, seconds: float) -> None:
    assert seconds_of(value) == seconds


@pytest.mark.parametrize("value", ["", "h", "soon", "-1h", "1h30m", "nan", "1e3h", True, "1w", "0", "9s", "366d"])
def test_what_is_no_time_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="time=") as caught:
        seconds_of(value)
    assert "\n" not in str(caught.value)
    if isinstance(value, str):
        with pytest.raises(ConfigError, match="time="):
            resolved(time=value)


def test_presets_by_size_are_answered() -> None:
    with pytest.raises(ConfigError, match=r"privacy\.preset was removed: leave steps open"):
        resolved(privacy={"preset": "auto"})


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


def test_epochs_stand_alone_and_above_zero() -> None:
    for given, says in (
        ({"epochs": 3, "time": "1h"}, "both say how long"),
        ({"epochs": 3, "steps": 5}, "epochs=3 chooses the number of steps, which steps=5 has settled"),
        ({"epochs": 0}, "epochs=0 must be above 0"),
        ({"epochs": float("nan")}, "epochs=nan must be above 0"),
    ):
        with pytest.raises(ConfigError, match=says):
            settings.resolve(settings.from_kwargs(model="a.pt", data="b.yaml", privacy={"epsilon": 8}, **given))
