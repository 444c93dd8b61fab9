"""Every layer rule against plain autograd in double precision, one example at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import dptrain
from dptrain.gradients import autotune, trainable_parameters
from dptrain.gradients.fused import run
from dptrain.gradients.modules import CentredConv2d, FrozenBatchNorm2d
from dptrain.gradients.rules import conv, linear
from dptrain.gradients.rules.base import Tape, squared_norm
from dptrain.gradients.units import Units

from .oracle import assert_same, clipped, of_units, one_at_a_time, projected_losses, squared_norms

RELATIVE, FLOOR = 1e-9, 1e-11
FEW = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def check(module: nn.Module, x: Tensor, losses: Callable[[nn.Module, Tensor], Tensor] | None = None) -> None:
    """The fused engine's gradients, norms and clipped sums are the oracle's, of examples and of units of several."""
    losses = losses or projected_losses()
    module = module.double()
    with torch.no_grad():
        for number, p in enumerate(module.parameters()):
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(number)) * 0.5 + 0.1)
    of_rows = one_at_a_time(module, losses, x)
    for units in (None, uneven(len(x)), even(len(x))):
        wanted = of_rows if units is None else of_units(of_rows, units.tolist())
        assert_same(dptrain.per_sample_gradients(module, losses, x, units=units), wanted, RELATIVE, FLOOR)

        own = None if units is None else Units(units)
        n, records = run(module, losses, x, trainable_parameters(module), clips=True, units=own)
        assert n == (len(x) if units is None else int(units[-1]) + 1)
        norms = sum(record.squared_norms() for record in records.values())
        # The examples of a unit can cancel, so the scale of its norm is theirs.
        rounding = 1e-12 * float(squared_norms(of_rows).max())
        torch.testing.assert_close(norms, squared_norms(wanted), rtol=1e-9, atol=rounding)
        largest = float(squared_norms(wanted).max().sqrt())
        for clip_norm in (0.37 * largest, 1e9) if largest else (1e9,):
            got = dptrain.clipped_gradient_sum(module, losses, x, clip_norm, units=units)
            # The examples' gradients can cancel in the sum, so its scale is theirs.
            torch.testing.assert_close(got, clipped(wanted, clip_norm), rtol=0, atol=1e-5 * min(largest, clip_norm) * n)


def uneven(count: int) -> Tensor:
    """Units of 1, 3, 2 and again 1, 3, 2, ... examples."""
    return torch.tensor([0, 1, 1, 1, 2, 2]).repeat(count // 6 + 1)[:count] + torch.arange(count) // 6 * 3


def even(count: int) -> Tensor:
    """Units of two examples, or of three, or one of all."""
    return torch.arange(count) // next(size for size in (2, 3, max(count, 1)) if count % size == 0)


def freeze(module: nn.Module, which: str) -> nn.Module:
    if which != "nothing":
        getattr(module, which).requires_grad_(False)
    return module


def data(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class OnTop(nn.Module):
    """A layer with another before it, so that it must hand a gradient on."""

    def __init__(self, first: nn.Module, layer: nn.Module) -> None:
        super().__init__()
        self.first, self.layer = first, layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.first(x))


# --- convolutions ----------------------------------------------------------------------------------------------------


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[dict[str, Any], tuple[int, int], int, str]:
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    depthwise = draw(st.booleans()) and groups > 1
    per_group = 1 if depthwise else draw(st.integers(1, 3))
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "circular", "replicate"]))
    same = draw(st.booleans())
    padding: Any = "same" if same else draw(st.tuples(st.integers(0, 2), st.integers(0, 3)))
    options = {
        "in_channels": groups * per_group,
        "out_channels": groups * draw(st.integers(1, 3)),
        "kernel_size": kernel,
        "groups": groups,
        "dilation": dilation,
        "stride": 1 if same else draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        "padding": padding,
        "padding_mode": mode,
        "bias": draw(st.booleans()),
    }
    frozen = draw(st.sampled_from(["nothing", "nothing", "weight", "bias"]))
    if not options["bias"]:
        frozen = "nothing"
    return options, draw(st.tuples(st.integers(7, 10), st.integers(7, 11))), draw(st.integers(1, 4)), frozen


@FEW
@given(case=convolutions())
def test_conv2d(case: tuple[dict[str, Any], tuple[int, int], int, str]) -> None:
    options, size, n, frozen = case
    check(freeze(nn.Conv2d(**options), frozen), data(n, options["in_channels"], *size))


DENSE = (
    {"kernel_size": 1},
    {"kernel_size": 1, "padding": 1},
    {"kernel_size": 1, "stride": 2},
    {"kernel_size": 3, "padding": 1, "stride": 2, "dilation": 2},
    {"kernel_size": (3, 2), "stride": (1, 2), "padding": (0, 2), "dilation": (2, 1)},
    {"kernel_size": (2, 4), "padding": "same"},
    {"kernel_size": (2, 4), "padding": "valid"},
    {"kernel_size": 3, "padding": (2, 1), "padding_mode": "reflect"},
    {"kernel_size": (4, 3), "padding": "same", "padding_mode": "circular", "dilation": (1, 2)},
)
GROUPED = (
    {"kernel_size": 3, "padding": 1, "groups": 2},
    {"kernel_size": 3, "padding": 1, "groups": 4},
    {"kernel_size": (3, 2), "padding": "same", "groups": 2, "padding_mode": "replicate"},
)


def ways() -> Iterator[Any]:
    """Every way that exists for a layer: ``bmm`` is for 1 x 1, and only one group has an unfolded input."""
    for options in (*DENSE, *GROUPED):
        for method in conv.METHODS:
            form = method.split()[1]
            pointwise = options == {"kernel_size": 1}
            if form in ("fold", "loop") or ("groups" not in options and (form != "bmm" or pointwise)):
                yield pytest.param(options, method, id=f"{method} {options}")


def centred(bias: bool, **options: Any) -> CentredConv2d:
    torch.manual_seed(0)
    return CentredConv2d.of(nn.Conv2d(4, 8, bias=bias, **options).double(), data(4, seed=3))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("options", [*DENSE, *GROUPED], ids=str)
def test_centred_convolutions(options: dict[str, Any], bias: bool) -> None:
    x = data(5, 4, 9, 10)
    for module in (centred(bias, **options), OnTop(nn.Conv2d(4, 4, 1), centred(bias, **options))):
        check(module, x)
        losses, parameters = projected_losses(), trainable_parameters(module)
        wanted = dptrain.per_sample_gradients(module, losses, x, engine="microbatch")
        assert_same(dptrain.per_sample_gradients(module, losses, x, engine="opacus"), wanted, RELATIVE, FLOOR)
        assert set(wanted) == set(parameters)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("options", [*DENSE, *GROUPED], ids=str)
def test_what_a_centred_convolution_is(options: dict[str, Any], bias: bool) -> None:
    """The plain one at first; its weight's gradient is that of an input without its mean; folded, a plain one again."""
    x, plain = data(5, 4, 9, 10), nn.Conv2d(4, 8, bias=bias, **options).double()
    module = CentredConv2d.of(plain, data(4, seed=3))
    before = plain(x)
    assert torch.equal(module(x), before) and module.weight is plain.weight
    (got,) = torch.autograd.grad(module(x).square().sum(), module.weight)
    bare = copy.copy(plain)
    bare.padding, bare.padding_mode = (0, 0), "zeros"
    away = bare(module.centred(x))
    (wanted,) = torch.autograd.grad(away, plain.weight, 2 * before.detach())
    torch.testing.assert_close(got, wanted)
    with torch.no_grad():
        module.weight += data(*module.weight.shape, seed=4)
    folded, shift = module.folded()
    assert type(folded) is nn.Conv2d and not dict(folded.named_buffers()) and (folded.bias is None) == (not bias)
    torch.testing.assert_close(folded(x) + shift.view(-1, 1, 1), module(x))


