"""What a pass asks of its device: on a GPU every answer is waited for, with nothing computed meanwhile.

No GPU is needed to count the questions: torch dispatches the same operations on a CPU.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import dptrain
from benchmarks import modules
from dptrain.detection import load_model
from dptrain.detection.loss import PerImageLoss
from dptrain.gradients import fused
from dptrain.gradients.autotune import by_rule
from dptrain.privacy import noise
from dptrain.privacy.streams import NoiseStream

_ASK = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::is_nonzero",
    "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "aten::repeat_interleave.Tensor",
}  # fmt: skip

# The passes of a detector ask this, by function and as often as heads call it, and nothing else.
ALLOWED = {
    "tal.py": "Ultralytics' assigner: how many boxes the images have, and whether an anchor serves two of them",
    "loss.py": "the pairs of boxes and anchors, and the anchors that boxes went to: sums over all anchors would round "
    "otherwise, and take more memory; Ultralytics' padding of the boxes",
}


class Questions(TorchDispatchMode):
    """Counts, by the file that asks, operations whose result or shape must be known to the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None):  # type: ignore[no-untyped-def]
        name = function._schema.name
        indices = args[1] if name in ("aten::index", "aten::index_put", "aten::index_put_") else ()
        by_mask = any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in indices)
        if name in _ASK or by_mask:
            frames = [f for f in traceback.extract_stack() if "torch/" not in f.filename and f.filename != __file__]
            self.asked[Path(frames[-1].filename).name] += 1
        return function(*args, **(kwargs or {}))


def batch_of(count: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "img": torch.rand((count, 3, 64, 64), generator=generator),
        "batch_idx": torch.arange(count).repeat_interleave(3).float(),
        "cls": torch.zeros(3 * count, 1),
        "bboxes": torch.rand((3 * count, 4), generator=generator) * 0.3 + 0.3,
    }


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_asks_for_nothing", lambda device: True)


def asked(module: nn.Module, loss: Any, batch: Any, **how: Any) -> Counter[str]:
    with by_rule(), Questions() as questions:
        dptrain.clipped_gradient_sum(module, loss, batch, 1.0, **how)
    return questions.asked


@pytest.mark.parametrize("name", ["yolo26n.yaml", "yolov8n.yaml"])
def test_a_pass_of_a_detector_asks_what_its_assigner_does_and_nothing_else(name: str, as_on_a_gpu: None) -> None:
    found = [asked(load_model(name, 1, norm="group"), PerImageLoss(), batch_of(n), examples_at_once=4) for n in (3, 4)]
    assert found[0] == found[1], "the questions grow with the batch"
    assert set(found[0]) <= set(ALLOWED) and found[0].total() <= 10 * (2 if "26" in name else 1)


@pytest.mark.parametrize("units", [None, torch.tensor([0, 0, 1, 2])])
def test_a_pass_of_any_other_module_asks_nothing(units: Tensor | None, as_on_a_gpu: None) -> None:
    module = modules.Cnn(16, width=16)
    found = asked(module, modules.losses, modules.random_batch(4, 16), units=units)
    assert not found if units is None else set(found) <= {"units.py"}


def test_on_a_cpu_a_pass_asks_once_whether_all_is_finite() -> None:
    found = asked(modules.Cnn(16, width=16), modules.losses, modules.random_batch(4, 16))
    assert found == {"fused.py": 1}


def test_the_door_asks_once_however_many_parameters_there_are() -> None:
    value = {str(number): torch.zeros(number + 1) for number in range(50)}
    with Questions() as questions:
        noise.privatize(value, sensitivity=1.0, noise_multiplier=1.0, stream=NoiseStream())
    assert questions.asked == {"noise.py": 1}


@pytest.mark.parametrize("bad", [0, 1, 4])
def test_sums_are_the_same_to_the_last_bit_asked_or_not(bad: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where examples that are not finite are dropped."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 40, 3), nn.GroupNorm(4, 40), nn.SiLU(), nn.Flatten(), nn.Linear(40 * 36, 3))
    x = torch.randn(4, 3, 8, 8)
    x[:bad] = torch.inf
    sums = []
    for asks in (True, False):
        monkeypatch.setattr(fused, "_asks_for_nothing", lambda device, asks=asks: not asks)
        with by_rule():
            sums.append(dptrain.clipped_gradient_sum(module, lambda m, v: m(v).square().sum(1), x, 1e-3))
    norm = torch.stack([value.double().norm() for value in sums[0].values()]).norm()
    assert (float(norm) > 0) == (bad < 4) and float(norm) < 4e-3
    assert all(torch.equal(sums[0][name], sums[1][name]) for name in sums[0])
