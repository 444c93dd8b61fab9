"""The three engines against independent oracles, on detectors and on other networks, and what they refuse."""

from __future__ import annotations

import copy
import logging
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dptrain
from benchmarks.modules import Block
from dptrain.detection import PerImageLoss, load_model, per_image_losses
from dptrain.gradients import ENGINES
from dptrain.gradients.modules import CentredConv2d, FrozenBatchNorm2d

from ..detectors import FAMILIES, random_batch, stock_detector, ultralytics_gradients, write_checkpoint
from .oracle import assert_same, clipped, one_at_a_time, projected_losses, squared_norms

BY_RULES = ("fused", "opacus")  # microbatch needs none: test_any_module.py
plain_losses = projected_losses()


class Cnn(nn.Module):
    """A small network with every layer kind that has a rule, but Embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1), FrozenBatchNorm2d(8), nn.SiLU(inplace=True),
            nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.GroupNorm(2, 8), nn.ReLU(inplace=True),
            CentredConv2d.of(nn.Conv2d(8, 8, 3, padding=1), torch.linspace(-1, 2, 8)),
            nn.ConvTranspose2d(8, 4, 2, stride=2), nn.BatchNorm2d(4, affine=False).eval(), nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Vit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 4, stride=4)
        self.positions = nn.Embedding(9, 12)
        self.blocks = nn.Sequential(Block(12, 2, 2), Block(12, 3, 2))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        places = torch.arange(tokens.shape[1], device=x.device).expand(len(x), -1)  # a row for every example
        return self.head(self.blocks(tokens + self.positions(places)).mean(1))


def images(n: int, side: int = 12, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def seeded(kind: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().double()


@pytest.fixture(scope="module")
def detectors(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Any]:
    """Return a function that gives a fresh copy of a small detector, (family, norm)."""
    folder = tmp_path_factory.mktemp("weights")
    made: dict[tuple[str, str], Any] = {}

    def get(name: str, norm: str) -> Any:
        if (name, norm) not in made:
            torch.manual_seed(0)
            source: Path | str = f"{name}.yaml"
            if norm == "frozen_bn":
                source = write_checkpoint(stock_detector(name, "abc"), folder / f"{name}.pt")
            made[name, norm] = load_model(source, 3, norm=norm)
        return copy.deepcopy(made[name, norm])

    return get


def in_double(model: nn.Module, batch: dict[str, Tensor]) -> tuple[nn.Module, dict[str, Tensor]]:
    return model.double(), {**batch, "img": batch["img"].double()}


# --- agreement -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", [Cnn, Vit])
@pytest.mark.parametrize("n", [0, 1, 2, 9])
def test_networks_that_are_no_detectors(kind: Callable[[], nn.Module], engine: str, n: int) -> None:
    module = seeded(kind)
    wanted = one_at_a_time(module, plain_losses, images(n))
    assert_same(dptrain.per_sample_gradients(module, plain_losses, images(n), engine), wanted, 1e-9, 1e-12)
    for clip_norm in (1e-9, 0.5, 1e6):
        got = dptrain.clipped_gradient_sum(module, plain_losses, images(n), clip_norm, engine)
        assert list(got) == list(wanted)
        expected = clipped(wanted, clip_norm)
        for name in wanted:
            scale = sum(min(clip_norm, float(s)) for s in squared_norms(wanted).sqrt())
            assert float((got[name] - expected[name]).norm()) <= 2e-5 * scale, name


TENSORS = {("yolo26n", "group"): 366, ("yolo26n", "frozen_bn"): 366}


@pytest.mark.parametrize("norm", ["group", "frozen_bn"])
@pytest.mark.parametrize("name", FAMILIES)
def test_detectors(detectors: Callable[[str, str], Any], name: str, norm: str) -> None:
    """In double precision, so that a wrong tensor has no rounding to hide behind; Ultralytics' loss is the oracle."""
    model, batch = in_double(detectors(name, norm), random_batch([0, 1, 60, 3]))
    wanted = ultralytics_gradients(model, batch)
    assert len(wanted) == TENSORS.get((name, norm), len(wanted))
    for engine in ENGINES:
        assert_same(dptrain.per_sample_gradients(model, per_image_losses, batch, engine), wanted, 1e-6, 1e-12)


