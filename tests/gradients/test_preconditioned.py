"""Convolutions in other coordinates: what they compute stays, and what is clipped is the gradient of what trains."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import dptrain
from dptrain import ModelError
from dptrain.gradients import ENGINES
from dptrain.gradients.layers import conv
from dptrain.layers import PreconditionedConv2d, StandardizedConv2d

from .oracle import assert_same, clipped, of_units, one_at_a_time, projected_losses

losses = projected_losses()
FORMS = (
    {},
    {"padding": 1, "stride": 2},
    {"bias": False, "dilation": 2},
    {"padding": "same", "padding_mode": "reflect"},
)


def matrices(conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Far from orthogonal, and from symmetric."""
    generator = torch.Generator().manual_seed(3)
    made = [torch.randn(n, n, dtype=torch.float64, generator=generator) for n in (conv.out_channels, conv.in_channels)]
    return made[0] + 2 * torch.eye(len(made[0])), made[1] + 3 * torch.eye(len(made[1]))


def preconditioned(conv: nn.Conv2d) -> PreconditionedConv2d:
    return PreconditionedConv2d.from_conv(conv, *matrices(conv))


def network(**own: object) -> nn.Module:
    torch.manual_seed(0)
    last: nn.Conv2d = nn.Conv2d(4, 6, 3, **own)  # type: ignore[arg-type]
    first = preconditioned(nn.Conv2d(3, 4, 1))
    return nn.Sequential(first, nn.GroupNorm(2, 4), nn.SiLU(), preconditioned(last), nn.SiLU()).double()


def images(n: int) -> Tensor:
    return torch.randn(n, 3, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("own", FORMS)
def test_it_computes_the_same_before_in_and_after_its_coordinates(own: dict[str, object]) -> None:
    plain: nn.Conv2d = nn.Conv2d(4, 6, 3, **own).double()  # type: ignore[arg-type]
    made, x = preconditioned(plain), torch.randn(2, 4, 9, 8).double()
    assert not torch.allclose(made.weight, plain.weight, atol=0.1)
    torch.testing.assert_close(made(x), plain(x))
    with torch.no_grad():
        for p in made.parameters():
            p.add_(torch.randn_like(p))
    folded = made.folded()
    assert type(folded) is nn.Conv2d and set(folded.state_dict()) == set(plain.state_dict())
    torch.testing.assert_close(folded(x), made(x))


def test_groups_are_refused() -> None:
    depthwise = nn.Conv2d(4, 4, 3, groups=4)
    with pytest.raises(ModelError, match="4 groups"):
        PreconditionedConv2d.from_conv(depthwise, torch.eye(4), torch.eye(4))


@pytest.mark.parametrize("own", FORMS)
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


@pytest.mark.parametrize("way", [method for method in conv.METHODS if method.split()[1] in ("fold", "gram")])
def test_a_record_that_holds_no_gradient_is_in_its_coordinates_too(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv, "choose", lambda *_: way)
    net = network()
    wanted = one_at_a_time(net, losses, images(4))
    got = dptrain.clipped_gradient_sum(net, losses, images(4), 0.5)
    for name, total in clipped(wanted, 0.5).items():
        torch.testing.assert_close(got[name], total, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("frozen", ["0.weight", "3.weight", "3.bias"])
def test_one_part_that_does_not_train(frozen: str) -> None:
    net = network()
    net.get_parameter(frozen).requires_grad_(False)
    wanted = one_at_a_time(net, losses, images(3))
    for method in ENGINES:
        assert_same(dptrain.per_sample_gradients(net, losses, images(3), method), wanted, 1e-9, 1e-12)


@pytest.mark.parametrize("made", [preconditioned, StandardizedConv2d.from_conv])
def test_units_of_several_rows(made: object) -> None:
    net, of_row = network(), torch.tensor([0, 0, 0, 1, 2, 2])
    net[3] = made(nn.Conv2d(4, 6, 3)).double()  # type: ignore[operator]
    wanted = of_units(one_at_a_time(net, losses, images(6)), of_row.tolist())
    for method in ENGINES:
        got = dptrain.per_sample_gradients(net, losses, images(6), method, units=of_row)
        assert_same(got, wanted, 1e-9, 1e-12)


@pytest.mark.parametrize("method", list(ENGINES))
def test_the_clip_is_on_what_trains_and_not_on_the_filters(method: str) -> None:
    """Coordinates a hundred times as long have gradients as many times as long, while the filters' stay the same."""
    for longer in (1.0, 100.0):
        plain = nn.Conv2d(4, 6, 3)
        left, right = matrices(plain)
        net = nn.Sequential(PreconditionedConv2d.from_conv(plain, longer * left, right)).double()
        x = torch.randn(1, 4, 9, 8).double()
        got = dptrain.clipped_gradient_sum(net, losses, x, 1e-3, method)
        length = torch.cat([g.flatten() for g in got.values()]).norm()
        assert 0.99e-3 <= float(length) <= 1e-3
