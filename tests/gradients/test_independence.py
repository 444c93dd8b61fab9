"""A loss or a layer that looks at other examples is refused, whoever wrote it."""

from __future__ import annotations

import random
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dptrain
from dptrain import ModelError

from ..detectors import random_batch

Pair = namedtuple("Pair", ["x", "y"])
ENGINES = ["fused", "opacus"]


def batch(n: int, width: int = 6) -> Pair:
    generator = torch.Generator().manual_seed(1)
    return Pair(torch.randn(n, width, generator=generator), torch.arange(n) % 3)


class Net(nn.Module):
    """Two linear layers with something of its own between them."""

    def __init__(self, between: Callable[[Tensor], Tensor] = F.relu, p: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.one, self.two, self.between, self.drop = nn.Linear(6, 8), nn.Linear(8, 3), between, nn.Dropout(p)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.drop(self.between(self.one(x))))


def losses(module: nn.Module, rows: Any) -> Tensor:
    return F.cross_entropy(module(rows[0]), rows[1], reduction="none")


def contrastive(module: nn.Module, rows: Any) -> Tensor:
    """Every other example of the batch is a negative one."""
    features = F.normalize(module(rows[0]))
    return F.cross_entropy(features @ features.T, torch.arange(len(features)), reduction="none")


def over_the_batchs_targets(module: nn.Module, rows: Any) -> Tensor:
    """As Ultralytics divides its losses."""
    return losses(module, rows) / rows[1].sum().clamp(min=1) * len(rows[1])


def hardest(module: nn.Module, rows: Any) -> Tensor:
    own = losses(module, rows)
    return own * (own.detach() == own.detach().max())


LOSSES = {
    "mean taken off": lambda m, b: losses(m, b) - losses(m, b).mean(),
    "divided by the batch size": lambda m, b: losses(m, b) / len(b[1]),
    "targets of the batch": over_the_batchs_targets,
    "hardest example only": hardest,
    "contrastive": contrastive,
    "the one before": lambda m, b: losses(m, b) + 0.1 * losses(m, b).roll(1),
    "the one after": lambda m, b: losses(m, b) + 0.1 * losses(m, b).roll(-1),
    "a little": lambda m, b: losses(m, b) * (1 + 0.01 * b[0].sum().tanh()),
}
LAYERS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax over the batch": lambda h: h.softmax(0),
    "functional batch norm": lambda h: F.batch_norm(h, None, None, training=True),
    "largest of the batch": lambda h: h / h.detach().abs().max(),
    "in a random pass": lambda h: F.dropout(h - h.mean(0), 0.5),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_a_loss_that_looks_at_the_batch_is_refused(loss: Any, engine: str) -> None:
    for n in (2, 3, 7):
        with pytest.raises(ModelError, match="of one example changed") as caught:
            dptrain.check_independence(Net(), loss, batch(n), engine)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("between", LAYERS.values(), ids=LAYERS.keys())
def test_a_layer_that_looks_at_the_batch_is_refused(between: Callable[[Tensor], Tensor], engine: str) -> None:
    for n in (2, 3, 7):
        with pytest.raises(ModelError, match="of one example changed"):
            dptrain.check_independence(Net(between), losses, batch(n), engine)