SINGLE = [
    ("yolo26n", "group", [0], 64, 64),
    ("yolo26n", "frozen_bn", [5, 0], 96, 160),
    ("yolo26n", "group", [2, 60, 0, 1, 7, 3, 0, 12, 30], 64, 64),
    ("yolo26n", "group", [4], 320, 320),
    ("yolov8n", "frozen_bn", [0, 20, 1], 160, 96),
    ("yolo11n", "group", [0, 0], 96, 160),
]


@pytest.mark.parametrize(("name", "norm", "boxes", "height", "width"), SINGLE)
def test_detectors_in_single_precision(
    detectors: Callable[[str, str], Any], name: str, norm: str, boxes: list[int], height: int, width: int
) -> None:
    model, batch = detectors(name, norm), random_batch(boxes, height, width)
    wanted = ultralytics_gradients(*in_double(copy.deepcopy(model), batch))
    norms = squared_norms(wanted).sqrt()
    engines = ENGINES if height * width <= 64 * 64 else ("fused",)
    for engine in engines:
        got = dptrain.per_sample_gradients(model, per_image_losses, batch, engine)
        for row in range(len(boxes)):  # a tensor far below the whole gradient holds rounding only
            one, reference = ({k: g[row : row + 1] for k, g in both.items()} for both in (got, wanted))
            assert_same(one, reference, 1e-4, 2e-6 * float(norms[row]))
    got = dptrain.clipped_gradient_sum(model, per_image_losses, batch, 0.1)
    for key, total in clipped(wanted, 0.1).items():
        assert float((got[key] - total).norm()) <= 1e-4 * 0.1 * len(boxes), key


@pytest.mark.parametrize("engine", ENGINES)
def test_an_empty_batch_of_images(detectors: Callable[[str, str], Any], engine: str) -> None:
    model = detectors("yolo26n", "group")
    rows = dptrain.per_sample_gradients(model, per_image_losses, random_batch([]), engine)
    sums = dptrain.clipped_gradient_sum(model, per_image_losses, random_batch([]), 1.0, engine)
    for name, p in model.named_parameters():
        assert rows[name].shape == (0, *p.shape)
        assert sums[name].shape == p.shape and not sums[name].any()


@pytest.mark.parametrize("trainable", ["head", "norm_and_bias", "neck_and_head", "model.2[0-3].*"])
def test_detectors_that_train_in_part(detectors: Callable[[str, str], Any], trainable: str) -> None:
    model = detectors("yolo26n", "frozen_bn")
    chosen = dptrain.detection.set_trainable(model, trainable)
    model, batch = in_double(model, random_batch([2, 5]))
    wanted = ultralytics_gradients(model, batch)
    assert list(wanted) == chosen
    for engine in ("fused", "opacus"):
        assert_same(dptrain.per_sample_gradients(model, per_image_losses, batch, engine), wanted, 1e-6, 1e-12)


def test_the_weight_of_the_heads_reaches_the_gradients(detectors: Callable[[str, str], Any]) -> None:
    model, batch = in_double(detectors("yolo26n", "group"), random_batch([2, 5]))
    for weight, silent in ((1.0, "one2one"), (0.0, "cv")):
        gradients = dptrain.per_sample_gradients(model, PerImageLoss(weight), batch)
        for key, g in gradients.items():
            if key.startswith(f"model.23.{silent}"):
                assert not g.any(), key


# --- clipping --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("clip_norm", [1e-6, 1.0, 1e4])
def test_no_example_adds_more_than_the_clip_norm(
    detectors: Callable[[str, str], Any], clip_norm: float, engine: str
) -> None:
    model = detectors("yolo26n", "group")
    batch = random_batch([6], seed=3)
    # A large loss, so that every clip norm clips.
    got = dptrain.clipped_gradient_sum(model, lambda m, b: 1e6 * per_image_losses(m, b), batch, clip_norm, engine)
    length = math.sqrt(sum(float(g.double().square().sum()) for g in got.values()))
    assert length <= clip_norm
    assert length >= clip_norm * (1 - 1e-4)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("value", [0.1, 1 / 3, 0.7, 123.4])
