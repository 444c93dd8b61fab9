"""Filters that are a function of the trained weight: exact per-example gradients, and a clip that still bounds them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import dptrain
from dptrain.gradients import ENGINES
from dptrain.gradients.layers import conv
from dptrain.layers import StandardizedConv2d

from .oracle import assert_same, clipped, of_units, one_at_a_time, projected_losses

losses = projected_losses()


def network(**own: object) -> nn.Module:
    torch.manual_seed(0)
    convolution: nn.Conv2d = nn.Conv2d(4, 6, 3, **own)  # type: ignore[arg-type]
    first = StandardizedConv2d.from_conv(nn.Conv2d(3, 4, 1, bias=False))
    net = nn.Sequential(first, nn.GroupNorm(2, 4), nn.SiLU(), StandardizedConv2d.from_conv(convolution), nn.SiLU())
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(0.7).add_(0.2 * torch.randn_like(p))  # no longer standardised as they are
    return net.double()


def images(n: int) -> Tensor:
    return torch.randn(n, 3, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("own", [
    {}, {"padding": 1, "stride": 2}, {"groups": 2, "bias": False}, {"padding": (1, 2), "dilation": 2},
    {"padding": "same", "padding_mode": "reflect"},
])  # fmt: skip
def test_every_engine_agrees_with_plain_autograd(own: dict[str, object]) -> None:
    net = network(**own)
    for n in (0, 1, 5):
        wanted = one_at_a_time(net, losses, images(n))
        for method in ENGINES:
            if method == "opacus" and "padding_mode" in own:
                continue  # Opacus has no right rule for it, and is refused
            assert_same(dptrain.per_sample_gradients(net, losses, images(n), method), wanted, 1e-9, 1e-12)
            got = dptrain.clipped_gradient_sum(net, losses, images(n), 0.5, method)
            for name, total in clipped(wanted, 0.5).items():
                torch.testing.assert_close(got[name], total, rtol=1e-3, atol=1e-5)


def test_units_of_several_rows() -> None:
    net, of_row = network(padding=1), torch.tensor([0, 0, 0, 1, 2, 2])
    wanted = of_units(one_at_a_time(net, losses, images(6)), of_row.tolist())
    for method in ENGINES:
        got = dptrain.per_sample_gradients(net, losses, images(6), method, units=of_row)
        assert_same(got, wanted, 1e-9, 1e-12)
        sums = dptrain.clipped_gradient_sum(net, losses, images(6), 0.5, method, units=of_row)
        for name, total in clipped(wanted, 0.5).items():
            torch.testing.assert_close(sums[name], total, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("way", [method for method in conv.METHODS if method.split()[1] in ("fold", "gram")])
def test_a_record_that_holds_no_gradient_is_pulled_back_too(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv, "choose", lambda *_: way)
    net = network()
    wanted = one_at_a_time(net, losses, images(4))
    got = dptrain.clipped_gradient_sum(net, losses, images(4), 0.5)
    for name, total in clipped(wanted, 0.5).items():
        torch.testing.assert_close(got[name], total, rtol=1e-3, atol=1e-5)


def test_one_weight_that_trains_or_not() -> None:
    for frozen in ("0.weight", "3.weight", "3.bias"):
        net = network()
        net.get_parameter(frozen).requires_grad_(False)
        wanted = one_at_a_time(net, losses, images(3))
        for method in ENGINES:
            assert_same(dptrain.per_sample_gradients(net, losses, images(3), method), wanted, 1e-9, 1e-12)


@pytest.mark.parametrize("method", ["fused", "microbatch"])  # Opacus refuses: its sums no longer add up
def test_a_gradient_that_nearly_cancels_is_clipped_too(method: str) -> None:
    """Almost all of it points along the filter or shifts its mean, where the weight cannot go."""
    layer = StandardizedConv2d.from_conv(nn.Conv2d(64, 8, 3, bias=False))
    filters = layer.filters().detach()

    def loss(module: nn.Module, x: Tensor) -> Tensor:
        return 1e7 * (module(x) * filters[:, :, 1, 1].sum()).sum((1, 2, 3))

    for fill in (filters[0], torch.ones_like(filters[0])):
        x = fill.repeat(1, 1, 4, 4).reshape(1, 64, 12, 12)
        got = dptrain.clipped_gradient_sum(layer, loss, x, 1.0, method)
        assert float(got["weight"].double().norm()) <= 1.0


def test_the_clip_is_on_the_trained_weight_and_not_on_the_filters() -> None:
    """A weight a tenth as long has a gradient ten times as long, while that of its filters stays the same."""
    for shrink in (1.0, 0.1):
        net = network()
        with torch.no_grad():
            net[3].weight.mul_(shrink)
        got = dptrain.clipped_gradient_sum(net, losses, images(1), 1e-3)
        length = torch.cat([g.flatten() for g in got.values()]).norm()
        assert 0.99e-3 <= float(length) <= 1e-3


def test_folded_filters_compute_the_same_and_stay_as_they_are_when_taken_up_again() -> None:
    own = StandardizedConv2d.from_conv(nn.Conv2d(4, 6, 3, padding=1, stride=2))
    with torch.no_grad():
        own.weight.add_(torch.randn_like(own.weight))
    plain, x = own.folded(), torch.randn(2, 4, 9, 9)
    assert type(plain) is nn.Conv2d
    torch.testing.assert_close(plain(x), own(x))
    torch.testing.assert_close(StandardizedConv2d.from_conv(plain).filters(), own.filters(), rtol=1e-5, atol=1e-6)
    filters = plain.weight.detach()
    assert float(filters.mean((1, 2, 3)).abs().max()) < 1e-6
    torch.testing.assert_close(filters.flatten(1).norm(dim=1), torch.ones(6), rtol=1e-4, atol=1e-5)