@pytest.mark.parametrize("below", ["alone", "reused", "centred"])
@pytest.mark.parametrize(("options", "method"), list(ways()))
def test_every_way_to_form_a_conv_gradient_is_the_same(
    options: dict[str, Any], method: str, below: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[str] = []
    original = conv.conv_record

    def forced(module: Any, geometry: Any, x: Tensor, b: Tensor, tape: Any) -> Any:
        taken = method
        if module.kernel_size == (1, 1) and options["kernel_size"] != 1:
            taken = "held bmm"  # the layer below
        used.append(taken)
        return original(module, geometry, x, b, tape, method=taken)

    monkeypatch.setattr(conv, "conv_record", forced)
    layer = centred(True, **options) if below == "centred" else nn.Conv2d(4, 8, **options)
    module = OnTop(nn.Conv2d(2, 4, 1), layer)
    losses = projected_losses(lambda m, x: m(x) + m(x.flip(3) * 0.5)) if below == "reused" else None
    check(module, data(3, 2, 9, 8), losses) if losses else check(module, data(3, 2, 9, 8))
    assert method in used


@pytest.mark.parametrize("product", [False, True])
def test_a_pointwise_convolution_by_matrix_product_is_the_same(product: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv, "_multiplies", lambda direction, geometry, x, weight: product and geometry.pointwise)
    check(OnTop(nn.Conv2d(2, 4, 1, bias=False), nn.Conv2d(4, 8, 1, bias=False)), data(3, 2, 9, 8))


def test_the_choice_of_method_sees_shapes_only() -> None:
    def chosen(channels: int, out: int, kernel: int, side: int, may_hold: bool = True, **options: Any) -> str:
        layer = nn.Conv2d(channels, out, kernel, **options)
        geometry = conv.Geometry(layer, [kernel // 2] * 2, [0, 0])
        x, b = torch.zeros(2, channels, side, side), torch.zeros(2, out, side, side)
        allowed = conv.feasible(geometry, x.shape, side * side, may_hold)
        by_rule = conv.rule(geometry, x.shape, side * side, layer.weight.shape, may_hold)
        assert {by_rule, conv.choose(geometry, x, b, layer.weight.detach(), may_hold)} <= set(allowed)
        return by_rule

    assert chosen(256, 512, 3, 2) == "booked gram"
    assert chosen(16, 16, 1, 16) == "held bmm"
    assert chosen(3, 16, 3, 80) == "held loop"
    assert chosen(16, 32, 3, 32) == "held fold"
    assert chosen(16, 32, 3, 32, may_hold=False) == "booked fold"
    assert chosen(128, 32, 3, 10) == "held unfold"
    assert chosen(256, 512, 3, 2, groups=256) in ("held fold", "held loop")


@pytest.mark.parametrize("images", [8, 64])
def test_held_gradients_never_outgrow_the_maps_that_were_freed(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory must not grow with images times parameters."""
    tapes: list[Tape] = []
    original = conv.conv_record

    def record(*arguments: Any) -> Any:
        made = original(*arguments)
        tape = arguments[4]
        tapes.append(tape)
        assert tape.held <= tape.freed + len(tapes) * conv._LEAST_HELD
        return made

    monkeypatch.setattr(conv, "conv_record", record)
    layers = [nn.Conv2d(8, 64, 3, 2), *(nn.Conv2d(64, 64, 3) for _ in range(3)), nn.Conv2d(64, 256, 3)]
    module = nn.Sequential(*layers)
    x = torch.randn(images, 8, 21, 21)
    dptrain.clipped_gradient_sum(module, projected_losses(), x, 1.0)
    (tape,) = {id(tape): tape for tape in tapes}.values()
    everything = images * sum(p.nbytes for p in module.parameters())
    assert 0 < tape.held < 0.6 * everything


def test_what_is_timed_is_not_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A choice by the batch's own run time would let the images speak through the clock and the rounding."""
    seen: list[Tensor] = []
    original = conv.record_of

    def record(geometry: Any, x: Tensor, b: Tensor, *rest: Any) -> Any:
        seen.append(x)
        return original(geometry, x, b, *rest)

    monkeypatch.setattr(conv, "record_of", record)
    monkeypatch.setattr(conv, "_fastest", autotune.Chooser())
    layer = nn.Conv2d(3, 5, 3)
    x = torch.full((7, 3, 12, 12), 7.0)
    state = torch.get_rng_state()
    conv.conv_record(layer, conv.Geometry(layer, [0, 0], [0, 0]), x, torch.full((7, 5, 10, 10), 7.0))
    assert torch.equal(state, torch.get_rng_state())
    assert len(seen) > 3
    assert [bool((s == 7.0).any()) for s in seen] == [False] * (len(seen) - 1) + [True]
    assert {len(s) for s in seen[:-1]} == {4}
    count = len(seen)
    for n in (7, 4, 3, 1):  # the last batch of a draw has any size, and is not timed again
        conv.conv_record(layer, conv.Geometry(layer, [0, 0], [0, 0]), x[:n], torch.ones(n, 5, 10, 10))
    assert len(seen) == count + 4


@FEW
@given(
    groups=st.sampled_from([1, 2, 3]), per_group=st.integers(1, 2), out=st.integers(1, 3), kernel=st.integers(1, 4),
    stride=st.tuples(st.integers(1, 3), st.integers(2, 3)), dilation=st.integers(1, 2), padding=st.integers(0, 1),
    extra=st.tuples(st.integers(0, 2), st.integers(0, 2)), bias=st.booleans(), n=st.integers(1, 4),
    frozen=st.sampled_from(["nothing", "weight", "bias"]),
)  # fmt: skip
def test_conv_transpose2d(
    groups: int, per_group: int, out: int, kernel: int, stride: tuple[int, int], dilation: int, padding: int,
    extra: tuple[int, int], bias: bool, n: int, frozen: str,
) -> None:  # fmt: skip
    output_padding = tuple(min(e, max(s, dilation) - 1) for e, s in zip(extra, stride, strict=True))
    layer = nn.ConvTranspose2d(
        groups * per_group, groups * out, kernel, stride, padding, output_padding, groups, bias, dilation
    )
    check(freeze(layer, frozen if bias else "nothing"), data(n, groups * per_group, 4, 5))


def test_conv_transpose2d_with_an_output_size() -> None:
    losses = projected_losses(lambda module, x: module(x, output_size=[10, 12]))
    check(nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1), data(3, 2, 5, 6), losses)


# --- linear and embedding --------------------------------------------------------------------------------------------


@FEW
@given(
    positions=st.lists(st.integers(1, 4), max_size=2), width=st.integers(1, 9), out=st.integers(1, 9),
    bias=st.booleans(), n=st.integers(1, 5), frozen=st.sampled_from(["nothing", "weight", "bias"]),
)  # fmt: skip
def test_linear(positions: list[int], width: int, out: int, bias: bool, n: int, frozen: str) -> None:
    check(freeze(nn.Linear(width, out, bias), frozen if bias else "nothing"), data(n, *positions, width))


@pytest.mark.parametrize("positions", [1, 3, 40])
def test_linear_with_and_without_the_factored_form(positions: int) -> None:
    layer = nn.Linear(12, 20)
    record = linear.linear_record(layer, data(2, positions, 12), data(2, positions, 20))
    assert isinstance(record, linear.GhostLinearRecord) == (positions < 40)
    check(OnTop(nn.Linear(5, 12), layer), data(4, positions, 5))


@pytest.mark.parametrize("padding_idx", [None, 0, 3])
@pytest.mark.parametrize("shape", [(5,), (5, 7), (5, 2, 3)], ids=str)
def test_embedding(padding_idx: int | None, shape: tuple[int, ...]) -> None:
    tokens = torch.randint(0, 6, shape, generator=torch.Generator().manual_seed(1))  # with repeats
    check(nn.Embedding(6, 4, padding_idx=padding_idx), tokens)


@pytest.mark.parametrize("options", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}], ids=str)
def test_embeddings_that_look_at_the_whole_batch_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(dptrain.ModelError, match="Embedding"):
        dptrain.per_sample_gradients(nn.Embedding(6, 4, **options), projected_losses(), torch.tensor([[1, 2], [3, 3]]))


# --- norm layers -----------------------------------------------------------------------------------------------------


@FEW
@given(
    groups=st.sampled_from([1, 2, 4]), size=st.integers(2, 3), spatial=st.lists(st.integers(1, 4), max_size=3),
    n=st.integers(1, 4), frozen=st.sampled_from(["nothing", "weight", "bias"]), mean=st.sampled_from([0.0, 30.0]),
)  # fmt: skip
def test_group_norm(groups: int, size: int, spatial: list[int], n: int, frozen: str, mean: float) -> None:
    x = data(n, groups * size, *spatial) + mean
    check(freeze(nn.GroupNorm(groups, groups * size, eps=1e-3), frozen), x)


def test_group_norm_of_a_map_that_is_not_contiguous() -> None:
    x = data(3, 8, 5, 4).to(memory_format=torch.channels_last)
    check(OnTop(nn.Conv2d(8, 8, 3), nn.GroupNorm(2, 8)).to(memory_format=torch.channels_last), x)
    check(nn.GroupNorm(2, 8), data(3, 5, 8).transpose(1, 2))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("shape", "normalized"), [((6,), 1), ((4, 6), 1), ((4, 6), 2), ((3, 4, 6), 1), ((3, 4, 6), 2)])
