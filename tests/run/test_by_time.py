"""A run without ``steps``: what it settles by the start and the time, and that a resumed run keeps it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

import dptrain
import dptrain.run.job
from dptrain import ConfigError
from dptrain.run import by_time
from dptrain.run.by_time import KNOWS, LACKS, RANDOM, Speed, fitted, passes, recipe_of, settle_steps
from dptrain.settings import resolve as settings
from dptrain.settings.schema import PrivacyConfig
from dptrain.support.files import read_json

from ..conftest import SMALL, MakeDataset, run_options
from ..detectors import stock_detector, write_checkpoint

FAST = Speed(unit=0.01, step=0.5, once=20.0)
MODEL = SMALL.removesuffix(".yaml")
PRIVACY: dict[str, Any] = {"epsilon": 8.0, "dataset_size": 40}


def fits(seconds: float, **privacy: Any) -> tuple[int, int | None]:
    return fitted(PrivacyConfig(**privacy), LACKS, FAST, seconds)


def test_the_batch_is_as_large_as_the_time_allows() -> None:
    assert fits(20 + 80 * 3.001, dataset_size=10_000) == (80, 250)
    steps, batch = fits(20 + 80 * 1.301, dataset_size=10_000)
    assert (steps, batch) == (80, 80)
    assert fits(20 + 80 * 0.515, dataset_size=10_000) == (80, 1), "less than an image a step"


def test_with_all_images_in_every_step_the_time_goes_into_steps() -> None:
    assert fits(20 + 150 * 10.5, dataset_size=1000) == (150, 1000)
    assert fits(1e6, dataset_size=1000) == (LACKS.most_steps, 1000)


@pytest.mark.parametrize(
    "privacy", [{"expected_batch_size": 100, "dataset_size": 5000}, {"sample_rate": 0.02, "dataset_size": 5000}]
)
def test_a_batch_that_is_given_stays(privacy: dict[str, Any]) -> None:
    assert fits(20 + 37 * 1.5, **privacy) == (37, None)


@pytest.mark.parametrize(
    ("privacy", "epochs", "found"),
    [
        ({"dataset_size": 1000}, 20, (80, 250)),
        ({"dataset_size": 1000}, 100, (100, 1000)),
        ({"dataset_size": 1000}, 0.01, (10, 1)),
        ({"dataset_size": 1000, "expected_batch_size": 64}, 16, (250, None)),
        ({"sample_rate": 0.02}, 3, (150, None)),
    ],
)
def test_epochs_are_as_many_images_in_all(
    privacy: dict[str, Any], epochs: float, found: tuple[int, int | None]
) -> None:
    assert passes(PrivacyConfig(**privacy), LACKS, epochs) == found


def test_epochs_of_an_unknown_number_of_images_are_one_line() -> None:
    with pytest.raises(ConfigError, match=r"epochs=3 are passes over the declared data: give privacy.dataset_size"):
        passes(PrivacyConfig(expected_batch_size=8), LACKS, 3)


def test_too_little_time_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"time=12s is too short: this machine takes 20 s around") as caught:
        fits(10.0, dataset_size=1000)
    assert "\n" not in str(caught.value)


def test_the_kind_of_start_is_that_of_its_classes(tmp_path: Path) -> None:
    from dptrain.detection import load_model

    start = write_checkpoint(stock_detector(MODEL, "abc"), tmp_path / "start.pt")
    names = {0: "a", 1: "b", 2: "c"}
    assert recipe_of(load_model(SMALL, 3, names=names)) is RANDOM
    assert recipe_of(load_model(start, 3, names=names)) is KNOWS
    assert recipe_of(load_model(start, 2, names={0: "b", 1: "c"})) is KNOWS
    assert recipe_of(load_model(start, 2, names={0: "b", 1: "z"})) is LACKS
    assert recipe_of(load_model(start, 3, names={0: "a", 1: "b", 2: "z"})) is LACKS, "as many, but others"
    assert recipe_of(load_model(start, 2, names={0: "b", 1: "z"}, similar={"z": "a"})) is KNOWS
    digits = write_checkpoint(stock_detector(MODEL, "012"), tmp_path / "digits.pt")
    assert recipe_of(load_model(digits, 3, names={0: "0", 1: "1", 2: "2"})) is KNOWS, "names that are numbers"


def started(tmp_path: Path, make_dataset: MakeDataset, **changes: Any) -> dict[str, Any]:
    start = write_checkpoint(stock_detector(MODEL, "xyz"), tmp_path / "start.pt")
    given = {"model": str(start), "steps": None, "privacy": PRIVACY, "tracking": {"enabled": False}, "time": "30s"}
    given["trainable"] = None
    return {"data": make_dataset(), **run_options(tmp_path, **{**given, **changes})}


def test_a_run_without_steps_says_and_writes_what_it_settled_and_a_resumed_one_keeps_it(
    make_dataset: MakeDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "dptrain")
    options = started(tmp_path, make_dataset)
    monkeypatch.setattr(by_time, "_measured", lambda *_: Speed(1.0, 0.1, 1.0))
    monkeypatch.setattr(by_time, "LACKS", by_time.Recipe("the start lacks classes of the data", "head", 3, 4))
    real = dptrain.run.job.Run._evaluate

    def cut(self: Any, *args: Any) -> None:
        if self.trainer.step:
            raise OSError("power gone")
        real(self, *args)

    with monkeypatch.context() as context:
        context.setattr("dptrain.run.job.Run._evaluate", cut)
        with pytest.raises(OSError, match="power gone"):
            dptrain.train(**options)
    assert "steps is not set: 3 steps fit into time=30s at 1 s an image, with trainable=head" in caplog.text
    folder = Path(options["output_dir"])
    found = read_json(folder / "settings.json")
    assert (found["steps"], found["trainable"], found["privacy"]["expected_batch_size"]) == (3, "head", 8)
    assert "time" not in found
    monkeypatch.setattr(by_time, "_measured", lambda *_: pytest.fail("a resumed run measures nothing"))
    result = dptrain.train(**{**options, "resume": True, "time": "2h"})
    assert result.plan.steps == 3 and result.plan.expected_batch_size == 8


def test_ultralytics_words_make_a_run(
    make_dataset: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dptrain")
    monkeypatch.setattr(by_time, "_measured", lambda *_: pytest.fail("epochs need no speed"))
    monkeypatch.chdir(tmp_path)
    given = started(tmp_path, make_dataset)
    options = {
        key: value for key, value in given.items() if key not in ("time", "output_dir", "optimizer", "trainable")
    }
    result = dptrain.train(
        **options, epochs=1, batch=4, optimizer="Adam", lr0=1e-3, freeze=1, project="a", name="b", cache=False
    )
    assert result.output_dir == Path("a/b")
    size = options["privacy"]["dataset_size"]
    assert (result.plan.steps, result.plan.expected_batch_size) == (round(size / 4), 4)
    found = read_json(Path("a/b/settings.json"))
    assert found["trainable"] == "layers_from_1" and found["optimizer"]["lr"] == 1e-3
    assert "steps are epochs=1, with trainable=layers_from_1" in caplog.text


def test_the_private_images_have_no_part_in_it(make_dataset: MakeDataset, tmp_path: Path) -> None:
    options = started(tmp_path, make_dataset, time="5h")
    config = settings.resolve(settings.from_kwargs(**options))
    for image in (Path(options["data"]).parent).rglob("train/*.*"):
        image.write_bytes(b"not to be looked at")
    settled = settle_steps(config)
    assert settled.steps and settled.trainable == "neck_and_head" and settled.privacy.expected_batch_size


def test_a_run_that_is_not_there_is_not_resumed(make_dataset: MakeDataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no run: leave resume out"):
        dptrain.train(**started(tmp_path, make_dataset, resume=True))