class Positions(nn.Module):
    """A learnt vector for each of T places, looked up once for the whole batch: its rows are places, not examples."""

    def __init__(self, places: int) -> None:
        super().__init__()
        self.places, self.out = nn.Embedding(places, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out((x.unsqueeze(2) + self.places(torch.arange(x.shape[1]))).mean(1))


@pytest.mark.parametrize("places", [1, 2, 3, 4])
def test_a_layer_whose_rows_are_as_many_as_the_examples_by_chance_is_refused(places: int) -> None:
    """With n == T the engine would take places for examples, and give wrong gradients without an error."""
    for n in (2, 3, 4):
        with pytest.raises(ModelError, match=r"'places' saw a batch|of one example changed"):
            dptrain.check_independence(Positions(places), losses, batch(n, places))


@pytest.mark.parametrize("engine", [*ENGINES, "microbatch"])
@pytest.mark.parametrize("n", [2, 3, 5])
def test_what_is_independent_passes_and_leaves_no_trace(n: int, engine: str) -> None:
    for module in (Net(), Net(p=0.5), *([] if engine == "opacus" else [Net().bfloat16()])):
        kind = next(module.parameters()).dtype
        own = batch(n)._replace(x=batch(n).x.to(kind))
        before = {name: value.clone() for name, value in module.state_dict().items()}
        state = torch.get_rng_state()
        assert dptrain.check_independence(module, losses, own, engine)
        assert torch.equal(state, torch.get_rng_state()), "the run's random numbers moved"
        assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
        assert all(p.grad is None and not hasattr(p, "grad_sample") for p in module.parameters())
        assert not any(layer._forward_hooks or "forward" in layer.__dict__ for layer in module.modules())


def test_under_autocast_only_rounding_differs() -> None:
    def in_half(module: nn.Module, rows: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return losses(module, rows)

    assert dptrain.check_independence(Net(), in_half, batch(4))
    with pytest.raises(ModelError, match=r"left out|exchanged"):
        dptrain.check_independence(Net(), lambda m, b: in_half(m, b) - in_half(m, b).mean(), batch(4))


def test_batches_of_every_form() -> None:
    x, y = batch(4)
    named = {"x": x, "temperature": torch.tensor(2.0), "weights": torch.ones(3), "name": ["a", "b", "c", "d"], "y": y}

    def weighed(module: nn.Module, rows: Any) -> Tensor:
        return F.cross_entropy(module(rows["x"]) / rows["temperature"], rows["y"], rows["weights"], reduction="none")

    for rows, loss in (((x, y), losses), ([x, y], losses), (named, weighed), (x, lambda m, b: m(b).square().sum(1))):
        assert dptrain.check_independence(Net(), loss, rows)
        with pytest.raises(ModelError):
            dptrain.check_independence(Net(), lambda m, b, loss=loss: loss(m, b) * loss(m, b).sum(), rows)
    with pytest.raises(ModelError, match="number of examples of a set"):
        dptrain.check_independence(Net(), losses, {1})
    with pytest.raises(ModelError, match="at least two"):
        dptrain.check_independence(Net(), losses, batch(1))


def test_an_image_keeps_its_own_boxes_when_others_are_exchanged() -> None:
    """The rows of a detection batch belong to images by their number."""

    def boxes_of(module: nn.Module, rows: Any) -> Tensor:
        n = len(rows["img"])
        areas = torch.zeros(n).index_add(0, rows["batch_idx"].long(), rows["bboxes"][:, 2:].prod(1))
        return F.cross_entropy(module(rows["img"]), areas.gt(0.2).long(), reduction="none") * (1 + areas)

    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    for boxes in ([0, 3, 2], [4, 1], [1, 0, 5, 2]):
        rows = random_batch(boxes, 16)
        assert dptrain.check_independence(module, boxes_of, rows)
        with pytest.raises(ModelError, match="changed"):
            dptrain.check_independence(module, lambda m, b: boxes_of(m, b) / (1 + len(b["cls"])), rows)


def test_an_example_that_is_not_finite_harms_only_itself() -> None:
    for bad in range(3):
        rows = batch(3)
        rows.x[bad] = torch.nan
        assert dptrain.check_independence(Net(), losses, rows)
        with pytest.raises(ModelError, match="changed"):
            dptrain.check_independence(Net(lambda h: h - h.mean(0)), losses, rows)


def test_a_batch_in_which_nothing_can_be_seen_is_no_pass() -> None:
    assert not dptrain.check_independence(Net(), lambda m, b: losses(m, b) * 0.0, batch(3))


def test_random_numbers_that_cannot_be_repeated_are_refused() -> None:
    with pytest.raises(ModelError, match=r"torch\.manual_seed"):
        dptrain.check_independence(Net(), lambda m, b: losses(m, b) * random.random(), batch(3))
