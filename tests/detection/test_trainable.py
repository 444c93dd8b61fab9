"""Adapters and one-branch heads: what they compute, their gradients, what is saved."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from ultralytics.nn.modules import Detect

import dptrain
from dptrain import PrivacyPlan
from dptrain.detection import Lora, LossSettings, PerImageLoss, load_model, save_weights, set_trainable
from dptrain.detection.heads import OneToOneDetect
from dptrain.detection.model import norm_of, stock_copy
from dptrain.detection.probe import refuse_coupled_images
from dptrain.gradients.modules import LowRankConv2d
from dptrain.run.build import with_rate
from dptrain.settings.resolve import from_kwargs

from ..detectors import one_image, random_batch, stock_detector, write_checkpoint
from ..gradients.oracle import assert_same

NAMES = ["cat", "dog", "owl"]
VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {"trainable": "lora"},
    "lora and norms": {
        "trainable": ["lora", "norm_and_bias"], "lora": Lora(2, 6.0, ("neck_and_head",)), "norm": "group",
    },
    "one_to_many": {"head": "one_to_many"},
    "one_to_one": {"head": "one_to_one"},
}  # fmt: skip


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(stock_detector("yolo26n", NAMES), tmp_path_factory.mktemp("weights") / "yolo26n.pt")


def moved(model: Any) -> Any:
    """The model after steps that nobody would take: every trained number is another."""
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.02 * torch.randn(p.shape, generator=g))
    return model


def alone(model: Any, losses: Callable[[Any, Any], Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Per-image gradients by plain autograd, one image at a time."""
    own = copy.deepcopy(model)
    parameters = {name: p for name, p in own.named_parameters() if p.requires_grad}
    rows = [
        torch.autograd.grad(losses(own, one_image(batch, i)).sum(), list(parameters.values()))
        for i in range(len(batch["img"]))
    ]
    return {name: torch.stack([row[i] for row in rows]) for i, name in enumerate(parameters)}


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_of_every_engine_are_those_of_an_image_alone(variant: str, start: Path) -> None:
    model = moved(load_model(start, 3, **VARIANTS[variant])).double()
    batch = random_batch([2, 0, 5])
    batch = {**batch, "img": batch["img"].double()}
    losses = PerImageLoss(0.4, LossSettings(cls=1.0, normaliser="constant", focal_gamma=1.5))
    wanted = alone(model, losses, batch)
    # A level of the box branch without a box has none.
    assert all(g.any() for name, g in wanted.items() if "cv2." not in name), "every trained tensor is reached"
    for engine in ("fused", "opacus") if variant == "lora" else ("fused",):
        assert_same(dptrain.per_sample_gradients(model, losses, batch, engine), wanted, 1e-6, 1e-11)


@pytest.mark.parametrize("variant", ["lora", "one_to_one"])
def test_the_probe_passes(variant: str) -> None:
    model = load_model("yolo26n.yaml", 3, **VARIANTS[variant])
    refuse_coupled_images(model, "fused", PerImageLoss(settings=LossSettings(focal_gamma=2.0, normaliser="constant")))


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_saved_is_stock_and_computes_the_same(variant: str, start: Path, tmp_path: Path) -> None:
    model = moved(load_model(start, 3, **VARIANTS[variant]))
    stock = stock_copy(model)
    kinds = {type(module) for module in stock.modules()}
    assert not any(kind.__module__.startswith("dptrain") for kind in kinds) and type(stock.model[-1]) is Detect
    x = random_batch([0, 0])["img"]
    with torch.no_grad():
        torch.testing.assert_close(stock(x)[0], model.eval()(x)[0], rtol=1e-3, atol=2e-3)
    again = load_model(save_weights(model, tmp_path / "a.pt"), 3)
    assert type(again.model[-1]) is type(model.model[-1])
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(x)[0], stock(x)[0], rtol=1e-4, atol=1e-3)
    assert norm_of(again) == ("group" if norm_of(model).startswith("group") else "frozen_bn")


# --- adapters --------------------------------------------------------------------------------------------------------


def test_adapters_change_nothing_before_the_first_step(start: Path) -> None:
    plain, model = (load_model(start, 3, trainable=kind).eval() for kind in ("all", "lora"))
    x = random_batch([0, 0])["img"]
    with torch.no_grad():
        assert torch.equal(plain(x)[0], model(x)[0])
    folded = stock_copy(model).state_dict()
    assert all(torch.equal(value, folded[name]) for name, value in stock_copy(plain).state_dict().items())


