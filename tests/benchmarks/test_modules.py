"""The networks of the benchmarks: the gradients that are timed are the right ones."""

from __future__ import annotations

import pytest
import torch

import dptrain
from benchmarks import modules
from benchmarks.cases import Case
from benchmarks.steps import detector, random_batch
from dptrain.detection import per_image_losses

ENGINES = ("fused", "opacus")


def small(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    module = modules.Cnn(16, width=8) if name == "cnn" else modules.Vit(16, width=16, depth=2, heads=2, patch=4)
    return module.double()


def examples(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = modules.random_batch(n, 16)
    return images.double(), labels


@pytest.mark.parametrize("name", modules.MODULES)
@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_and_clipped_sums_are_those_of_one_example_at_a_time(name: str, engine: str) -> None:
    module, batch = small(name), examples(5)
    wanted = dptrain.per_sample_gradients(module, modules.losses, batch, "microbatch")
    got = dptrain.per_sample_gradients(module, modules.losses, batch, engine)
    assert list(got) == list(wanted)
    for key, rows in wanted.items():
        torch.testing.assert_close(got[key], rows, rtol=1e-9, atol=1e-12, msg=key)
    norms = torch.stack([g.flatten(1).square().sum(1) for g in wanted.values()]).sum(0).sqrt()
    clip_norm = float(norms.median())
    total = dptrain.clipped_gradient_sum(module, modules.losses, batch, clip_norm, engine)
    reference = dptrain.clipped_gradient_sum(module, modules.losses, batch, clip_norm, "microbatch")
    for key in wanted:
        torch.testing.assert_close(total[key], reference[key], rtol=2e-5, atol=2e-5 * clip_norm, msg=key)


def test_a_detector_with_frozen_statistics_is_one_that_trains() -> None:
    module = detector(Case("gradients", "time", pixels=64, images=1, norm="frozen_bn"))
    total = dptrain.clipped_gradient_sum(module, per_image_losses, random_batch(1, 64), 1.0)
    assert all(bool(torch.isfinite(value).all()) for value in total.values())
