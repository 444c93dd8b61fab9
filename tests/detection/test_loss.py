"""The loss of every image is its own, and on one image it is Ultralytics' loss."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from ultralytics.utils.loss import E2ELoss

from dptrain.detection import LossSettings, PerImageLoss, load_model, loss, per_image_losses
from dptrain.detection.loss import one2many_weight

from ..detectors import FAMILIES, one_image, random_batch, stock_detector, ultralytics_loss, write_checkpoint


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(family: str) -> Any:
    torch.manual_seed(0)
    return load_model(f"{family}.yaml", 3)


def in_double(model: Any, batch: dict[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
    return copy.deepcopy(model).double(), {**batch, "img": batch["img"].double()}


def confident(model: Any) -> Any:
    """Return a copy with high scores and boxes that overlap the targets, so that the normaliser is well above 1."""
    model = copy.deepcopy(model)
    head = model.model[-1]
    with torch.no_grad():
        for level in [*head.cv3, *getattr(head, "one2one_cv3", ())]:
            level[-1].bias.fill_(1.0)
        for level in [*head.cv2, *getattr(head, "one2one_cv2", ())]:
            level[-1].bias.copy_(torch.linspace(0.5, 3.0, len(level[-1].bias)))
    return model


# --- equal to Ultralytics on a batch of one --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("boxes", "height", "width"), [(0, 64, 64), (1, 64, 64), (3, 96, 160), (40, 160, 64), (60, 64, 64)]
)
def test_a_batch_of_one_is_ultralytics_loss(model: Any, boxes: int, height: int, width: int) -> None:
    batch = random_batch([boxes], height, width, seed=boxes)
    ours, theirs = per_image_losses(model, batch), ultralytics_loss(model, batch)
    assert ours.shape == (1,)
    torch.testing.assert_close(ours[0], theirs, rtol=1e-5, atol=1e-5)

    double, batch = in_double(model, batch)
    parameters = {name: p for name, p in double.named_parameters() if p.requires_grad}
    got = torch.autograd.grad(per_image_losses(double, batch).sum(), list(parameters.values()))
    wanted = torch.autograd.grad(ultralytics_loss(double, batch), list(parameters.values()))
    for name, g, w in zip(parameters, got, wanted, strict=True):
        assert float((g - w).norm()) <= 1e-5 * float(w.norm()) + 1e-12, name


@pytest.mark.parametrize("gains", [(1.0, 2.0, 3.0), (0.0, 1.0, 0.0)])
def test_the_gains_are_those_of_ultralytics(model: Any, gains: tuple[float, float, float]) -> None:
    own, batch = copy.deepcopy(model), random_batch([5])
    own.args = SimpleNamespace(box=gains[0], cls=gains[1], dfl=gains[2], epochs=10)
    ours = PerImageLoss(settings=LossSettings(*gains))(model, batch)[0]
    torch.testing.assert_close(ours, ultralytics_loss(own, batch), rtol=1e-5, atol=1e-5)


def test_a_constant_takes_the_place_of_the_images_own_normaliser(model: Any) -> None:
    model, batch = confident(model), random_batch([40, 0, 2])
    one, two, own = (
        PerImageLoss(settings=LossSettings(normaliser=kind, constant=constant))(model, batch)
        for kind, constant in (("constant", 1.0), ("constant", 4.0), ("image", 1.0))
    )
    torch.testing.assert_close(one, 4 * two)
    assert (one >= own * (1 - 1e-5)).all() and torch.isclose(one[1], own[1]), "many boxes weigh more, none the same"
    assert one[0] > 1.02 * own[0]


def test_the_focal_weight_is_the_distance_from_the_target() -> None:
    scores, targets = torch.randn(2, 7, 3, requires_grad=True), torch.rand(2, 7, 3).round(decimals=1)
    with_gamma = {gamma: focal(scores, targets, gamma) for gamma in (0.0, 1.0, 2.5)}
    chance = scores.sigmoid()
    plain = -(targets * chance.log() + (1 - targets) * (1 - chance).log())
    for gamma, focused in with_gamma.items():
        torch.testing.assert_close(focused, plain * (targets - chance).abs() ** gamma)
    right = torch.tensor([[[0.0]]], requires_grad=True)
    focal(right, torch.tensor([[[0.5]]]), 1.0).sum().backward()
    assert right.grad is not None and torch.isfinite(right.grad).all(), "also where the score is right"


def focal(scores: Tensor, targets: Tensor, gamma: float) -> Tensor:
    head = SimpleNamespace(settings=LossSettings(focal_gamma=gamma))
    return loss._HeadLoss._class_loss(head, scores, targets)  # type: ignore[arg-type]


def test_boxes_longer_than_a_distance_can_express(model: Any) -> None:
    """The finest level takes boxes of 40 of its strides, where DFL ends at 15."""
    model, batch = copy.deepcopy(model), random_batch([2], 320)
    batch["bboxes"] = torch.tensor([[0.5, 0.5, 1.0, 0.9], [0.5, 0.4, 0.9, 0.8]])
    head = model.model[-1]
    with torch.no_grad():
        for branch in (head.cv2, getattr(head, "one2one_cv2", None)):
            for level, layers in enumerate(branch or ()):
                bins = torch.arange(head.reg_max) if head.reg_max > 1 else torch.tensor([14.0])
                layers[-1].bias.copy_((bins if level == 0 else -bins).repeat(4))
    ours, theirs = per_image_losses(model, batch), ultralytics_loss(model, batch)
    torch.testing.assert_close(ours[0], theirs, rtol=1e-5, atol=1e-5)


def test_gradients_reach_every_parameter_without_boxes(model: Any) -> None:
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(per_image_losses(model, random_batch([0, 0])).sum(), parameters)
    assert all(torch.isfinite(g).all() for g in gradients)


def test_a_trained_looking_model_from_a_checkpoint(family: str, tmp_path: Path) -> None:
    """With confident scores and boxes that overlap the targets, the assigner has ties and conflicts to settle."""
    model = confident(load_model(write_checkpoint(stock_detector(family, "abc"), tmp_path / "x.pt"), 3))
    model, batch = in_double(model, random_batch([0, 60, 7], 64, 96))
    losses = per_image_losses(model, batch)
    for i in range(3):
        wanted = ultralytics_loss(model, one_image(batch, i))
        torch.testing.assert_close(losses[i], wanted.to(losses.dtype), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weight", [1.0, 0.45, 0.1, 0.0])
def test_the_weight_of_the_one_to_many_head(weight: float) -> None:
    torch.manual_seed(0)
    model = load_model("yolo26n.yaml", 3)
    batch = random_batch([4])
    ours = PerImageLoss(weight)(model, batch)[0]
    torch.testing.assert_close(ours, ultralytics_loss(model, batch, one2many=weight), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("epochs", [1, 2, 7, 100])
def test_the_schedule_of_the_one_to_many_head_is_ultralytics(epochs: int) -> None:
    holder = stock_detector("yolo26n", "ab")
    holder.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5, epochs=epochs)
    criterion: Any = E2ELoss(holder)
    assert one2many_weight(0.0) == criterion.o2m == PerImageLoss().one2many
    for done in range(1, epochs + 3):
        criterion.update()
        ours = one2many_weight(done / max(epochs - 1, 1))
        assert ours == pytest.approx(criterion.o2m, abs=1e-12)
        assert max(1.0 - ours, 0.0) == pytest.approx(criterion.o2o, abs=1e-12)
    assert one2many_weight(-1.0) == 0.8


# --- image i alone ---------------------------------------------------------------------------------------------------


def test_one_images_boxes_never_change_anothers_gradient(model: Any) -> None:
    """Ultralytics' own loss fails this: more boxes on one image scale the gradients of the others."""
    few, many = random_batch([9, 1, 0, 2], seed=5), random_batch([9, 50, 0, 2], seed=6)
    for i in (0, 2, 3):  # the same boxes as before on every image but the second
        own_few, own_many = few["batch_idx"] == i, many["batch_idx"] == i
        for key in ("cls", "bboxes"):
            many[key][own_many] = few[key][own_few]
    many["img"] = few["img"].clone()
    many["img"][1] = torch.rand_like(many["img"][1])
    model, few = in_double(confident(model), few)
    _, many = in_double(model, many)
    parameters = {k: p for k, p in model.named_parameters() if p.requires_grad}
    before, after = per_image_losses(model, few), per_image_losses(model, many)
    assert not torch.isclose(before[1], after[1])
    for i in (0, 2, 3):
        torch.testing.assert_close(before[i], after[i], rtol=1e-9, atol=1e-12)
        old = torch.autograd.grad(before[i], list(parameters.values()), retain_graph=True)
        new = torch.autograd.grad(after[i], list(parameters.values()), retain_graph=True)
        for name, g, h in zip(parameters, old, new, strict=True):
            assert float((g - h).norm()) <= 1e-7 * float(g.norm()) + 1e-14, f"image {i}: {name}"


