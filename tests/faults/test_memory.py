"""Out of memory in the middle of a draw: the same draw is completed in smaller batches, and nothing tells of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dptrain import ModelError, noise
from dptrain.detection import loader as loader_module
from dptrain.detection.data import Augmentation, DetectionDataset, StepLoader, load_data
from dptrain.gradients.batches import in_pieces
from dptrain.out_of_memory import is_out_of_memory
from dptrain.training import PrivateTrainer

from ..conftest import MakeDataset
from ..test_training import Batches, X, Y, grouped, losses, make, plan, weights

ERRORS: dict[str, Callable[[], BaseException]] = {
    "cuda": lambda: torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "cpu": lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate "
                                "memory: you tried to allocate 8589934592 bytes. Error code 12"),
    "cublas": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "onednn": lambda: RuntimeError("could not create a primitive"),
    "python": lambda: MemoryError(),
}  # fmt: skip


class Small:
    """A loss on a device that holds at most ``most`` examples; it fails in the backward pass, gradients half-made."""

    def __init__(self, most: int, error: Callable[[], BaseException] = ERRORS["cuda"]) -> None:
        self.most, self.error = most, error
        self.failed: list[int] = []
        self.served: list[float] = []

    def __call__(self, module: torch.nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        found = losses(module, batch)
        if self.too_much(batch[0]):
            self.failed.append(len(batch[0]))

            def fail(_: Tensor) -> None:
                raise self.error()

            hidden = module[1](module[0](batch[0]))
            hidden.register_hook(fail)
            return found + 0 * hidden.sum(1)
        self.served += batch[0][:, 0].tolist()
        return found

    def too_much(self, rows: Tensor) -> bool:
        return len(rows) > self.most


def trainer(loss: Any, size: int, **options: Any) -> PrivateTrainer:
    return make(plan(sample_rate=1.0, steps=3), batches=Batches(size), loss=loss, probe=False, **options)


@pytest.mark.parametrize("kind", ERRORS)
def test_the_draw_is_completed_in_halves_as_if_they_had_been_asked_for(
    kind: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """To the last bit: nothing of a failed batch is in the sum, nothing is left out, and no draw is repeated."""
    caplog.set_level(logging.DEBUG)
    small = Small(5, ERRORS[kind])
    halved, asked = trainer(small, 20, seed=4), trainer(losses, 5, seed=4)
    released: list[int] = []
    halved._on_release = released.append
    list(halved.run())
    list(asked.run())
    assert torch.equal(weights(halved), weights(asked))
    assert small.failed == [20, 10], "what does not fit is found out once"
    assert small.served == X[:, 0].tolist() * 3
    assert released == [1, 2, 3]
    assert not caplog.records and capfd.readouterr() == ("", ""), "that a draw did not fit tells of its images"


@pytest.mark.parametrize("most", [1, 2, 5])
def test_units_that_do_not_fit_are_taken_in_halves_and_a_single_one_in_pieces(most: int) -> None:
    """A unit of two rows is clipped as one however little memory there is."""
    ends = []
    for loss in (losses, Small(most)):
        small = grouped(plan(sample_rate=1.0, steps=3, clip_norm=0.05), 10, loss, seed=4, probe=False)
        list(small.run())
        ends.append(weights(small))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-5, atol=1e-6)
    none = grouped(plan(sample_rate=1.0), 10, Small(0), probe=False)
    with pytest.raises(ModelError, match="out of memory with a single example"):
        list(none.run())
    assert none.step == 0


def test_one_example_too_many_ends_the_run_before_the_step_is_released() -> None:
    small = trainer(Small(0), 4)
    released: list[int] = []
    small._on_release = released.append
    with pytest.raises(ModelError, match="out of memory with a single example") as caught:
        list(small.run())
    assert not released and small.step == 0 and "\n" not in str(caught.value)


def test_other_errors_are_not_taken_for_it() -> None:
    for error in (RuntimeError("shape mismatch"), ValueError("out of memory"), ModelError("out of memory")):
        assert not is_out_of_memory(error)
    with pytest.raises(RuntimeError, match="shape"):
        list(trainer(Small(5, lambda: RuntimeError("shape")), 20).run())


def test_an_image_that_does_not_fit_changes_the_sum_by_at_most_the_clip_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The image that one dataset has more than the other is what runs out of memory."""

    class Greedy(Small):
        def too_much(self, rows: Tensor) -> bool:
            return len(rows) > 1 and bool((rows[:, 0] == X[7, 0]).any())

    sums: list[dict[str, Tensor]] = []

    def door(value: dict[str, Tensor], **_: Any) -> dict[str, Tensor]:
        sums.append({name: tensor.clone() for name, tensor in value.items()})
        return {name: torch.full_like(tensor, 0.01) for name, tensor in value.items()}

    monkeypatch.setattr(noise, "privatize", door)
    greedy = Greedy(20)
    list(trainer(greedy, 20, seed=1).run())
    assert greedy.failed
    rows = torch.arange(20) != 7

    class Without(Batches):
        def steps(self, draws: Any) -> Any:
            for draw in draws:
                del draw
                yield iter([(X[rows], Y[rows])])

    other = trainer(losses, 20, seed=1)
    other.loader = Without()
    list(other.run())
    for with_it, without in zip(sums[:3], sums[3:], strict=True):
        gap = torch.cat([(with_it[name] - without[name]).flatten() for name in with_it]).norm()
        assert 0.1 < float(gap) / 0.5 <= 1 + 1e-5


