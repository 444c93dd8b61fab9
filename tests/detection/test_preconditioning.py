"""Coordinates of a detector's filters: what they are made from, and that the detector stays what it was."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from dptrain import ConfigError, DataError
from dptrain.detection import load_model
from dptrain.detection.data import DetectionDataset, load_data
from dptrain.detection.loader import collate, to_device
from dptrain.detection.loss import PerImageLoss
from dptrain.detection.model import stock_copy
from dptrain.detection.preconditioning import as_preconditioned, convolutions, precondition
from dptrain.gradients import trainable_parameters
from dptrain.layers import PreconditionedConv2d

from ..conftest import dataset_maker


@pytest.fixture
def images(make_dataset: Callable[..., Path]) -> DetectionDataset:
    return DetectionDataset(load_data(make_dataset(train=8)), "train", 64)


def preconditioned(images: DetectionDataset, trainable: str = "all") -> tuple[nn.Module, nn.Module]:
    """The detector as it was loaded, and in coordinates of the images."""
    torch.manual_seed(0)
    model = load_model("yolo26n.yaml", 2, trainable=trainable)
    before = stock_copy(model)
    precondition(model, PerImageLoss(), images)
    return before, model


def test_the_detector_computes_what_it_did_and_is_saved_as_a_stock_one(images: DetectionDataset) -> None:
    before, model = preconditioned(images)
    after = stock_copy(model)
    assert {type(module) for module in after.modules()} == {type(module) for module in before.modules()}
    assert after.state_dict().keys() == before.state_dict().keys()
    x = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(after(x)[0], before(x)[0], rtol=1e-3, atol=1e-3)
    for name, tensor in after.state_dict().items():
        torch.testing.assert_close(tensor, before.state_dict()[name], rtol=1e-4, atol=1e-5)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_same_weights_and_images_give_the_same_coordinates_and_others_give_others(
    images: DetectionDataset, tmp_path: Path
) -> None:
    one, again = (preconditioned(images)[1].state_dict() for _ in range(2))
    assert all(torch.equal(tensor, again[name]) for name, tensor in one.items())
    fewer = DetectionDataset(load_data(dataset_maker(tmp_path / "fewer")(train=4)), "train", 64)
    other = preconditioned(fewer)[1].state_dict()
    assert any(name.endswith(".left") and not torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_only_plain_convolutions_that_train_are_replaced(images: DetectionDataset) -> None:
    before, model = preconditioned(images, "neck_and_head")
    chosen = {name for name, module in model.named_modules() if isinstance(module, PreconditionedConv2d)}
    index = len(before.yaml["backbone"])  # type: ignore[arg-type]
    assert chosen and all(int(name.split(".")[1]) >= index for name in chosen)
    left = [m for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and name not in chosen]
    assert any(module.groups > 1 and module.weight.requires_grad for module in left)
    assert all(module.bias is not None for module in left if module.groups == 1 and module.weight.requires_grad)
    wanted = {name for name, p in load_model("yolo26n.yaml", 2, trainable="neck_and_head").named_parameters()
              if p.requires_grad}  # fmt: skip
    assert set(trainable_parameters(model)) == wanted


def test_directions_come_nearer_to_one_length(images: DetectionDataset) -> None:
    """The gradient's second moment over the input channels, of one layer: its largest eigenvalue against the mean."""

    def spread(model: nn.Module, name: str) -> float:
        loss, moment = PerImageLoss(), 0.0
        for index in range(len(images)):
            model.zero_grad()
            loss(model, to_device(collate([images.sample(index)]), "cpu")).sum().backward()
            rows = model.get_parameter(f"{name}.weight").grad.double().transpose(0, 1).flatten(1)  # type: ignore[union-attr]
            moment = moment + rows @ rows.t()
        values = torch.linalg.eigvalsh(torch.as_tensor(moment))
        return float(values[-1] / values.mean())

    torch.manual_seed(0)
    plain = load_model("yolo26n.yaml", 2)
    made = preconditioned(images)[1]
    ratios = [spread(made, name) / spread(plain, name) for name in list(convolutions(plain))[1:40:4]]
    assert sum(ratio < 1.0 for ratio in ratios) > 0.8 * len(ratios)


def test_layers_for_saved_coordinates_take_them(images: DetectionDataset) -> None:
    _, model = preconditioned(images)
    empty = load_model("yolo26n.yaml", 2)
    as_preconditioned(empty)
    empty.load_state_dict(model.state_dict())
    x = torch.rand(2, 3, 64, 64)
    assert torch.equal(stock_copy(empty)(x)[0], stock_copy(model)(x)[0])


def test_an_image_without_finite_gradients_has_no_part_in_them(make_dataset: Callable[..., Path]) -> None:
    data, fewer = load_data(make_dataset(train=5)), 4

    class Breaks(PerImageLoss):
        """Not a number from some image on."""

        def __init__(self, first: int) -> None:
            super().__init__()
            self.left = first

        def __call__(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            self.left -= 1
            return super().__call__(model, batch) * (1.0 if self.left >= 0 else math.nan)

    def coordinates(loss: PerImageLoss, images: DetectionDataset) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = load_model("yolo26n.yaml", 2)
        precondition(model, loss, images)
        return model.state_dict()

    images = DetectionDataset(data, "train", 64)
    wanted = coordinates(PerImageLoss(), DetectionDataset(replace(data, train=data.train[:fewer]), "train", 64))
    found = coordinates(Breaks(fewer), images)
    assert all(torch.equal(tensor, found[name]) for name, tensor in wanted.items())
    with pytest.raises(DataError, match=r"none of the 5 public images of privacy\.clip_scales has finite gradients"):
        coordinates(Breaks(0), images)


@pytest.mark.parametrize(("trainable", "norm"), [("norm_and_bias", "group"), ("norm_and_bias", "group_ws")])
def test_a_detector_without_such_a_convolution_is_refused(images: DetectionDataset, trainable: str, norm: str) -> None:
    model = load_model("yolo26n.yaml", 2, trainable=trainable, norm=norm)
    with pytest.raises(ConfigError, match="no plain convolution trains"):
        precondition(model, PerImageLoss(), images)
