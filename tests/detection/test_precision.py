"""Passes in bfloat16: gradients are clipped as in single precision, and no image has a part in another's.

Tried on the CPU, whose autocast computes the same layers in bfloat16 as a GPU's.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dptrain
from dptrain import ConfigError
from dptrain.detection import load_model
from dptrain.detection import precision as rule
from dptrain.detection.loss import PerImageLoss
from dptrain.detection.precision import settle_precision
from dptrain.gradients.autotune import by_rule

from ..detectors import random_batch, stock_detector, write_checkpoint

SIDE = 96
CASES = ("yolo26n group", "yolov8n group", "yolo26n frozen_bn")


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("bf16")

    def make(case: str) -> Any:
        name, norm = case.split()
        start = f"{name}.yaml"
        if norm == "frozen_bn":
            start = str(write_checkpoint(stock_detector(name, "abc"), folder / f"{name}.pt"))
        torch.manual_seed(0)
        return load_model(start, 3, norm=norm)

    return make


def length(sums: dict[str, Tensor]) -> float:
    return float(torch.stack([value.double().square().sum() for value in sums.values()]).sum().sqrt())


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return length({name: one[name].double() - other[name].double() for name in one})


def oracle(model: Any, loss: PerImageLoss, batch: dict[str, Tensor], clip_norm: float) -> dict[str, Tensor]:
    """The clipped sum by plain autograd over one pass, an image at a time, clipped by hand in double precision."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    losses = loss(model, batch)
    total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in parameters.items()}
    for one in losses:
        found = torch.autograd.grad(one, list(parameters.values()), retain_graph=True, allow_unused=True)
        own = {name: g.double() for name, g in zip(parameters, found, strict=True) if g is not None}
        factor = min(1.0, clip_norm / length(own))
        for name, gradient in own.items():
            total[name] += factor * gradient
    return total


