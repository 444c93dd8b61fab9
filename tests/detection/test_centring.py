"""Convolutions that train as if the usual mean of their input were zero."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from ultralytics import YOLO

import dptrain
from dptrain.detection import load_model, per_image_losses, save_weights
from dptrain.detection.centring import centre_inputs, usual_inputs
from dptrain.gradients.modules import CentredConv2d

from ..detectors import FAMILIES, random_batch, stock_detector, write_checkpoint

NAMES = ("ant", "bee", "cow")


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(stock_detector(request.param, NAMES), tmp_path_factory.mktemp("start") / "start.pt")


def centred_layers(model: nn.Module) -> dict[str, CentredConv2d]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, CentredConv2d)}


def test_nothing_of_what_a_detector_computes_changes(checkpoint: Path) -> None:
    model = load_model(checkpoint, trainable="neck_and_head")
    batch = random_batch([2, 1])
    before, state = per_image_losses(model, batch), model.state_dict()
    names = [name for name, _ in model.named_parameters()]
    centre_inputs(model)
    assert torch.equal(per_image_losses(model, batch), before)
    assert [name for name, _ in model.named_parameters()] == names
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in state.items())
    layers = centred_layers(model)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.weight.requires_grad]
    assert len(layers) == len(convolutions) > 30
    assert all(int(name.split(".")[1]) >= len(model.yaml["backbone"]) for name in layers)


def test_the_means_are_those_of_the_images_of_its_training(tmp_path: Path) -> None:
    """Its norms keep what those images gave; the means that other images give without them are nearly the same."""
    stock = stock_detector("yolov8n", NAMES)
    for module in stock.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    batch = random_batch([1] * 8, 128, seed=5)
    with torch.no_grad():
        stock.train()(batch["img"])
    model = load_model(write_checkpoint(stock, tmp_path / "start.pt"))
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.weight.requires_grad]
    found: dict[nn.Module, torch.Tensor] = {}
    hooks = [m.register_forward_hook(lambda m, i, o: found.__setitem__(m, i[0].detach())) for m in convolutions]
    per_image_losses(model, batch)
    for hook in hooks:
        hook.remove()
    means = [found[m].mean((0, 2, 3)) for m in convolutions]
    usual = usual_inputs(model, convolutions)
    before = sum(float(mean.square().sum()) for mean in means)
    left = sum(float((mean - other).square().sum()) for mean, other in zip(means, usual, strict=True))
    assert left < 0.1 * before, left / before


def test_the_weights_that_are_released_are_stock(checkpoint: Path, tmp_path: Path) -> None:
    model = load_model(checkpoint)
    names = set(copy.deepcopy(model).state_dict())
    centre_inputs(model)
    with torch.no_grad():
        for number, p in enumerate(p for p in model.parameters() if p.requires_grad):
            p += 0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(number))
    stock = YOLO(save_weights(model, tmp_path / "ours.pt")).model
    plain = load_model(checkpoint)
    assert {name for name in stock.state_dict() if "num_batches" not in name} == names
    x = random_batch([1, 1])["img"]
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(stock.eval()(x)[0], model(x)[0], rtol=1e-3, atol=1e-3)
        assert not torch.allclose(plain.eval()(x)[0], model(x)[0], rtol=1e-3, atol=1e-3)


def test_what_has_no_place_for_a_shift_stays() -> None:
    model = load_model("yolo26n.yaml", 3)  # group norms
    centre_inputs(model)
    assert all(layer.bias is not None for layer in centred_layers(model).values())
    gradients = dptrain.per_sample_gradients(model, per_image_losses, random_batch([1]))
    assert all(bool(torch.isfinite(g).all()) for g in gradients.values())


def test_the_means_are_of_the_weights_alone(checkpoint: Path) -> None:
    model = load_model(checkpoint)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    torch.manual_seed(1)
    first = usual_inputs(model, convolutions)
    state = torch.get_rng_state()
    second = usual_inputs(model, convolutions)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(torch.get_rng_state(), state), "the run's random numbers stay as they are"
    assert all("forward" not in m.__dict__ or type(m).__name__ == "Conv" for m in model.modules())
