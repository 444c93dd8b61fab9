"""``YOLO(...).train(trainer=dptrain.trainer(...))``: a script of Ultralytics' that trains privately."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pyrage
import pytest
import torch
from ultralytics import YOLO
from ultralytics.utils import SETTINGS

import dptrain
from dptrain import ConfigError, ModelError, PrivacyError
from dptrain.statement import check_statement
from dptrain.support.files import read_json

from ..conftest import SMALL, MakeDataset
from ..detectors import stock_detector, write_checkpoint

EVENTS = (
    "on_pretrain_routine_start", "on_pretrain_routine_end", "on_train_start", "on_train_epoch_start",
    "on_train_epoch_end", "on_model_save", "on_fit_epoch_end", "on_train_end", "teardown", "on_train_batch_end",
)  # fmt: skip


@pytest.fixture
def start(tmp_path: Path) -> Path:
    return write_checkpoint(stock_detector(SMALL.removesuffix(".yaml"), ["green", "blue"]), tmp_path / "start.pt")


def private(tmp_path: Path, **options: Any) -> Any:
    given = {
        "epsilon": 8, "dataset_size": 40, "evaluate_every": 2, "physical_batch_size": 4, "workers": 0,
        "tracking": {"enabled": False}, "budget": {"url": f"sqlite:///{tmp_path}/budget.db"},
    }  # fmt: skip
    return dptrain.trainer(**{**given, **options})


def theirs(make_dataset: MakeDataset, tmp_path: Path, **changes: Any) -> dict[str, Any]:
    data = make_dataset(8, 4)
    given = {"data": str(data), "epochs": 1, "batch": 10, "imgsz": 64, "project": str(tmp_path), "name": "run"}
    return {**given, **changes}


def test_a_script_of_theirs_goes_on_as_with_their_trainer(
    make_dataset: MakeDataset, tmp_path: Path, start: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = YOLO(start)
    seen: list[tuple[str, int]] = []
    epsilons: list[float] = []
    for event in EVENTS:
        model.add_callback(event, lambda trainer, event=event: seen.append((event, trainer.epoch)))
    model.add_callback("on_fit_epoch_end", lambda trainer: epsilons.append(trainer.metrics["dp/epsilon"]))
    found = model.train(trainer=private(tmp_path), **theirs(make_dataset, tmp_path))
    trainer = model.trainer
    assert trainer.save_dir == tmp_path / "run" and trainer.epochs == 1 and trainer.batch_size == 10
    assert trainer.last.is_file() and trainer.best.is_file()

    assert check_statement(trainer.save_dir).results == trainer.save_dir / "results.csv"
    statement = read_json(trainer.save_dir / "statement.json")
    assert statement["guarantee"]["epsilon"] <= 8 and statement["dataset"]["declared_size"] == 40

    with trainer.csv.open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["step"] for row in rows] == ["0", "2", "4"] and next(iter(rows[0])) == "epoch"
    assert {"metrics/precision(B)", "metrics/mAP50-95(B)", "dp/epsilon"} <= rows[0].keys()
    assert epsilons == [float(row["dp/epsilon"]) for row in rows]

    names = [event for event, _ in seen]
    assert names[:3] == list(EVENTS[:3]) and names[-2:] == ["on_train_end", "teardown"]
    assert names.count("on_fit_epoch_end") == 3 and names.count("on_model_save") == 2
    assert "on_train_batch_end" not in names, "what happens at every batch would tell of its images"

    assert found.box.map == pytest.approx(trainer.fitness) and found is trainer.validator.metrics
    again = model.val(plots=False, rect=False, workers=0)  # on the data it was trained with, at its size
    assert again.box.map == pytest.approx(found.box.map, abs=1e-3)
    assert model.overrides["imgsz"] == 64
    assert len(model.predict(torch.rand(1, 3, 64, 64), verbose=False)) == 1


def test_names_that_ultralytics_finds_elsewhere_are_found_by_the_trainer_too(
    make_dataset: MakeDataset, tmp_path: Path, start: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights in the weights folder of its settings, and a data.yaml that it ships."""
    data = make_dataset(8, 4)
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    (shipped / "squares.yaml").write_text(f"path: {data.parent}\n{data.read_text()}")
    (tmp_path / "elsewhere").mkdir()
    start.rename(tmp_path / "elsewhere/yolo26n.pt")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("ultralytics.utils.SETTINGS", {**SETTINGS, "weights_dir": str(tmp_path / "elsewhere")})
    monkeypatch.setattr("dptrain.support.released.ultralytics_folder", lambda _: tmp_path / "elsewhere")
    monkeypatch.setattr("dptrain.datasets.roots._shipped_folder", lambda: shipped)
    model = YOLO("yolo26n.pt")
    given = {"epochs": 1, "batch": 10, "imgsz": 64, "project": str(tmp_path), "name": "run"}
    model.train(trainer=private(tmp_path), data="squares.yaml", **given)
    best = torch.load(model.trainer.best, weights_only=False)
    assert best["train_args"]["data"] == str(shipped / "squares.yaml")