@pytest.mark.parametrize("case", CASES)
def test_the_clipped_sum_in_bf16_is_that_of_plain_autograd_in_bf16(
    case: str, detector: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Group norms are in single precision, as under a GPU's autocast; a CPU's leaves them in bfloat16."""
    real = nn.GroupNorm.forward
    monkeypatch.setattr(nn.GroupNorm, "forward", lambda self, x: real(self, x.float()))
    model, loss, batch = detector(case), PerImageLoss(precision="bf16"), random_batch([2, 5, 1], SIDE)
    with by_rule():
        found = dptrain.clipped_gradient_sum(model, loss, batch, 0.5)
        full = dptrain.clipped_gradient_sum(model, PerImageLoss(), batch, 0.5)
    wanted = oracle(model, loss, batch, 0.5)
    wanted = {name: wanted[name] for name in found}
    assert apart(found, wanted) < 0.05 * length(wanted)
    assert apart(found, full) > 1e-3 * length(full), "it did not compute in bfloat16"


@pytest.mark.parametrize("case", CASES)
def test_no_image_adds_more_than_the_clip_norm_and_sums_are_in_single_precision(case: str, detector: Any) -> None:
    model, loss = detector(case), PerImageLoss(precision="bf16")
    for boxes in (1, 7):
        batch = random_batch([boxes], SIDE, seed=boxes)
        with by_rule():
            own = dptrain.per_sample_gradients(model, loss, batch)
            found = dptrain.clipped_gradient_sum(model, loss, batch, 1e-3)
        assert {value.dtype for value in found.values()} == {torch.float32}
        assert 1e-3 * (1 - 2e-5) < length(found) <= 1e-3
        norm = length(own)
        scaled = {name: value[0].double() * (1e-3 / norm) for name, value in own.items()}
        assert apart(found, scaled) < 1e-3 * 3e-5  # a sum in bfloat16 would be off by 1e-3 of it


@pytest.mark.parametrize("case", CASES)
def test_one_image_more_changes_the_sum_in_bf16_by_its_own_gradient_alone(case: str, detector: Any) -> None:
    """Wherever in the pass it comes: all passes have one shape, and blank images fill them up."""
    model, loss = detector(case), PerImageLoss(precision="bf16")
    four = random_batch([2, 5, 1, 3], SIDE)
    with by_rule():
        whole = dptrain.clipped_gradient_sum(model, loss, four, 0.5, examples_at_once=5)
        for place in range(4):
            others = [index for index in range(4) if index != place]
            less = dptrain.clipped_gradient_sum(model, loss, chosen(four, others), 0.5, examples_at_once=5)
            own = dptrain.clipped_gradient_sum(model, loss, chosen(four, [place]), 0.5, examples_at_once=5)
            moved = {name: whole[name].double() - less[name].double() for name in whole}
            assert length(moved) <= 0.5 * (1 + 1e-5)
            assert apart(moved, own) < 1e-4 * 0.5


@pytest.mark.parametrize("case", CASES)
def test_what_is_predicted_in_bf16_is_the_same_to_the_last_bit_in_every_place_of_a_pass(
    case: str, detector: Any
) -> None:
    """A box that is tied between two anchors then goes to the same one, whoever is beside its image."""
    model, loss, batch = detector(case), rule._Watched(precision="bf16"), random_batch([2] * 5, SIDE)
    found = []
    for shift in (0, 1, 3):
        moved = {**batch, "img": batch["img"].roll(shift, 0)}
        with by_rule():
            dptrain.clipped_gradient_sum(model, loss, moved, 1.0, examples_at_once=5)
        found.append([tensor.roll(-shift, 0) for tensor in loss.seen])
    assert all(torch.equal(one, other) for moved in found[1:] for one, other in zip(found[0], moved, strict=True))


def chosen(batch: dict[str, Tensor], images: list[int]) -> dict[str, Tensor]:
    rows = [batch["batch_idx"] == index for index in images]
    return {
        "img": batch["img"][images],
        "batch_idx": torch.cat([torch.full((int(own.sum()),), float(n)) for n, own in enumerate(rows)]),
        **{key: torch.cat([batch[key][own] for own in rows]) for key in ("cls", "bboxes")},
    }


def test_what_is_wanted_is_settled(detector: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, loss = detector("yolo26n group"), PerImageLoss()
    assert settle_precision("auto", model, loss, 64, 4) == "fp32"  # on a CPU
    assert settle_precision("fp32", model, loss, 64, 4) == "fp32"
    assert settle_precision("bf16", model, loss, 64, 4) == "bf16"
    monkeypatch.setattr(rule, "_has_bf16", lambda device: True)
    assert settle_precision("auto", model, loss, 64, 4) == "bf16"
    with pytest.raises(ConfigError, match="precision=bf16 is not safe here"):
        settle_precision("bf16", model, loss, 64, 4, "opacus")


def _not_finite(self: PerImageLoss, model: Any, batch: Any) -> Tensor:
    return _real(self, model, batch) * torch.inf


def _failing(self: PerImageLoss, model: Any, batch: Any) -> Tensor:
    raise RuntimeError("expected scalar type BFloat16 but found Float")


_real = PerImageLoss.__call__


@pytest.mark.parametrize(
    ("bad", "said"), [(_not_finite, "an image adds 0 "), (_failing, "a pass fails: expected scalar type")]
)
def test_where_a_trial_fails_auto_is_fp32_and_bf16_is_refused(
    bad: Any, said: str, detector: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, loss = detector("yolo26n group"), PerImageLoss()
    monkeypatch.setattr(rule, "_has_bf16", lambda device: True)
    monkeypatch.setattr(PerImageLoss, "__call__", bad)
    assert settle_precision("auto", model, loss, 64, 4) == "fp32"
    with pytest.raises(ConfigError, match=said):
        settle_precision("bf16", model, loss, 64, 4)


def test_arithmetic_that_depends_on_the_place_is_refused(detector: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, loss = detector("yolo26n group"), PerImageLoss()
    real = PerImageLoss._predicted

    def by_place(self: PerImageLoss, model: Any, images: Tensor) -> Any:
        scale = 1 + 0.2 * torch.arange(len(images)).view(-1, 1, 1, 1)
        return real(self, model, images * scale)

    monkeypatch.setattr(PerImageLoss, "_predicted", by_place)
    with pytest.raises(ConfigError, match="with its place"):
        settle_precision("bf16", model, loss, 64, 4)
