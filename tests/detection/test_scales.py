"""The scales of layers: what they are made from, and that they bring the layers' gradients level."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import dptrain
from dptrain import Clipping, DataError
from dptrain.detection import load_model
from dptrain.detection.data import DetectionDataset, load_data
from dptrain.detection.loader import collate, to_device
from dptrain.detection.loss import PerImageLoss
from dptrain.detection.scales import IMAGES, layer_scales, public_part
from dptrain.detection.trainable import set_trainable
from dptrain.gradients import trainable_parameters
from dptrain.privacy.clip_rules import ScaledClip

from ..conftest import MakeDataset


@pytest.fixture
def images(make_dataset: Callable[..., Path]) -> DetectionDataset:
    return DetectionDataset(load_data(make_dataset(train=8)), "train", 64)


@pytest.mark.parametrize("name", ["yolov8n.yaml", "yolo11n.yaml", "yolo26n.yaml"])
def test_scaled_gradients_are_of_a_size_and_of_the_length_that_they_had(name: str, images: DetectionDataset) -> None:
    torch.manual_seed(0)
    model, loss = load_model(name, 2), PerImageLoss()
    scales = dict(layer_scales(model, loss, images))
    assert set(scales) == {of(name) for name in trainable_parameters(model)}
    assert all(math.log2(scale).is_integer() for scale in scales.values())
    assert max(scales.values()) / min(scales.values()) <= 200

    batch = to_device(collate([images.sample(index) for index in range(8)]), "cpu")
    gradients = dptrain.per_sample_gradients(model, loss, batch)
    lengths = {False: length(gradients, {}), True: length(gradients, scales)}
    gradients = {name: rows / lengths[False].view(-1, *[1] * (rows.dim() - 1)) for name, rows in gradients.items()}
    before, after = sizes(gradients, {}), sizes(gradients, scales)
    alive = before > before.max() / 90
    assert float(after[alive].max() / after[alive].min()) < 2.1, "powers of two: each is off by a root of two at most"
    assert float(before[alive].max() / before[alive].min()) > 8
    assert float((lengths[True] / lengths[False]).square().mean().sqrt()) == pytest.approx(1.0, abs=0.3)


def of(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def length(gradients: dict[str, Tensor], scales: dict[str, float]) -> Tensor:
    """The norm of every image's scaled gradient."""
    squares = [scales.get(of(name), 1.0) ** 2 * g.flatten(1).square().sum(1) for name, g in gradients.items()]
    return torch.stack(squares).sum(0).sqrt()


def sizes(gradients: dict[str, Tensor], scales: dict[str, float]) -> Tensor:
    """The typical entry of every layer's scaled gradient."""
    entries: dict[str, list[Tensor]] = {}
    for name, rows in gradients.items():
        entries.setdefault(of(name), []).append(rows.flatten())
    return torch.stack(
        [scales.get(layer, 1.0) * torch.cat(parts).square().mean().sqrt() for layer, parts in entries.items()]
    )


def test_the_same_weights_and_images_give_the_same_scales_and_are_left_alone(images: DetectionDataset) -> None:
    model, loss = load_model("yolo26n.yaml", 2), PerImageLoss()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert layer_scales(model, loss, images) == layer_scales(model, loss, images)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_only_layers_that_train_have_one_and_the_rule_takes_them(images: DetectionDataset) -> None:
    model = load_model("yolo26n.yaml", 2)
    set_trainable(model, "norm_and_bias")
    scales = layer_scales(model, PerImageLoss(), images)
    parameters = trainable_parameters(model)
    assert {name for name, _ in scales} == {of(name) for name in parameters}
    rule = Clipping("scaled", scales=scales).rule(1.0, parameters)
    assert isinstance(rule, ScaledClip)
    assert {of(name): rule.scales[group] for name, group in rule.groups.items()} == dict(scales)


def test_images_that_tell_nothing_are_refused(images: DetectionDataset) -> None:
    model = load_model("yolo26n.yaml", 2)
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    with pytest.raises(DataError, match=r"none of the 8 public images of privacy\.clip_scales"):
        layer_scales(model, PerImageLoss(), images)


def test_the_images_are_spread_over_all_that_there_are(make_dataset: MakeDataset) -> None:
    file = make_dataset(train=140, val=1)
    private = replace(load_data(file), train=[], val=[])
    names = [path.stem for path in public_part(str(file), private).train]
    assert len(names) == IMAGES == 64 and names[:2] == ["000", "002"] and names[-1] == "126"
