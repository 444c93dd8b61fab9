"""Metrics against stock Ultralytics on a detector that has learnt something, and predictions in original pixels."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from ultralytics import YOLO
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel

from dptrain.detection.data import Augmentation, DetectionDataset, collate, load_data, to_device
from dptrain.detection.evaluate import CLASS_KEYS, KEYS, evaluate, predict
from dptrain.errors import DataError, ModelError


def dataset_of(file: Path, split: str = "val", imgsz: int = 64) -> DetectionDataset:
    return DetectionDataset(load_data(file), split, imgsz)


def fit(name: str, dataset: DetectionDataset, steps: int) -> DetectionModel:
    """A few plain steps on the very images that are evaluated: neither blind nor perfect."""
    torch.manual_seed(0)
    model = DetectionModel(name, nc=2, verbose=False)
    model.args = get_cfg()
    model.names = {0: "green", 1: "blue"}
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.3  # so few steps would leave the running statistics at their start
    batch = to_device(collate([dataset.sample(i) for i in range(len(dataset))]), "cpu")
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(steps):
        losses = model.loss(batch)[0]
        optimizer.zero_grad()
        (sum(losses.values()) if isinstance(losses, dict) else losses.sum()).backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def trained() -> dict[str, DetectionModel]:
    return {}


@pytest.fixture
def scenes(make_dataset) -> Path:
    return make_dataset(train=1, val=12, size=(50, 64))


def trained_model(trained: dict[str, DetectionModel], name: str, file: Path) -> DetectionModel:
    if name not in trained:
        trained[name] = fit(name, dataset_of(file), 20)
    return copy.deepcopy(trained[name])


@pytest.mark.parametrize(
    ("name", "end2end"), [("yolo26n.yaml", False), ("yolo26n.yaml", True), ("yolov8n.yaml", False)]
)
def test_metrics_are_those_of_stock_val(name, end2end, scenes, trained, tmp_path):
    model = trained_model(trained, name, scenes)
    if end2end:
        model.end2end = True
    ours = evaluate(model, dataset_of(scenes), batch_size=5)
    torch.save({"model": copy.deepcopy(model), "train_args": {}}, tmp_path / "w.pt")
    copied = tmp_path / "copy"  # stock val writes caches beside the labels
    shutil.copytree(scenes.parent / "images", copied / "images")
    shutil.copytree(scenes.parent / "labels", copied / "labels")
    shutil.copy(scenes, copied / "data.yaml")
    options = {"nms": False} if end2end else {}
    theirs = YOLO(tmp_path / "w.pt").val(
        data=str(copied / "data.yaml"), imgsz=64, rect=False, batch=4, plots=False, verbose=False, device="cpu",
        workers=0, project=str(tmp_path / "runs"), **options,
    )  # fmt: skip
    assert ours.values["metrics/mAP50B"] > 0.05  # it says nothing when both are 0
    assert tuple(ours.values) == KEYS
    for key, value in zip(KEYS, theirs.mean_results(), strict=True):
        assert ours.values[key] == pytest.approx(value, abs=1e-3), key
    assert list(ours.per_class) == [theirs.names[int(c)] for c in theirs.ap_class_index]
    for row, values in enumerate(ours.per_class.values()):
        assert tuple(values) == CLASS_KEYS
        assert list(values.values()) == pytest.approx(theirs.class_result(row), abs=1e-3)


def test_batch_size_and_workers_change_nothing(scenes, trained):
    model = trained_model(trained, "yolo26n.yaml", scenes)
    want = evaluate(model, dataset_of(scenes), batch_size=12).values
    assert evaluate(model, dataset_of(scenes), batch_size=1, workers=2).values == pytest.approx(want, abs=1e-6)


def test_the_model_and_the_folders_are_left_as_they_were(scenes, trained, monkeypatch, tmp_path_factory):
    model = trained_model(trained, "yolo26n.yaml", scenes).train()
    model.model[3].eval()  # a frozen layer stays frozen
    modes = [module.training for module in model.modules()]
    weights = copy.deepcopy(model.state_dict())
    empty = tmp_path_factory.mktemp("empty")
    monkeypatch.chdir(empty)
    before = sorted(scenes.parent.rglob("*"))
    torch.manual_seed(5)
    chance = torch.get_rng_state()
    evaluate(model, dataset_of(scenes), max_det=7)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())
    assert model.model[-1].max_det == 300 and torch.equal(chance, torch.get_rng_state())
    assert sorted(scenes.parent.rglob("*")) == before and not list(empty.iterdir())
    dataset = dataset_of(scenes)
    batch = to_device(collate([dataset.sample(i) for i in range(len(dataset))]), "cpu")  # of the shape just evaluated
    losses = model.loss(batch)[0]  # gradients still flow after an evaluation
    (sum(losses.values()) if isinstance(losses, dict) else losses.sum()).backward()
    model.eval()(batch["img"])[0].sum().backward()  # through the anchors that the evaluation left in the head


def test_modes_come_back_after_an_error_too(scenes, trained):
    model = trained_model(trained, "yolo26n.yaml", scenes).train()
    dataset = dataset_of(scenes)
    dataset.image_files[7].write_bytes(b"")
    with pytest.raises(DataError, match=r"007\.png"):
        evaluate(model, dataset, batch_size=2)
    assert model.training and model.model[-1].max_det == 300


def test_a_split_without_boxes_and_a_blind_model(make_dataset):
    file = make_dataset(train=1, val=1)
    torch.manual_seed(0)
    model = DetectionModel("yolov8n.yaml", nc=2, verbose=False).eval()
    metrics = evaluate(model, dataset_of(file))
    assert set(metrics.values.values()) == {0.0} and metrics.per_class == {}
    file.with_name("labels").joinpath("val", "000.txt").write_text("1 .5 .5 .3 .3")
    metrics = evaluate(model, dataset_of(file), conf=0.999)  # no prediction at all
    assert metrics.values["metrics/mAP50B"] == 0 and list(metrics.per_class) == ["blue"]
    for parameter in model.parameters():
        parameter.data.fill_(float("nan"))  # a run that diverged
    assert evaluate(model, dataset_of(file)).values["metrics/mAP50B"] == 0


def test_what_cannot_be_evaluated(scenes, trained):
    model = trained_model(trained, "yolo26n.yaml", scenes)
    data = load_data(scenes)
    with pytest.raises(DataError, match="augmentation"):
        evaluate(model, DetectionDataset(data, "val", 64, Augmentation(fliplr=0.5)))
    three = replace(data, names={0: "a", 1: "b", 2: "c"})
    with pytest.raises(ModelError, match=r"2 classes.*names 3"):
        evaluate(model, DetectionDataset(three, "val", 64))


def test_predictions_are_in_original_pixels(scenes, trained):
    """Canvas and image differ in size here: boxes must land on the squares of the larger image."""
    model = trained_model(trained, "yolov8n.yaml", scenes)
    dataset = dataset_of(scenes)
    small = predict(model, dataset.image_files, 64, conf=0.01, batch_size=5)
    assert len(small) == 12 and all(boxes.shape[1] == 6 and boxes.dtype == np.float32 for boxes in small)
    assert sum(map(len, small)) > 5
    for path in dataset.image_files:
        picture = cv2.imread(str(path))
        cv2.imwrite(str(path), cv2.resize(picture, None, fx=4, fy=4, interpolation=cv2.INTER_NEAREST))
    large = predict(model, [str(path) for path in dataset.image_files], 64, conf=0.05)
    best = [(a[0], b[0]) for a, b in zip(small, large, strict=True) if len(a) and len(b) and a[0, 4] > 0.2]
    assert best
    for a, b in best:
        np.testing.assert_allclose(b[:4] / 4, a[:4], atol=4)
    for boxes in large:
        assert (boxes[:, :4] >= 0).all() and (boxes[:, [0, 2]] <= 256).all() and (boxes[:, [1, 3]] <= 200).all()
        assert (np.diff(boxes[:, 4]) <= 0).all()
    assert predict(model, [], 64) == []