def test_layer_norm(bias: bool, shape: tuple[int, ...], normalized: int) -> None:
    check(nn.LayerNorm(shape[-normalized:], bias=bias), data(4, *shape) + 3.0)
    check(OnTop(nn.Linear(6, 6), nn.LayerNorm(shape[-normalized:], bias=bias)), data(4, *shape))


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_layer_norm_with_one_part_frozen(frozen: str) -> None:
    check(freeze(nn.LayerNorm(6), frozen), data(4, 5, 6))


def with_statistics(norm: Any) -> Any:
    norm.running_mean.copy_(torch.linspace(-1, 2, norm.num_features))
    norm.running_var.copy_(torch.linspace(0.2, 3, norm.num_features))
    return norm


@pytest.mark.parametrize("frozen", ["nothing", "weight", "bias"])
@pytest.mark.parametrize("below", [False, True])
def test_frozen_batch_norm(frozen: str, below: bool) -> None:
    for norm in (FrozenBatchNorm2d(5, eps=1e-3), nn.BatchNorm2d(5).eval()):
        layer = freeze(with_statistics(norm), frozen)
        module = OnTop(nn.Conv2d(5, 5, 3), layer) if below else layer
        check(module, data(3, 5, 6, 4))
        assert torch.equal(norm.running_mean, torch.linspace(-1, 2, 5, dtype=torch.float64)), "statistics never move"