def test_what_is_shared_does_not_hold_the_place_of_the_data(
    make_dataset: MakeDataset, tmp_path: Path, start: Path
) -> None:
    model = YOLO(start)
    model.train(trainer=private(tmp_path), **theirs(make_dataset, tmp_path))
    last, best = (torch.load(file, weights_only=False) for file in (model.trainer.last, model.trainer.best))
    assert last["train_args"]["data"] is None and best["train_args"]["data"].endswith("data.yaml")
    for name, value in last["model"].state_dict().items():
        assert torch.equal(value, best["model"].state_dict()[name])


def test_a_callback_can_end_the_run_and_all_steps_stay_charged(
    make_dataset: MakeDataset, tmp_path: Path, start: Path
) -> None:
    def enough(trainer: Any) -> None:
        trainer.stop = trainer.metrics["dp/epsilon"] > 0

    model = YOLO(start)
    model.add_callback("on_fit_epoch_end", enough)
    model.train(trainer=private(tmp_path), **theirs(make_dataset, tmp_path))
    statement = read_json(model.trainer.save_dir / "statement.json")
    assert (statement["status"], statement["mechanism"]["steps"]) == ("stopped", 2)
    assert model.trainer.best.is_file()


def test_a_callback_that_fails_ends_the_run_and_loses_no_budget(
    make_dataset: MakeDataset, tmp_path: Path, start: Path
) -> None:
    def broken(trainer: Any) -> None:
        if trainer.metrics["dp/epsilon"]:
            raise RuntimeError("my logger is gone")

    model, options = YOLO(start), theirs(make_dataset, tmp_path)
    ended: list[int] = []
    model.add_callback("on_fit_epoch_end", broken)
    model.add_callback("teardown", lambda trainer: ended.append(1))
    with pytest.raises(RuntimeError, match="my logger is gone") as caught:
        model.train(trainer=private(tmp_path), **options)
    assert "2 of 4 steps are taken and kept" in "".join(caught.value.__notes__) and ended == [1]
    again = YOLO(start)
    with pytest.raises(ConfigError, match="already holds a run"):
        again.train(trainer=private(tmp_path), **options)
    again.train(trainer=private(tmp_path, resume=True), **options)
    assert check_statement(again.trainer.save_dir).results == again.trainer.save_dir / "results.csv"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"mosaic": 1.0}, "augment.mosaic"),
        ({"batch": -1}, "measures the batch size on private images"),
        ({"cache": True}, "cache=True"),
        ({"rect": True}, "augment.rect"),
        ({"close_mosaic": 5}, "close_mosaic=5"),
        ({"patience": 3}, "patience=3"),
        ({"evaluate_every": 3}, "evaluate_every is given to dptrain.trainer"),
    ],
)
def test_what_would_void_the_guarantee_is_refused_before_any_step(
    given: dict[str, Any], says: str, make_dataset: MakeDataset, tmp_path: Path, start: Path
) -> None:
    with pytest.raises((ConfigError, PrivacyError), match=says):
        YOLO(start).train(trainer=private(tmp_path), **theirs(make_dataset, tmp_path, **given))
    assert not (tmp_path / "run").exists()


def test_weights_that_are_not_those_of_the_file_are_refused(
    make_dataset: MakeDataset, tmp_path: Path, start: Path
) -> None:
    model = YOLO(start)
    with torch.no_grad():
        next(iter(model.model.parameters())).add_(1)
    with pytest.raises(ModelError, match="holds other weights than"):
        model.train(trainer=private(tmp_path), **theirs(make_dataset, tmp_path))
    assert not (tmp_path / "run").exists()


def test_sealed_weights_and_tunings_are_refused(make_dataset: MakeDataset, tmp_path: Path, start: Path) -> None:
    options = theirs(make_dataset, tmp_path)
    someone = str(pyrage.x25519.Identity.generate().to_public())
    with pytest.raises(ConfigError, match=r"seal\.recipients"):
        YOLO(start).train(trainer=private(tmp_path, seal={"recipients": [someone]}), **options)
    tuning = {"method": "random_stopping", "search": {"optimizer.lr": [1e-3, 1e-2]}}
    with pytest.raises(ConfigError, match="winner"):
        YOLO(start).train(trainer=private(tmp_path, tuning=tuning, steps=2), **{**options, "epochs": None})