def test_a_long_gradient_of_equal_entries_is_clipped_too(engine: str, value: float) -> None:
    """Where a single precision sum of squares goes furthest astray."""
    layer = nn.Conv2d(250, 400, 3, bias=False)
    x = torch.full((1, 250, 20, 20), value)
    got = dptrain.clipped_gradient_sum(layer, lambda m, x: m(x).sum((1, 2, 3)), x, 1.0, engine)
    length = float(got["weight"].double().square().sum().sqrt())
    assert 1 - 1e-4 <= length <= 1.0


@pytest.mark.parametrize("engine", ENGINES)
def test_an_example_below_the_clip_norm_is_left_as_it_is(engine: str) -> None:
    module = seeded(Cnn)
    wanted = one_at_a_time(module, plain_losses, images(3))
    got = dptrain.clipped_gradient_sum(module, plain_losses, images(3), 1e8, engine)
    for name, g in wanted.items():
        torch.testing.assert_close(got[name], g.sum(0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_example_without_a_gradient_adds_nothing_and_harms_nothing(engine: str) -> None:
    module = nn.Linear(3, 2).double()
    x = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=torch.float64)
    losses = lambda m, x: m(x).sum(1) * (x[:, 0] > 2)  # noqa: E731
    got = dptrain.clipped_gradient_sum(module, losses, x, 1.0, engine)
    alone = dptrain.clipped_gradient_sum(module, losses, x[1:], 1.0, engine)
    for name in got:
        torch.testing.assert_close(got[name], alone[name])


# --- examples that are not finite ------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("kind", [Cnn, Vit])
def test_an_example_that_is_not_finite_counts_as_zero(kind: Callable[[], nn.Module], bad: float, engine: str) -> None:
    module = kind().float()
    x = images(4).float()
    x[2] = bad
    losses = projected_losses(lambda m, x: m(x) * x.flatten(1).mean(1, keepdim=True) ** 2)
    got = dptrain.clipped_gradient_sum(module, losses, x, 0.5, engine)
    others = dptrain.clipped_gradient_sum(module, losses, x[[0, 1, 3]], 0.5, engine)
    for name in got:
        torch.testing.assert_close(got[name], others[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_image_that_is_not_finite_leaves_the_others_alone(
    detectors: Callable[[str, str], Any], bad: float, engine: str
) -> None:
    model = detectors("yolo26n", "group")
    batch = random_batch([3, 4, 2])
    batch["img"][1, :, 10:20, 10:20] = bad
    got = dptrain.clipped_gradient_sum(model, per_image_losses, batch, 0.5, engine)
    kept = random_batch([3, 4, 2])
    own = kept["batch_idx"] != 1
    kept = {
        "img": kept["img"][[0, 2]],
        "batch_idx": (kept["batch_idx"][own] > 0).float(),
        "cls": kept["cls"][own],
        "bboxes": kept["bboxes"][own],
    }
    others = dptrain.clipped_gradient_sum(model, per_image_losses, kept, 0.5, engine)
    for name in got:
        assert torch.isfinite(got[name]).all()
        torch.testing.assert_close(got[name], others[name], rtol=1e-3, atol=2e-6)


# --- nothing is left behind ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_the_module_is_left_as_it_was(engine: str) -> None:
    module = seeded(Cnn).train()
    module.body[8].eval()
    module.body[0].eval()
    module.head[0].requires_grad_(False)
    for p in module.parameters():
        p.grad = torch.full_like(p, 7.0)
    state = {k: v.clone() for k, v in module.state_dict().items()}
    modes = [m.training for m in module.modules()]
    forwards = ["forward" in m.__dict__ for m in module.modules()]
    hooks = [(len(m._forward_hooks), len(m._backward_hooks), len(m._forward_pre_hooks)) for m in module.modules()]
    attributes = [set(vars(p)) for p in module.parameters()]
    for function in (
        lambda: dptrain.per_sample_gradients(module, plain_losses, images(2), engine),
        lambda: dptrain.clipped_gradient_sum(module, plain_losses, images(2), 1.0, engine),
    ):
        function()
        for p in module.parameters():
            assert p.grad is not None and (p.grad == 7.0).all()
    assert all(torch.equal(v, state[k]) for k, v in module.state_dict().items())
    assert [m.training for m in module.modules()] == modes
    assert ["forward" in m.__dict__ for m in module.modules()] == forwards
    assert [
        (len(m._forward_hooks), len(m._backward_hooks), len(m._forward_pre_hooks)) for m in module.modules()
    ] == hooks
    assert [set(vars(p)) for p in module.parameters()] == attributes
    assert [m.inplace for m in module.modules() if hasattr(m, "inplace")] == [True, True]


@pytest.mark.parametrize("engine", ENGINES)
def test_the_module_is_left_as_it_was_after_an_error(engine: str) -> None:
    module = seeded(Cnn)

    def broken(module: nn.Module, x: Tensor) -> Tensor:
        module(x)
        raise KeyError("in the loss")

    with pytest.raises(KeyError, match="in the loss"):
        dptrain.per_sample_gradients(module, broken, images(2), engine)
    assert not any("forward" in m.__dict__ for m in module.modules())
    assert all(p.grad is None for p in module.parameters())
    wanted = one_at_a_time(module, plain_losses, images(2))
    assert_same(dptrain.per_sample_gradients(module, plain_losses, images(2), engine), wanted, 1e-9, 1e-12)


@pytest.mark.parametrize("engine", ENGINES)
def test_batches_as_tuples_and_mappings(engine: str) -> None:
    module = nn.Linear(4, 3).double()
    x, y = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 0])
    pair = lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none")  # noqa: E731
    named = lambda m, b: F.cross_entropy(m(b["x"]), b["y"], reduction="none")  # noqa: E731
    wanted = torch.stack(
        [torch.autograd.grad(pair(module, (x[i : i + 1], y[i : i + 1])).sum(), module.weight)[0] for i in range(5)]
    )
    for batch, losses in (((x, y), pair), ([x, y], pair), ({"x": x, "y": y}, named)):
        got = dptrain.per_sample_gradients(module, losses, batch, engine)["weight"]
        torch.testing.assert_close(got, wanted)


def test_float16_and_bfloat16_gradients_are_formed_in_single_precision() -> None:
    module = seeded(Cnn).bfloat16()
    rows = dptrain.per_sample_gradients(module, plain_losses, images(2).bfloat16())
    assert {g.dtype for g in rows.values()} == {torch.float32}


# --- refusals --------------------------------------------------------------------------------------------------------


def refused(module: nn.Module, *words: str, engine: str = "fused", x: Tensor | None = None, losses: Any = None) -> str:
    """The engine refuses with one line that has all the words in it."""
    x = images(3).float() if x is None else x
    with pytest.raises(dptrain.ModelError) as caught:
        dptrain.per_sample_gradients(module, losses or plain_losses, x, engine)
    with pytest.raises(dptrain.ModelError):
        dptrain.clipped_gradient_sum(module, losses or plain_losses, x, 1.0, engine)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    return message


class Named(nn.Module):
    """A conv, then a layer called ``middle``."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.first, self.middle = nn.Conv2d(3, 4, 3), middle

    def forward(self, x: Tensor) -> Tensor:
        return self.middle(self.first(x))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(4),
        nn.BatchNorm2d(4).requires_grad_(False),
        nn.BatchNorm2d(4, affine=False),
        nn.BatchNorm2d(4, track_running_stats=False).eval(),
        nn.BatchNorm2d(4, affine=False, track_running_stats=False).eval(),
        nn.SyncBatchNorm(4),
        nn.SyncBatchNorm(4).requires_grad_(False),
        nn.LazyBatchNorm2d(),
        nn.InstanceNorm2d(4, track_running_stats=True),
    ],
    ids=str,
)
def test_layers_that_mix_images_are_refused_by_name(norm: nn.Module, engine: str) -> None:
    refused(Named(norm), "middle", type(norm).__name__, engine=engine)


def test_stock_detectors_are_refused() -> None:
    model = stock_detector("yolo26n", "abc").train()
    with pytest.raises(dptrain.ModelError, match=r"model\.0\.bn"):
        dptrain.per_sample_gradients(model, per_image_losses, random_batch([1, 2]))


@pytest.mark.parametrize("engine", ENGINES)
def test_batch_norm_that_is_turned_on_during_the_run_is_refused(engine: str) -> None:
    module = seeded(Cnn)
    module.body[8].eval()
    dptrain.per_sample_gradients(module, plain_losses, images(2), engine)
    module.train()
    refused(module, "body.8", engine=engine, x=images(2))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(12, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x, x, x)[0]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(12, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


class OwnConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class Token(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out, self.token = nn.Linear(12, 3), nn.Parameter(torch.zeros(12))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x + self.token)


def normed(old: bool) -> nn.Module:
    layer = nn.Linear(12, 3)
    module = nn.Sequential(nn.Linear(12, 12), nn.Module())
    module[1] = nn.utils.weight_norm(layer) if old else nn.utils.parametrizations.weight_norm(layer)
    return module


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("engine", BY_RULES)
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (Attention, "'attend.in_proj_weight'"),
        (Recurrent, "'lstm.weight_ih_l0'"),
        (Token, "'token'"),
        (lambda: Named(OwnConv(4, 4, 1)), "'middle.weight'"),
        (lambda: Named(nn.PReLU()), "'middle.weight'"),
        (lambda: Named(nn.InstanceNorm2d(4, affine=True)), "'middle.weight'"),
        (lambda: normed(True), "'1.weight_g'"),
        (lambda: normed(False), "ParametrizedLinear"),
        (lambda: nn.Sequential(nn.Linear(12, 12), nn.utils.spectral_norm(nn.Linear(12, 3))), "'1.weight_orig'"),
    ],
)
def test_layers_without_a_rule_are_refused_by_name(make: Callable[[], nn.Module], name: str, engine: str) -> None:
    module = make()
    module.train()
    refused(module, name, engine=engine, x=None if "middle" in name else images(3).float()[:, 0])


def test_layers_without_a_rule_may_be_frozen() -> None:
    module = nn.Sequential(nn.Linear(12, 12), Attention(), nn.Linear(12, 2)).double()
    module[1].requires_grad_(False)
    x = images(3)[:, 0]
    wanted = one_at_a_time(module, plain_losses, x)
    for engine in ENGINES:
        assert_same(dptrain.per_sample_gradients(module, plain_losses, x, engine), wanted, 1e-9, 1e-12)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("role", ["weight", "bias"])
def test_parameters_frozen_one_by_one(engine: str, role: str) -> None:
    module = seeded(Cnn)
    for layer in module.modules():
        if isinstance(getattr(layer, role, None), nn.Parameter):
            getattr(layer, role).requires_grad_(False)
    wanted = one_at_a_time(module, plain_losses, images(3))
    assert wanted and not any(name.endswith(role) for name in wanted)
    assert_same(dptrain.per_sample_gradients(module, plain_losses, images(3), engine), wanted, 1e-9, 1e-12)


@pytest.mark.parametrize("engine", ENGINES)
def test_batch_norm_in_eval_mode(engine: str) -> None:
    module = Named(nn.BatchNorm2d(4)).double().eval()
    if engine == "opacus":
        refused(module, "middle", engine=engine, x=images(2))
        return
    wanted = one_at_a_time(module, plain_losses, images(3))
    assert_same(dptrain.per_sample_gradients(module, plain_losses, images(3), engine), wanted, 1e-9, 1e-12)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_module_in_eval_mode(engine: str) -> None:
    module = seeded(Vit).eval()
    wanted = one_at_a_time(module, plain_losses, images(3))
    assert_same(dptrain.per_sample_gradients(module, plain_losses, images(3), engine), wanted, 1e-9, 1e-12)
    assert not any(m.training for m in module.modules())


@pytest.mark.parametrize("engine", BY_RULES)
def test_tied_parameters_are_refused_by_name(engine: str) -> None:
    tied = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    tied[2].weight = tied[0].weight
    refused(tied, "'2.weight'", "'0.weight'", engine=engine, x=torch.randn(3, 4))
    within = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    within[1].bias = within[1].weight
    refused(within, "'1.bias'", "'1.weight'", engine=engine, x=torch.randn(3, 4))


class Unreached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.spare = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.spare(x)
        return self.used(x)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_parameter_that_the_loss_does_not_reach_is_refused_by_name(engine: str) -> None:
    refused(Unreached(), "'spare.weight'", engine=engine, x=torch.randn(3, 4))
    detached = lambda m, x: m(x).detach().sum(1)  # noqa: E731
    refused(nn.Linear(4, 4), "'weight'", engine=engine, x=torch.randn(3, 4), losses=detached)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_head_that_the_loss_leaves_out_is_refused_by_name(detectors: Callable[[str, str], Any], engine: str) -> None:
    from dptrain.detection.loss import PerImageLoss

    one_head = lambda m, b: PerImageLoss()._of_head(m, 10).per_image(m(b["img"])["one2many"], b)  # noqa: E731
    with pytest.raises(dptrain.ModelError, match="one2one_cv2"):
        dptrain.per_sample_gradients(detectors("yolo26n", "group"), one_head, random_batch([1, 2]), engine)


class ReadsParameter(nn.Module):
    """The weight of one layer is read outside it: by another function, or besides its own layer's call."""

    def __init__(self, also_called: bool) -> None:
        super().__init__()
        self.one, self.two, self.also_called = nn.Linear(4, 4), nn.Linear(4, 4), also_called

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(F.linear(x, self.two.weight))
        return self.two(x) if self.also_called else x + self.two.bias


@pytest.mark.parametrize("also_called", [True, False])
@pytest.mark.parametrize("engine", BY_RULES)
def test_a_parameter_read_outside_its_layer_is_refused_by_name(engine: str, also_called: bool) -> None:
    refused(ReadsParameter(also_called), "two.weight", engine=engine, x=torch.randn(3, 4))


def test_a_penalty_on_the_weights_is_refused_by_name() -> None:
    penalised = lambda m, x: m(x).sum(1) + m.weight.square().sum()  # noqa: E731
    refused(nn.Linear(4, 4), "'weight'", x=torch.randn(3, 4), losses=penalised)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "losses",
    [lambda m, x: m(x).sum(), lambda m, x: m(x), lambda m, x: m(x).sum(1, keepdim=True), lambda m, x: m(x).sum(0)],
    ids=["scalar", "matrix", "column", "one too many"],
)
def test_losses_of_the_wrong_shape_are_refused(engine: str, losses: Any) -> None:
    refused(nn.Linear(4, 5), engine=engine, x=torch.randn(3, 4), losses=losses)


