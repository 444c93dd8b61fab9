"""How many images are held at once is a public matter."""

from __future__ import annotations

import pytest
import torch

from dptrain.detection import load_model, memory

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return load_model("yolo26n.yaml", num_classes=2, norm="group")


def test_more_memory_holds_more_images(model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    one = memory.bytes_of_one(model, 64, CPU)
    assert 1 << 20 < one < 100 << 20

    def chosen(images: float, expected: int = 1000) -> int:
        monkeypatch.setattr(memory, "memory_of", lambda device: int(4 * one * images) + 1)
        return memory.physical_batch_size(model, 64, expected, CPU)

    assert [chosen(images) for images in (0.2, 1, 3, 8, 1e6)] == [1, 1, 2, 8, memory.MOST_ON_CPU]
    assert chosen(1e6, expected=5) == 8, "most draws fit in one pass"
    assert chosen(3, expected=5) == 2


@pytest.mark.parametrize("imgsz", [64, 128, 320, 640])
def test_few_images_of_a_pass_are_blank(imgsz: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of draws of 256: a pass is filled up to the size that is chosen from the draw's declared size and spread."""
    monkeypatch.setattr(memory, "memory_of", lambda device: 1 << 45)
    monkeypatch.setattr(memory, "bytes_of_one", lambda *_: 1)
    size = memory.physical_batch_size(torch.nn.Identity(), imgsz, 256, CPU, sample_rate=0.02)
    drawn = torch.distributions.Poisson(256.0).sample((20_000,))
    assert float((drawn / size).ceil().mean()) * size / 256 - 1 < 0.052
    assert memory.physical_batch_size(torch.nn.Identity(), 128, 64, CPU, sample_rate=1.0) == 32  # two full passes


def test_a_larger_image_takes_more_memory(model: torch.nn.Module) -> None:
    assert memory.bytes_of_one(model, 128, CPU) > 3 * memory.bytes_of_one(model, 64, CPU)


def test_looking_for_the_size_leaves_no_trace(model: torch.nn.Module) -> None:
    """Neither in the run's random numbers nor in the model."""
    state, weights = torch.get_rng_state(), {name: value.clone() for name, value in model.state_dict().items()}
    memory.physical_batch_size(model, 64, 16, CPU)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_the_machines_memory_is_known() -> None:
    assert 1 << 28 < memory.memory_of(CPU) < 1 << 45