def test_frozen_batch_norm_of_one_and_three_dimensions() -> None:
    check(with_statistics(nn.BatchNorm1d(5)).eval(), data(4, 5))
    check(with_statistics(nn.BatchNorm1d(5)).eval(), data(4, 5, 3))
    check(with_statistics(nn.BatchNorm3d(5)).eval(), data(4, 5, 2, 3, 2))


# --- how layers are put together -------------------------------------------------------------------------------------


class Twice(nn.Module):
    """Each layer is used twice, on inputs of different size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(3, 3, 3, padding=1), nn.GroupNorm(1, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm(self.conv(x)))
        x = F.max_pool2d(self.norm(self.conv(x)), 2)
        return self.out(self.out(x.mean((2, 3))))


def test_a_layer_used_twice() -> None:
    check(Twice(), data(4, 3, 8, 6))


def test_one_layer_under_two_names() -> None:
    layer = nn.Linear(4, 4)
    check(nn.Sequential(layer, nn.Tanh(), layer), data(3, 4))


@pytest.mark.parametrize(
    "activation",
    [nn.SiLU(inplace=True), nn.ReLU(inplace=True), nn.Hardswish(inplace=True), nn.LeakyReLU(0.1, inplace=True)],
    ids=str,
)
def test_in_place_activations(activation: nn.Module) -> None:
    frozen = with_statistics(FrozenBatchNorm2d(4))
    layers = [nn.Conv2d(2, 4, 3), activation, nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4), activation,
              nn.Conv2d(4, 4, 3, groups=4), frozen, activation, nn.ConvTranspose2d(4, 2, 2), activation]  # fmt: skip
    check(nn.Sequential(*layers), data(3, 2, 8, 8))


class Overwritten(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x) * 1.0
        out = self.b(h)
        h.mul_(2.0)  # what b needs for its gradient is gone
        return out + h


def test_an_input_overwritten_after_its_use_is_an_error_and_not_a_wrong_gradient() -> None:
    with pytest.raises(RuntimeError, match=r"inplace|in-place"):
        dptrain.per_sample_gradients(Overwritten(), projected_losses(), torch.randn(2, 2, 3, 3))


class TwoHeads(nn.Module):
    """The second head is fed detached features, as the one-to-one head of YOLO26 is."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.first, self.second = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 3, 1), nn.Conv2d(6, 3, 3)
        self.norm, self.out = nn.GroupNorm(3, 3), nn.ConvTranspose2d(3, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        features = F.silu(self.trunk(x))
        second = self.out(self.norm(self.second(features.detach())))
        return torch.cat([self.first(features).flatten(1), second.flatten(1)], 1)


def test_layers_whose_input_needs_no_gradient() -> None:
    check(TwoHeads(), data(3, 2, 7, 7))


def test_an_input_that_needs_a_gradient_itself() -> None:
    x = data(3, 2, 7, 7).requires_grad_()
    module = TwoHeads().double()
    wanted = one_at_a_time(module, projected_losses(), x.detach())
    assert_same(dptrain.per_sample_gradients(module, projected_losses(), x), wanted, RELATIVE, FLOOR)
    assert x.grad is None


def test_frozen_layers_below_and_above() -> None:
    module = nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.SiLU(inplace=True), nn.Conv2d(4, 4, 3))
    module[0].requires_grad_(False)
    module[3].requires_grad_(False)
    check(module, data(3, 2, 8, 8))
    assert list(dptrain.per_sample_gradients(module, projected_losses(), data(2, 2, 8, 8))) == ["1.weight", "1.bias"]


