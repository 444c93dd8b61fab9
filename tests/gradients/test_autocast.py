"""Under autocast the layers compute in bfloat16; norms, clipping and sums never do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dptrain
from benchmarks import modules

CLIP_NORM = 0.01  # below every example's norm


def bf16() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def inside(module: Any, batch: Any) -> Tensor:
    with bf16():
        return modules.losses(module, batch)


def around(function: Callable[..., Any], module: nn.Module, batch: Any, *arguments: Any, **more: Any) -> Any:
    with bf16():
        return function(module, modules.losses, batch, *arguments, **more)


def within(function: Callable[..., Any], module: nn.Module, batch: Any, *arguments: Any, **more: Any) -> Any:
    return function(module, inside, batch, *arguments, **more)


def case(name: str, n: int) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    module = modules.Cnn(16, width=16) if name == "cnn" else modules.Vit(16, width=32, depth=2, heads=2, patch=4)
    return module, modules.random_batch(n, 16)


@pytest.mark.parametrize("name", ["cnn", "vit"])
@pytest.mark.parametrize("call", [around, within])
def test_norms_and_sums_are_in_full_precision(name: str, call: Callable[..., Any]) -> None:
    module, batch = case(name, 1)
    for gradients in (call(dptrain.per_sample_gradients, module, batch),
                      call(dptrain.clipped_gradient_sum, module, batch, CLIP_NORM)):  # fmt: skip
        assert {value.dtype for value in gradients.values()} == {torch.float32}
    norm = torch.stack([value.double().square().sum() for value in gradients.values()]).sum().sqrt()
    assert CLIP_NORM * 0.9999 < float(norm) <= CLIP_NORM  # bfloat16 alone would be off by 0.4 percent


@pytest.mark.parametrize("name", ["cnn", "vit"])
@pytest.mark.parametrize("call", [around, within])
def test_the_gradients_are_those_that_autocast_gives_one_example_at_a_time(name: str, call: Callable[..., Any]) -> None:
    module, batch = case(name, 4)
    full = dptrain.per_sample_gradients(module, modules.losses, batch)
    wanted = within(dptrain.per_sample_gradients, module, batch, engine="microbatch")
    got = call(dptrain.per_sample_gradients, module, batch)
    scale = sum(float(rows.norm()) ** 2 for rows in full.values()) ** 0.5
    off = {name: sum(float((a[k] - b[k]).norm()) ** 2 for k in full) ** 0.5 / scale
           for name, (a, b) in {"full": (got, full), "bf16": (got, wanted)}.items()}  # fmt: skip
    assert off["bf16"] < 0.02
    assert off["full"] > 1e-4  # it did compute in bfloat16


def test_a_module_that_computes_in_double_stays_there() -> None:
    layer = nn.Linear(8, 4).double()
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    with bf16():
        total = dptrain.clipped_gradient_sum(layer, lambda m, v: F.silu(m(v)).sum((1, 2)), x, 1.0)
    assert {value.dtype for value in total.values()} == {torch.float64}
