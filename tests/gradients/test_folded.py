"""A convolution and its frozen norm, run as one: the gradients of both are those of plain autograd, image by image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dptrain
from dptrain.detection import load_model, per_image_losses
from dptrain.errors import ModelError
from dptrain.gradients import fused
from dptrain.gradients.modules import CentredConv2d, FrozenBatchNorm2d
from dptrain.gradients.rules import conv, folded, register_pair
from dptrain.gradients.units import Units

from ..detectors import FAMILIES, random_batch, stock_detector, write_checkpoint
from .oracle import assert_same, clipped, of_units, one_at_a_time, projected_losses

losses = projected_losses()


class Pair(nn.Module):
    """As Ultralytics' Conv: a convolution, its norm, an activation in place."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.conv, self.bn, self.act = layer, statistics(FrozenBatchNorm2d(layer.out_channels)), nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small maps are folded too; the pair is known for the time of a test."""
    monkeypatch.setattr(folded, "_PAIRS", dict(folded._PAIRS))
    register_pair(Pair, "conv", "bn")
    with monkeypatch.context() as patch:
        patch.setattr(folded, "_pays", lambda layer, x: True)
        yield


def statistics(norm: FrozenBatchNorm2d) -> FrozenBatchNorm2d:
    c = norm.num_features
    norm.running_mean.copy_(torch.linspace(-1, 2, c))
    norm.running_var.copy_(torch.linspace(0.2, 3, c))
    with torch.no_grad():  # a scale may be negative, or zero
        norm.weight.copy_(torch.linspace(-1, 1.5, c))
        norm.weight[c // 2] = 0.0
        norm.bias.copy_(torch.linspace(0.5, -0.5, c))
    return norm


def data(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.5


def convolution(**changes: Any) -> nn.Conv2d:
    torch.manual_seed(1)
    given = {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "padding": 1, "bias": False, **changes}
    return nn.Conv2d(**given)


def centred(layer: nn.Conv2d) -> CentredConv2d:
    made = CentredConv2d.of(layer, torch.linspace(-1, 2, layer.in_channels))
    with torch.no_grad():
        made.weight += 0.1  # as after some steps, so that there is a shift
    return made


DENSE = ("held fold", "held unfold", "held loop", "booked fold", "booked unfold", "booked gram", None)
POINTWISE = ("held fold", "held bmm", "held loop", "booked bmm", "booked gram", None)
GROUPED = ("held fold", "held loop", "booked fold", "booked loop", None)
SHAPES: list[tuple[dict[str, Any], tuple[str | None, ...]]] = [
    ({}, DENSE),
    ({"kernel_size": 1, "padding": 0}, POINTWISE),
    ({"stride": 2, "dilation": 2}, DENSE),
    ({"groups": 2}, GROUPED),
    ({"groups": 4, "out_channels": 8}, GROUPED),
]


@pytest.mark.parametrize("centres", [False, True])
@pytest.mark.parametrize(("changes", "method"), [(changes, way) for changes, ways in SHAPES for way in ways])
def test_the_gradients_are_those_of_autograd(
    changes: dict[str, Any], method: str | None, centres: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = convolution(**changes)
    module = nn.Sequential(Pair(centred(layer) if centres else layer), nn.Conv2d(layer.out_channels, 2, 1)).double()
    if method is not None:
        monkeypatch.setattr(folded, "method_for", lambda *of: method)
    x = data(3, 4, 7, 6)
    expected = one_at_a_time(module, losses, x)
    assert_same(dptrain.per_sample_gradients(module, losses, x), expected, 1e-9)
    total = dptrain.clipped_gradient_sum(module, losses, x, clip_norm=0.5)
    for name, want in clipped(expected, 0.5).items():
        torch.testing.assert_close(total[name], want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("way", ["product", "convolution"])
def test_a_pointwise_layer_before_an_activation_in_place(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv, "_multiplies", lambda direction, geometry, *of: geometry.pointwise and way == "product")
    module = nn.Sequential(Pair(convolution(kernel_size=1, padding=0)), Pair(convolution(in_channels=6))).double()
    x = data(3, 4, 7, 6)
    assert_same(dptrain.per_sample_gradients(module, losses, x), one_at_a_time(module, losses, x), 1e-9, 1e-12)


@pytest.mark.parametrize("frozen", ["conv.weight", "bn.weight", "bn.bias", "bn.", "conv.", ""])
def test_any_part_may_be_frozen(frozen: str) -> None:
    module = nn.Sequential(nn.Conv2d(4, 4, 1), Pair(convolution()), Pair(convolution(in_channels=6))).double()
    for name, p in module.named_parameters():
        p.requires_grad_(not name.startswith(f"1.{frozen}"))
    x = data(3, 4, 5, 5)
    assert_same(dptrain.per_sample_gradients(module, losses, x), one_at_a_time(module, losses, x), 1e-9, 1e-12)


@pytest.mark.parametrize("centres", [False, True])
@pytest.mark.parametrize("method", ["held fold", "held unfold", "booked fold", "booked gram"])
def test_units_of_several_images(centres: bool, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folded, "method_for", lambda *of: method)
    layer = convolution()
    module, x, units = Pair(centred(layer) if centres else layer).double(), data(5, 4, 6, 6), [0, 1, 1, 1, 2]
    expected = of_units(one_at_a_time(module, losses, x), units)
    got = fused.per_sample_gradients(module, losses, x, Units(torch.tensor(units)))
    assert_same(got, expected, 1e-9)


def test_a_layer_used_twice_and_one_without_gradient_below() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.pair = nn.Conv2d(4, 4, 1), Pair(convolution(out_channels=4))

        def forward(self, x: Tensor) -> Tensor:
            return self.pair(self.pair(self.first(x).detach())) + self.first(x)

    module, x = Twice().double(), data(3, 4, 5, 5)
    assert_same(dptrain.per_sample_gradients(module, losses, x), one_at_a_time(module, losses, x), 1e-9, 1e-12)


def test_a_norm_that_is_given_something_else_is_refused() -> None:
    class Other(Pair):
        def forward(self, x: Tensor) -> Tensor:
            return self.bn(F.relu(self.conv(x)))

    register_pair(Other, "conv", "bn")
    with pytest.raises(ModelError, match="another input"):
        dptrain.per_sample_gradients(Other(convolution()), losses, data(2, 4, 5, 5).float())


def test_a_hook_sees_what_it_always_saw() -> None:
    module, x, seen = Pair(convolution()).double(), data(2, 4, 5, 5), []
    module.conv.register_forward_hook(lambda layer, given, out: seen.append(out.detach().clone()))
    dptrain.per_sample_gradients(module, losses, x)
    torch.testing.assert_close(seen[0], F.conv2d(x, module.conv.weight, padding=1))


def test_everything_is_as_before_after_the_pass() -> None:
    module, x = Pair(convolution()).double(), data(2, 4, 5, 5)
    before = module(x)
    dptrain.per_sample_gradients(module, losses, x)
    assert all("forward" not in layer.__dict__ for layer in module.modules())
    assert torch.equal(module(x), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_detectors_fold_most_of_their_convolutions(family: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[nn.Module] = []
    made = folded.folded_records

    def noted(layer: nn.Conv2d, *rest: Any) -> Any:
        calls.append(layer)
        return made(layer, *rest)

    monkeypatch.setattr(folded, "folded_records", noted)
    module = load_model(write_checkpoint(stock_detector(family, "abc"), tmp_path / "start.pt"))
    dptrain.clipped_gradient_sum(module, per_image_losses, random_batch([2, 0]), clip_norm=1.0)
    norms = sum(isinstance(layer, FrozenBatchNorm2d) for layer in module.modules())
    assert len(calls) > 0.9 * norms > 40
