"""A batch that is filled up with blank examples is the same batch, and every pass has one shape."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dptrain
from dptrain.gradients import ENGINES, UnitBatch
from dptrain.gradients.batches import batch_size, fill_up


class Losses:
    """Per-example losses that note the shape of every pass; a blank example's loss and gradient are not finite."""

    def __init__(self, spoilt: bool) -> None:
        self.spoilt, self.shapes = spoilt, []

    def __call__(self, module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        self.shapes.append(len(x))
        found = F.cross_entropy(module(x), y, reduction="none")
        return found / x.abs().flatten(1).sum(1) if self.spoilt else found


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(32, 3),
    )  # fmt: skip


def examples(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn((count, 2, 6, 6), generator=generator), torch.arange(count) % 3


@pytest.mark.parametrize("spoilt", [False, True])
@pytest.mark.parametrize("units", [None, [0, 0, 1, 2, 2]])
@pytest.mark.parametrize("engine", ENGINES)
def test_blank_examples_add_nothing_even_where_their_gradient_is_not_finite(
    engine: str, units: list[int] | None, spoilt: bool
) -> None:
    module, batch = network(), examples(5)
    of_example = None if units is None else torch.tensor(units)
    seen = Losses(spoilt)
    for clip in (0.01, 100.0, dptrain.Clipping("scaled", scales=(("0", 4.0), ("1", 1.0), ("5", 0.5)))):
        rule = clip.rule(0.1, dict(module.named_parameters())) if isinstance(clip, dptrain.Clipping) else clip
        plain = dptrain.clipped_gradient_sum(module, Losses(spoilt), batch, rule, engine, of_example)
        filled = dptrain.clipped_gradient_sum(module, seen, batch, rule, engine, of_example, examples_at_once=8)
        torch.testing.assert_close(filled, plain, rtol=1e-5, atol=1e-7)
    assert set(seen.shapes) == ({1} if engine == "microbatch" else {8}), "a pass of another shape"


def test_an_empty_batch_stays_empty() -> None:
    found = dptrain.clipped_gradient_sum(network(), Losses(False), examples(0), 1.0, examples_at_once=4)
    assert all(not bool(gradient.any()) for gradient in found.values())


def test_batches_of_every_kind_are_filled_up() -> None:
    x, y = examples(3)
    assert [len(part) for part in fill_up((x, y), 5)] == [5, 5]
    assert not fill_up(x, 5)[3:].any() and torch.equal(fill_up(x, 5)[:3], x)
    assert fill_up(x, 2) is x
    images: dict[str, Any] = {"img": x, "batch_idx": torch.tensor([0.0, 2.0]), "cls": torch.ones(2, 1)}
    filled = fill_up({**images, "bboxes": torch.ones(2, 4), "scale": torch.ones(7)}, 6)
    assert len(filled["img"]) == 6 and len(filled["cls"]) == 2 and len(filled["scale"]) == 7
    units = fill_up(UnitBatch(x, torch.tensor([0, 0, 1])), 8)
    assert units.units.tolist() == [0, 0, 1, 2, 2, 3, 3, 4] and batch_size(units) == 5 and len(units.examples) == 8