class SharedAcross(nn.Module):
    """A layer's rows are not the examples: one template for all of them, or several rows an example."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.out, self.how = nn.Conv2d(3, 4, 3), nn.Linear(4, 2), how

    def forward(self, x: Tensor) -> Tensor:
        features = self.conv(x).mean((2, 3))
        if self.how == "template":
            features = features + self.conv(x.new_ones(1, 3, 5, 5)).mean((2, 3))
        if self.how == "template only":
            features = self.conv(x.new_ones(1, 3, 5, 5)).mean((2, 3)) * x.mean((1, 2, 3)).view(-1, 1)
        if self.how == "rows":
            return self.out(torch.cat([features, features])).view(2, len(x), 2).sum(0)
        return self.out(features)


@pytest.mark.parametrize("how", ["template", "template only", "rows"])
@pytest.mark.parametrize("engine", BY_RULES)
def test_a_layer_whose_rows_are_not_the_examples_is_refused_by_name(engine: str, how: str) -> None:
    refused(SharedAcross(how), "out" if how == "rows" else "conv", engine=engine)


def test_nothing_to_train_and_unknown_methods_are_refused() -> None:
    refused(nn.Linear(4, 4).requires_grad_(False), "trainable", x=torch.randn(3, 4))
    with pytest.raises(dptrain.ConfigError, match="ghost"):
        dptrain.per_sample_gradients(nn.Linear(4, 4), plain_losses, torch.randn(3, 4), engine="ghost")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", ["reflect", "circular", "replicate"])
def test_padding_modes_are_right_or_refused(mode: str, engine: str) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode=mode), nn.GroupNorm(1, 4)).double()
    wanted = one_at_a_time(module, plain_losses, images(3))
    try:
        got = dptrain.per_sample_gradients(module, plain_losses, images(3), engine)
    except dptrain.ModelError as error:
        assert engine == "opacus" and "'0.weight'" in str(error)
    else:
        assert_same(got, wanted, 1e-9, 1e-12)


def test_importing_opacus_leaves_the_programs_log_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its import gives the root logger a handler, and ``logging.basicConfig`` does nothing from then on."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    for name in [name for name in sys.modules if name.partition(".")[0] == "opacus"]:
        monkeypatch.delitem(sys.modules, name)
    model = nn.Linear(3, 2)
    dptrain.per_sample_gradients(model, lambda module, x: module(x).sum(1), torch.ones(2, 3), engine="opacus")
    assert "opacus" in sys.modules and logging.getLogger().handlers == []