def test_the_gradient_of_one_loss_is_zero_on_the_other_images(model: Any) -> None:
    batch = random_batch([5, 2, 0])
    batch["img"].requires_grad_()
    losses = per_image_losses(model, batch)
    for i in range(3):
        (gradient,) = torch.autograd.grad(losses[i], batch["img"], retain_graph=True)
        others = [j for j in range(3) if j != i]
        assert not gradient[others].any() and gradient[i].any()


@pytest.fixture(scope="module")
def double(model: Any) -> Any:
    return confident(model).double()


SETTINGS = ((), (1.0, 1.0, 1.0, "constant", 3.0, 2.0))


@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    boxes=st.lists(st.sampled_from([0, 0, 1, 2, 5, 13]), min_size=2, max_size=5),
    size=st.sampled_from([(64, 64), (32, 96)]), seed=st.integers(0, 9),
)  # fmt: skip
def test_every_loss_is_that_of_the_image_alone(double: Any, boxes: list[int], size: tuple[int, int], seed: int) -> None:
    per_image_losses = PerImageLoss(settings=LossSettings(*SETTINGS[seed % len(SETTINGS)]))
    batch = random_batch(boxes, *size, seed=seed)
    batch["img"] = batch["img"].double()
    with torch.no_grad():
        together = per_image_losses(double, batch)
        alone = torch.cat([per_image_losses(double, one_image(batch, i)) for i in range(len(boxes))])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)


