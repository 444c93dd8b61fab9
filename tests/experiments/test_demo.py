"""What the demo says and ships: the table, the curve, the weights and the log of how they were made."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from dptrain.detection import load_model
from dptrain.run.public_start import RECORD, declared_start
from dptrain.statement.results import MAP, MAP50
from experiments import demo, recipe
from experiments.digits import scenes
from experiments.digits.public_start import WEIGHTS

LOG = WEIGHTS.with_name(RECORD)


@pytest.fixture
def few_scenes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    train, val = scenes.split_handwriting()
    monkeypatch.setattr(scenes, "split_handwriting", lambda seed=0: (train[:6], val[:4]))
    return scenes.write_private(tmp_path / "private")


def test_the_table_says_by_how_much_private_beats_the_start() -> None:
    def values(score: float) -> dict[str, float]:
        return {MAP50: score, MAP: score / 2}

    console = Console(record=True, width=120, file=io.StringIO())
    rows = [("start", values(0.25), None), ("private", values(0.65), 100.0), ("plain", values(0.2), 50.0)]
    console.print(demo.result_table(rows, scenes=7))
    text = console.export_text()
    assert "+0.400" in text and "-0.050" in text and "0.650" in text and "100 s" in text and "7 val scenes" in text


def test_the_curve_is_drawn_from_a_runs_rows(tmp_path: Path) -> None:
    rows = [{"dp/epsilon": 0.0, MAP50: 0.1}, {"dp/epsilon": 2.5, MAP50: 0.4}]
    demo.draw_curve(tmp_path / "curve.png", rows, 0.1, 0.9)
    assert (tmp_path / "curve.png").stat().st_size > 5000


def test_the_shipped_start_is_small_and_opens_with_ten_classes() -> None:
    assert WEIGHTS.stat().st_size < 6_000_000
    model = load_model(WEIGHTS)
    assert model.names == {i: str(i) for i in range(10)}
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_the_shipped_start_holds_half_precision_and_nothing_of_a_run() -> None:
    checkpoint = torch.load(WEIGHTS, map_location="cpu", weights_only=False)
    assert {p.dtype for p in checkpoint["model"].parameters()} == {torch.float16}
    assert not {"train_results", "train_metrics", "optimizer"} & {k for k, v in checkpoint.items() if v}


def test_the_log_of_the_shipped_start_says_how_to_make_it_again() -> None:
    log = json.loads(LOG.read_text())
    assert log["command"].startswith("python -m experiments.digits.public_start --steps")
    assert declared_start(WEIGHTS) == log["public_data"] and "digits drawn with fonts" in log["public_data"]
    assert log["public_val"]["metrics/mAP50B"] > 0.5
    assert {"torch", "ultralytics", "python"} <= set(log["versions"])
    steps = int(log["command"].split("--steps ")[1].split()[0])
    assert log["losses"][-1]["step"] == steps and log["losses"][-1]["loss"] < log["losses"][0]["loss"]


def test_the_recipe_without_privacy_trains_on_every_draw(few_scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "TRAIN_SCENES", recipe.BATCH)  # rate 1: every scene in every step
    metrics, seconds = recipe.train_without_privacy(WEIGHTS, few_scenes, steps=2)
    assert 0 <= metrics.values[MAP50] <= 1 and seconds > 0


def test_predictions_are_drawn_for_every_model(few_scenes: Path, tmp_path: Path) -> None:
    import cv2

    demo.draw_predictions(tmp_path / "p.png", few_scenes, {"a": WEIGHTS, "b": WEIGHTS}, scenes=4)
    picture = cv2.imread(str(tmp_path / "p.png"))
    assert picture.shape == (2 * (28 + 2 * 256), 2 * 256, 3)
    assert np.unique(picture).size > 50


def test_boxes_are_drawn_on_a_copy(tmp_path: Path) -> None:
    import cv2

    image = np.zeros((100, 150, 3), np.uint8)
    boxes = np.array([[20, 30, 80, 90, 0.9, 1], [0, 0, 150, 100, np.nan, 7]], np.float32)
    picture = demo.draw_boxes(image, boxes, {1: "blue"})
    assert not image.any() and picture.shape == image.shape and picture.dtype == np.uint8
    assert picture[90, 50].any() and not picture[70, 120].any()
    cv2.imwrite(str(tmp_path / "x.png"), image)
    np.testing.assert_array_equal(demo.draw_boxes(tmp_path / "x.png", boxes, {1: "blue"}), picture)
    assert not demo.draw_boxes(image, np.zeros((0, 6)), {}).any()