def test_what_lora_trains(start: Path) -> None:
    model = load_model(start, 3, trainable="lora", lora=Lora(4))
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    adapters = {n for n, m in model.named_modules() if isinstance(m, LowRankConv2d)}
    whole = {n for n in trained if n.rpartition(".")[0].rpartition(".")[0] not in adapters}
    assert len(adapters) > 50 and trained - whole == {f"{n}.{part}.weight" for n in adapters for part in ("down", "up")}
    assert {f"model.23.{cv}.{i}.2.weight" for cv in ("cv3", "one2one_cv3") for i in range(3)} <= whole
    numbers = {n: p.numel() for n, p in model.named_parameters()}
    assert sum(numbers[n] for n in trained) < 0.15 * sum(numbers.values())
    assert not any(m.base.groups > 1 for m in model.modules() if isinstance(m, LowRankConv2d))
    extra = set(set_trainable(model, ["lora", "norm_and_bias"])) - trained
    assert extra and all(n.endswith(".bias") or n.rpartition(".")[0].endswith("bn") for n in extra)


@pytest.mark.parametrize("own", [{}, {"padding": 1, "stride": 2}, {"padding": "same", "padding_mode": "reflect"}])
def test_an_adapter_is_folded_exactly(own: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer = LowRankConv2d(nn.Conv2d(8, 12, 3, **own), 3, scale=0.5).double()
    nn.init.normal_(layer.up.weight)
    x = torch.randn(2, 8, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(layer.folded()(x), layer(x), rtol=1e-10, atol=1e-10)
    assert not torch.equal(layer.base(x), layer(x))


def test_the_rate_of_adapters_is_that_of_the_part_that_begins_at_zero(start: Path) -> None:
    plan, given = PrivacyPlan(0.5, 25, 1.0, 1.0, 1e-3, 3), {"model": str(start), "data": "x.yaml", "plan": None}
    config = from_kwargs(**given, trainable="lora", norm="group")
    model = load_model(start, 3, trainable="lora", norm="group")
    for name, p in model.named_parameters():
        p.requires_grad_(name.endswith((".down.weight", ".up.weight")))
    assert with_rate(config, plan, model).optimizer.lr == pytest.approx(0.1 * (3 * 4) ** -0.5 / 5, rel=0.05)


def test_targets_of_lora(start: Path) -> None:
    head = load_model(start, 3, trainable="lora", lora=Lora(2, targets=("head",)))
    assert all(n.startswith("model.23.") for n, p in head.named_parameters() if p.requires_grad)


def test_head_and_norms_are_the_head_and_every_norm(start: Path) -> None:
    model = load_model(start, 3)
    parts = [set(set_trainable(model, part)) for part in ("head_and_norms", "head", "norm_and_bias")]
    assert parts[0] == parts[1] | parts[2] and parts[1] - parts[2] and parts[2] - parts[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"trainable": "lora", "lora": Lora(4, targets=("model.99.*",))}, "lora.targets='model.99.*' matches no"),
        ({"head": "one_to_few"}, "head='one_to_few' is not one of"),
        ({"new_classes": "best"}, "new_classes='best' is not one of"),
        ({"similar": {"emu": "owl"}}, "similar_classes has 'emu', which is not a class of the data"),
        ({"similar": {"cat": "emu"}}, "the start has no class 'emu'"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(options: dict[str, Any], words: str, start: Path) -> None:
    with pytest.raises(dptrain.ConfigError) as caught:
        load_model(start, names=dict(enumerate(NAMES)), **options)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_adapters_must_be_put_in_when_a_detector_is_loaded(start: Path) -> None:
    with pytest.raises(dptrain.ConfigError, match="no adapters"):
        set_trainable(load_model(start), "lora")


# --- one branch of two -----------------------------------------------------------------------------------------------


def test_a_head_with_one_branch_has_the_parameters_of_that_branch_only(start: Path) -> None:
    names = {head: {n for n, _ in load_model(start, 3, head=head).named_parameters()} for head in
             ("both", "one_to_many", "one_to_one")}  # fmt: skip
    one = {n for n in names["both"] if ".one2one_" in n}
    many = {n for n in names["both"] if n.startswith(("model.23.cv2.", "model.23.cv3."))}
    assert one and many
    assert names["one_to_many"] == names["both"] - one and names["one_to_one"] == names["both"] - many


def test_the_loss_of_one_branch_is_its_part_of_both(start: Path) -> None:
    batch = random_batch([3, 1])
    both = load_model(start, 3)
    with torch.no_grad():
        for head, weight in (("one_to_many", 1.0), ("one_to_one", 0.0)):
            wanted = PerImageLoss(weight)(both, batch)
            torch.testing.assert_close(PerImageLoss(0.3)(load_model(start, 3, head=head), batch), wanted)


def test_the_one_to_one_branch_trains_the_layers_before_it_when_it_is_the_only_one(start: Path) -> None:
    """Ultralytics detaches its features; alone, that would leave the backbone without a gradient."""
    model = load_model(start, 3, head="one_to_one")
    assert isinstance(model.model[-1], OneToOneDetect)
    PerImageLoss()(model, random_batch([3])).sum().backward()
    assert model.model[0].conv.weight.grad.any()


def test_a_branch_that_is_not_there_is_refused(start: Path, tmp_path: Path) -> None:
    file = save_weights(load_model(start, 3, head="one_to_many"), tmp_path / "one.pt")
    for model, head in ((file, "both"), ("yolov8n.yaml", "one_to_one")):
        with pytest.raises(dptrain.ModelError, match=rf"head={head}: .* has no one_to_one branch"):
            load_model(model, 3, head=head)
    assert load_model("yolov8n.yaml", 3, head="one_to_many")


# --- classes that the start does not have ----------------------------------------------------------------------------


def last(model: Any) -> list[nn.Conv2d]:
    head = model.model[-1]
    return [layers[-1] for branch in (head.cv3, head.one2one_cv3) for layers in branch]


def test_first_weights_of_new_classes(start: Path) -> None:
    names = {0: "emu", 1: "OWL", 2: "cell", 3: "yak"}
    old = last(load_model(start))
    for kind in ("zero", "mean"):
        model = load_model(start, names=names, new_classes=kind, similar={"cell": "Dog"})
        for new, before in zip(last(model), old, strict=True):
            assert new.bias is not None and before.bias is not None
            expected = before.weight.mean(0) if kind == "mean" else torch.zeros_like(before.weight[0])
            torch.testing.assert_close(new.weight[0], expected)
            assert torch.equal(new.weight[1], before.weight[2]) and torch.equal(new.weight[2], before.weight[1])
            assert new.bias[2] == before.bias[1] and (new.bias[[0, 3]] < -4).all()


def test_other_names_of_as_many_classes_begin_anew_if_that_is_asked_for(start: Path) -> None:
    old, names = last(load_model(start)), {0: "cat", 1: "emu", 2: "owl"}
    kept, zero = (last(load_model(start, names=names, new_classes=kind)) for kind in ("random", "zero"))
    for before, same, new in zip(old, kept, zero, strict=True):
        assert torch.equal(before.weight, same.weight)
        assert torch.equal(before.weight[[0, 2]], new.weight[[0, 2]]) and not new.weight[1].any()


def test_a_zero_class_head_learns_in_its_first_step() -> None:
    model = load_model("yolo26n.yaml", 3, new_classes="zero")
    assert not any(layer.weight.any() for layer in last(model))
    gradients = dptrain.per_sample_gradients(model, PerImageLoss(), random_batch([2, 1]))
    assert all(gradients[f"model.23.cv3.{level}.2.weight"].any() for level in range(3))
    for words, options in (("mean", {"new_classes": "mean"}), ("checkpoint", {"similar": {"a": "b"}})):
        with pytest.raises(dptrain.ConfigError, match=words):
            load_model("yolo26n.yaml", 3, **options)


LAST = "model.23.cv3.{}.2.{}"
ONE_TO_ONE = "model.23.one2one_cv3.{}.2.{}"


def _last_layers(*branches: str) -> list[str]:
    return [b.format(level, kind) for b in branches for level in range(3) for kind in ("weight", "bias")]


@pytest.mark.parametrize(
    ("names", "head", "branches"),
    [
        (["ball", "bat"], "auto", (LAST, ONE_TO_ONE)),
        (["cat", "bat"], "auto", (LAST, ONE_TO_ONE)),  # one that the start knows is in the same layers
        (["ball", "bat"], "one_to_many", (LAST,)),
        (["ball", "bat"], "one_to_one", (ONE_TO_ONE,)),
    ],
)
def test_new_classes_are_the_layers_that_the_checkpoint_did_not_fill(
    names: list[str], head: str, branches: tuple[str, ...], start: Path, tmp_path: Path
) -> None:
    model = load_model(start, names=dict(enumerate(names)), head=head, trainable="new_classes")
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert sorted(trained) == sorted(_last_layers(*branches))
    assert set_trainable(model, ["new_classes", "model.0.*"])[0].startswith("model.0.")
    again = load_model(save_weights(model, tmp_path / "last.pt"), names=dict(enumerate(names)))
    with pytest.raises(dptrain.ConfigError, match="the start has weights for every class of the data"):
        set_trainable(again, "new_classes")


@pytest.mark.parametrize("names", [NAMES, ["owl", "cat"], ["CAT", "dog", "bat"]])
def test_a_start_that_fills_every_layer_has_no_new_classes(names: list[str], start: Path) -> None:
    """Also with classes in another order, and with as many others: their rows stay what they were."""
    with pytest.raises(dptrain.ConfigError, match="the start has weights for every class of the data") as caught:
        load_model(start, names=dict(enumerate(names)), trainable="new_classes")
    assert "\n" not in str(caught.value)


def test_a_random_start_has_no_new_classes() -> None:
    with pytest.raises(dptrain.ConfigError, match="every layer of a random start is new"):
        load_model("yolo26n.yaml", 2, trainable="new_classes")