# --- norms are never too small ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.1, 1 / 3, 123.4])
@pytest.mark.parametrize("length", [1, 255, 256, 257, 1_000_001])
def test_the_norm_of_a_long_row_is_right_in_single_precision(value: float, length: int) -> None:
    rows = torch.full((2, length), value)
    torch.testing.assert_close(squared_norm(rows), rows.double().square().sum(1), rtol=3e-6, atol=0)


@pytest.mark.parametrize("positions", [1, 2, 20])
@pytest.mark.parametrize("value", [0.1, 1 / 3, 123.4])
def test_the_factored_norm_does_not_fall_short(positions: int, value: float) -> None:
    layer = nn.Linear(10_000, 1_000, bias=False)
    x, b = torch.full((1, positions, 10_000), value), torch.full((1, positions, 1_000), value)
    record = linear.linear_record(layer, x, b)
    assert isinstance(record, linear.GhostLinearRecord)
    true = record.per_example()["weight"].double().square().sum()
    assert 1 - 1e-6 < float(record.squared_norms()[0] / true) < 1 + 2e-5


def test_the_factored_norm_does_not_fall_short_where_the_gradient_cancels() -> None:
    u, b = torch.randn(1, 2, 500), torch.randn(1, 2, 400)
    u[:, 1], b[:, 1] = u[:, 0], -b[:, 0] * (1 + 1e-4)
    record = linear.linear_record(nn.Linear(500, 400, bias=False), u, b)
    assert isinstance(record, linear.GhostLinearRecord)
    exact = (b.double().transpose(1, 2) @ u.double()).square().sum()
    assert float(record.squared_norms()[0]) >= float(exact)


