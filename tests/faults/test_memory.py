"""Out of memory in the middle of a draw: the run stops before the step is released, and says what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dptrain import ModelError
from dptrain.detection import loader as loader_module
from dptrain.detection.data import Augmentation, DetectionDataset, StepLoader, load_data
from dptrain.gradients.batches import in_pieces
from dptrain.support.out_of_memory import is_out_of_memory
from dptrain.training.trainer import PrivateTrainer

from ..conftest import MakeDataset
from ..training.test_trainer import Batches, grouped, losses, make, plan, weights

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
@pytest.mark.parametrize("exact", [False, True])
def test_a_batch_that_does_not_fit_stops_the_run_before_the_step_is_released(kind: str, exact: bool) -> None:
    """Smaller batches would change the last digits of every other image, because of those in this one."""
    loss = Small(0 if exact else 5, ERRORS[kind])
    small = trainer(loss, 20, seed=4, exact=exact)
    released: list[int] = []
    small._on_release = released.append
    what = "a single example" if exact else r"20 examples at a time .*: take physical_batch_size=10"
    with pytest.raises(ModelError, match=f"out of memory on cpu with {what}") as caught:
        list(small.run())
    assert not released and small.step == 0 and "\n" not in str(caught.value)
    assert len(loss.failed) == 1, "nothing is tried again"


@pytest.mark.parametrize("most", [1, 2, 5])
def test_a_unit_of_more_rows_than_a_pass_goes_in_pieces(most: int) -> None:
    """It is clipped as one however little memory there is."""
    ends = []
    for loss, rows in ((losses, None), (Small(most), most)):
        small = grouped(plan(sample_rate=1.0, steps=3, clip_norm=0.05), 10, loss, rows, seed=4, probe=False)
        list(small.run())
        ends.append(weights(small))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-5, atol=1e-6)


def test_one_example_too_many_is_told_apart() -> None:
    with pytest.raises(ModelError, match=r"a single example .*: free memory, or use a device that has more"):
        list(trainer(Small(0), 1).run())


def test_other_errors_are_not_taken_for_it() -> None:
    for error in (RuntimeError("shape mismatch"), ValueError("out of memory"), ModelError("out of memory")):
        assert not is_out_of_memory(error)
    with pytest.raises(RuntimeError, match="shape"):
        list(trainer(Small(5, lambda: RuntimeError("shape")), 20).run())


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
def test_a_batch_that_does_not_fit_on_the_device_stops_the_run(
    workers: int, make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = DetectionDataset(load_data(make_dataset()), "train", 64, Augmentation(fliplr=0.5, hsv_v=0.3))
    monkeypatch.setattr(loader_module, "to_device", lambda *_: (_ for _ in ()).throw(ERRORS["cuda"]()))
    with pytest.raises(ModelError, match=r"with 5 examples at a time .*: take physical_batch_size=2"):
        list(next(StepLoader(dataset, 5, workers).steps(iter([_draw([0, 1, 2, 3, 4])]))))


def _draw(rows: Any) -> Any:
    import numpy as np

    from dptrain.privacy.sampling import Draw

    return Draw(np.array(list(rows), dtype=np.int64), 9)