def test_the_order_of_images_and_of_boxes_is_no_matter(double: Any) -> None:
    batch = random_batch([4, 0, 2])
    batch["img"] = batch["img"].double()
    order = torch.tensor([2, 0, 1])
    shuffled = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    moved = {
        "img": batch["img"][order],
        "batch_idx": torch.argsort(order)[batch["batch_idx"].long()].float(),
        "cls": batch["cls"],
        "bboxes": batch["bboxes"],
    }
    by_image = torch.argsort(moved["batch_idx"][shuffled], stable=True)  # collate keeps an image's boxes together
    for key in ("batch_idx", "cls", "bboxes"):
        moved[key] = moved[key][shuffled][by_image]
    with torch.no_grad():
        got, wanted = per_image_losses(double, moved), per_image_losses(double, batch)[order]
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


def test_no_images() -> None:
    losses = per_image_losses(load_model("yolov8n.yaml", 3), random_batch([]))
    assert losses.shape == (0,)


# --- how it is computed ----------------------------------------------------------------------------------------------


def test_there_is_no_loop_over_images(model: Any) -> None:
    """The number of operations in the graph does not grow with the batch."""

    def operations(n: int) -> int:
        seen: set[Any] = set()
        todo = [per_image_losses(model, random_batch([2] * n)).sum().grad_fn]
        while todo:
            node = todo.pop()
            if node is not None and node not in seen:
                seen.add(node)
                todo += [parent for parent, _ in node.next_functions]
        return len(seen)

    assert operations(2) == operations(7)
    assert "range(" not in inspect.getsource(loss)


def test_it_asks_nothing_of_the_models_arguments(model: Any) -> None:
    """The gains are Ultralytics' own defaults, whatever a checkpoint carried; class weights have no effect."""
    batch = random_batch([3, 1])
    wanted = per_image_losses(model, batch)
    bare = copy.deepcopy(model)
    bare.args = {}
    bare.class_weights = torch.tensor([1.0, 5.0, 9.0])
    torch.testing.assert_close(per_image_losses(bare, batch), wanted)