def test_detection_batches_come_apart_with_their_boxes(make_dataset: MakeDataset) -> None:
    dataset = DetectionDataset(load_data(make_dataset()), "train", 64, Augmentation(fliplr=0.5, hsv_v=0.3))
    (whole,) = StepLoader(dataset, 6)._here(iter([_draw(range(6))])).__next__()
    for most in (1, 2, 4):
        pieces = in_pieces(whole, most)
        single = list(next(StepLoader(dataset, most).steps(iter([_draw(range(6))]))))
        assert len(pieces) == len(single)
        for piece, own in zip(pieces, single, strict=True):
            assert piece.keys() == own.keys()
            assert all(torch.equal(piece[key], own[key]) for key in own)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_that_does_not_fit_on_the_device_is_moved_in_halves(
    workers: int, make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same images, each once, augmented as before."""
    dataset = DetectionDataset(load_data(make_dataset()), "train", 64, Augmentation(fliplr=0.5, hsv_v=0.3))
    rows = [[0, 1, 2, 3, 4], [], [5, 2]]
    expected = [list(step) for step in StepLoader(dataset, 1).steps(iter(map(_draw, rows)))]
    real = loader_module.to_device

    def small(batch: dict[str, Tensor], device: Any) -> dict[str, Tensor]:
        if len(batch["img"]) > 2:
            raise ERRORS["cuda"]()
        return real(batch, device)

    monkeypatch.setattr(loader_module, "to_device", small)
    found = [list(step) for step in StepLoader(dataset, 5, workers).steps(iter(map(_draw, rows)))]
    assert [[len(batch["img"]) for batch in step] for step in found] == [[2, 1, 2], [], [2]]
    for step, one_at_a_time in zip(found, expected, strict=True):
        singles = [piece for batch in step for piece in in_pieces(batch, 1)]
        for one, other in zip(singles, one_at_a_time, strict=True):
            assert all(torch.equal(one[key], other[key]) for key in other)
    monkeypatch.setattr(loader_module, "to_device", lambda *_: (_ for _ in ()).throw(ERRORS["cpu"]()))
    with pytest.raises(ModelError, match="not even one image"):
        list(next(StepLoader(dataset, 5, workers).steps(iter([_draw([0, 1])]))))


def _draw(rows: Any) -> Any:
    import numpy as np

    from dptrain.sampling import Draw

    return Draw(np.array(list(rows), dtype=np.int64), 9)