def test_what_cancels_but_for_rounding_is_clipped_too() -> None:
    """The exact gradient is zero; the one that is summed is what single precision left of large numbers."""
    layer, x = nn.Linear(500, 400, bias=False), torch.randn(1, 1, 500).expand(1, 2, 500)
    weights = 1e9 * torch.randn(400)
    losses = lambda m, x: (m(x)[:, 0] * weights).sum(1) - (m(x)[:, 1] * weights).sum(1)  # noqa: E731

    def once(m: nn.Module, x: Tensor) -> Tensor:
        out = m(x)
        return ((out[:, 0] - out[:, 1]) * weights).sum(1)

    for function in (once, losses):
        got = dptrain.clipped_gradient_sum(layer, function, x, 1.0)["weight"]
        assert float(got.double().norm()) <= 1.0


def test_an_embedding_norm_does_not_fall_short_where_the_gradient_cancels() -> None:
    from dptrain.gradients.rules.embedding import _EmbeddingRecord

    b = torch.randn(1, 2, 64) * 1e4
    b[:, 1] = -b[:, 0] * (1 + 1e-5)
    record = _EmbeddingRecord(nn.Embedding(3, 64), torch.tensor([[1, 1]]), b)
    exact = record.per_example()["weight"].double().square().sum()
    assert float(record.squared_norms()[0]) == pytest.approx(float(exact), rel=1e-3)
