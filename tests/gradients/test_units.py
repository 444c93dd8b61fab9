"""Units of several examples: averaged before the clip, by every engine, in one pass or in pieces."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dptrain
from dptrain import ModelError, UnitBatch
from dptrain.detection import load_model, per_image_losses
from dptrain.gradients import ENGINES
from dptrain.gradients.batches import batch_size, in_pieces, take_examples
from dptrain.gradients.units import Units

from ..detectors import random_batch, ultralytics_gradients
from .oracle import assert_same, clipped, of_units, one_at_a_time, projected_losses, squared_norms
from .test_engines import Cnn, Vit, images, in_double, seeded

losses = projected_losses()
UNITS = {"two of three": [0, 0, 0, 1, 1, 1], "of 1, 3 and 2": [0, 1, 1, 1, 2, 2], "one of all": [0] * 6,
         "six of one": [0, 1, 2, 3, 4, 5]}  # fmt: skip


def total_norm(gradients: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", [Cnn, Vit])
@pytest.mark.parametrize("units", UNITS.values(), ids=UNITS)
def test_a_units_gradient_is_the_mean_of_its_examples(
    kind: Callable[[], nn.Module], engine: str, units: list[int]
) -> None:
    module = seeded(kind)
    wanted = of_units(one_at_a_time(module, losses, images(6)), units)
    got = dptrain.per_sample_gradients(module, losses, images(6), engine, torch.tensor(units))
    assert_same(got, wanted, 1e-9, 1e-12)
    for clip_norm in (1e-9, 0.5 * float(squared_norms(wanted).max().sqrt()), 1e6):
        got = dptrain.clipped_gradient_sum(module, losses, images(6), clip_norm, engine, torch.tensor(units))
        expected = clipped(wanted, clip_norm)
        for name in wanted:
            scale = sum(min(clip_norm, float(s)) for s in squared_norms(wanted).sqrt())
            assert float((got[name] - expected[name]).norm()) <= 2e-5 * scale, name


def test_a_detector_with_units() -> None:
    torch.manual_seed(0)
    units = [0, 0, 0, 1]
    model, batch = in_double(load_model("yolo26n.yaml", 3, norm="group"), random_batch([2, 0, 5, 3]))
    wanted = of_units(ultralytics_gradients(model, batch), units)
    got = dptrain.per_sample_gradients(model, per_image_losses, batch, units=torch.tensor(units))
    assert_same(got, wanted, 1e-6, 1e-12)


@pytest.mark.parametrize("engine", ENGINES)
def test_no_unit_adds_more_than_the_clip_norm(engine: str) -> None:
    """Also one of many examples that all pull the same way."""
    module = Cnn().float()
    x = images(1).float().expand(12, -1, -1, -1) + 0.01 * images(12).float()
    for units in (torch.zeros(12).long(), torch.arange(12) // 4):
        got = dptrain.clipped_gradient_sum(module, lambda m, b: 1e5 * losses(m, b), x, 0.3, engine, units)
        count = int(units[-1]) + 1
        assert 0.3 * count * 0.99 < total_norm(got) <= 0.3 * count


@pytest.mark.parametrize("engine", ENGINES)
def test_equal_rows_are_one_of_them(engine: str) -> None:
    module, x = seeded(Vit), images(2)
    alone = dptrain.clipped_gradient_sum(module, losses, x, 0.5, engine)
    repeated = x.repeat_interleave(torch.tensor([3, 2]), 0)
    together = dptrain.clipped_gradient_sum(module, losses, repeated, 0.5, engine, torch.tensor([0, 0, 0, 1, 1]))
    for name in alone:
        torch.testing.assert_close(together[name], alone[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("kind", [Cnn, Vit])
def test_one_bad_row_makes_its_unit_zero_and_no_other(kind: Callable[[], nn.Module], bad: float, engine: str) -> None:
    module = kind().float()
    x = images(6).float()
    x[3] = bad
    spread = projected_losses(lambda m, x: m(x) * x.flatten(1).mean(1, keepdim=True) ** 2)
    units = torch.tensor([0, 0, 1, 1, 1, 2])
    got = dptrain.clipped_gradient_sum(module, spread, x, 0.5, engine, units)
    others = dptrain.clipped_gradient_sum(module, spread, x[[0, 1, 5]], 0.5, engine, torch.tensor([0, 0, 1]))
    for name in got:
        torch.testing.assert_close(got[name], others[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("pieces", [1, 2, 4, 5])
@pytest.mark.parametrize("kind", [Cnn, Vit])
def test_a_unit_in_pieces_is_the_same_unit(kind: Callable[[], nn.Module], pieces: int) -> None:
    """Its pieces are added up, and clipped once."""
    module, x, units = seeded(kind), images(5), torch.zeros(5).long()
    for clip_norm in (0.1, 1e6):
        whole = dptrain.clipped_gradient_sum(module, losses, x, clip_norm, units=units)
        parts = dptrain.clipped_gradient_sum(module, losses, x, clip_norm, units=units, examples_at_once=pieces)
        for name in whole:
            torch.testing.assert_close(parts[name], whole[name], rtol=1e-8, atol=1e-12)
    x[4] = math.nan
    spoilt = dptrain.clipped_gradient_sum(module, losses, x, 0.1, units=units, examples_at_once=pieces)
    assert not any(bool(g.any()) for g in spoilt.values())


def test_no_unit_is_ever_split() -> None:
    units = torch.tensor([0, 0, 0, 1, 2, 2])
    batch = UnitBatch((torch.arange(6), torch.arange(6.0)), units)
    assert batch_size(batch) == 3
    pieces = in_pieces(batch, 2)
    assert [piece.units.tolist() for piece in pieces] == [[0, 0, 0, 1], [0, 0]]
    assert [piece.examples[0].tolist() for piece in pieces] == [[0, 1, 2, 3], [4, 5]]
    assert take_examples(batch, 1, 2).examples[1].tolist() == [3.0]
    assert batch_size(UnitBatch(torch.zeros(0, 2), torch.zeros(0).long())) == 0


def test_units_of_images_with_boxes_are_taken_whole() -> None:
    batch = UnitBatch(random_batch([1, 2, 0, 3]), torch.tensor([0, 0, 1, 1]))
    rest = take_examples(batch, 1, 2).examples
    assert rest["img"].shape[0] == 2 and rest["batch_idx"].tolist() == [1.0, 1.0, 1.0]


WRONG: dict[str, Any] = {
    "a gap": [0, 2, 2, 2], "going back": [0, 1, 0, 0], "not from 0": [1, 1, 1, 2], "fractions": [0.0, 0.0, 1.0, 1.0],
    "truths": [False, False, True, True], "a table": [[0, 0, 1, 1]],
}  # fmt: skip


@pytest.mark.parametrize("units", WRONG.values(), ids=WRONG)
def test_units_that_could_mean_something_else_are_refused(units: list[Any]) -> None:
    with pytest.raises(ModelError, match="units") as caught:
        dptrain.clipped_gradient_sum(seeded(Vit), losses, images(4), 1.0, units=torch.tensor(units))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("engine", ENGINES)
def test_every_example_needs_a_unit(engine: str) -> None:
    with pytest.raises(ModelError, match=r"4 .* units of 3 in all"):
        dptrain.clipped_gradient_sum(seeded(Vit), losses, images(4), 1.0, engine, torch.tensor([0, 0, 1]))
    with pytest.raises(ModelError, match="pieces"):
        dptrain.clipped_gradient_sum(
            seeded(Vit), losses, images(4), 1.0, engine, torch.zeros(5).long(), examples_at_once=2
        )


@pytest.mark.parametrize("engine", ENGINES)
def test_no_rows_are_no_units(engine: str) -> None:
    module, none = seeded(Cnn), torch.zeros(0).long()
    examples = dptrain.per_sample_gradients(module, losses, images(0), engine, none)
    sums = dptrain.clipped_gradient_sum(module, losses, images(0), 1.0, engine, none)
    assert all(len(g) == 0 for g in examples.values()) and not any(bool(g.any()) for g in sums.values())


class OncePerBatch(nn.Module):
    """Looks positions up once for the whole batch: a record of one example, which folds into any unit."""

    def __init__(self) -> None:
        super().__init__()
        self.positions, self.out = nn.Embedding(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x + self.positions(torch.zeros(2).long()).sum(0))


def test_a_layer_whose_rows_are_not_the_batchs_is_refused_by_name() -> None:
    x = torch.randn(4, 3, dtype=torch.float64)
    with pytest.raises(ModelError, match="'positions' saw a batch of 2 for 4 losses"):
        dptrain.clipped_gradient_sum(seeded(OncePerBatch), losses, x, 1.0, units=torch.tensor([0, 0, 1, 1]))


def test_rows_are_put_side_by_side_with_zeros_for_those_that_lack() -> None:
    units = Units(torch.tensor([0, 1, 1, 1, 2, 2]))
    assert (len(units), units.examples, units.most) == (3, 6, 3)
    examples = torch.arange(1.0, 7.0)
    assert units.even(examples).tolist() == [1, 0, 0, 2, 3, 4, 5, 6, 0]
    assert units.sums(examples).tolist() == [1, 9, 11] and units.means(examples).tolist() == [1, 3, 5.5]
    torch.testing.assert_close(units.shares(torch.ones(6)), torch.tensor([1, 1 / 3, 1 / 3, 1 / 3, 0.5, 0.5]))
    assert Units(torch.tensor([0, 0, 1, 1])).even(examples[:4]) is not None
