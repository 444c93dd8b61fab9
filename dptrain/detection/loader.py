"""Batches for DP-SGD: every drawn image exactly once, an empty draw as an empty step."""

from __future__ import annotations

import math
import re
import shutil
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..errors import DataError, ModelError
from ..gradients.batches import in_pieces
from ..out_of_memory import give_back, is_out_of_memory

if TYPE_CHECKING:
    from ..sampling import Draw

Batch = dict[str, torch.Tensor]
_SHARED_MEMORY = Path("/dev/shm")
_PREFETCH = 2  # batches each worker keeps ready


class Samples(Protocol):
    """What the loader needs of a dataset."""

    imgsz: int

    def sample(self, index: int, seed: int) -> dict[str, Any]:
        """One image and its boxes, a pure function of ``index`` and ``seed``."""


class _Chunk(NamedTuple):
    indices: np.ndarray
    seed: int


def collate(samples: list[dict[str, Any]]) -> Batch:
    """Stack samples of one size into Ultralytics' batch.

    Returns:
        ``img`` uint8 (n, 3, h, w); ``batch_idx`` float (m,), the image each box belongs to; ``cls`` float (m, 1);
        ``bboxes`` float (m, 4), xywh in parts of the image.
    """
    counts = torch.tensor([len(sample["cls"]) for sample in samples])
    return {
        "img": torch.stack([sample["img"] for sample in samples]),
        "batch_idx": torch.repeat_interleave(torch.arange(len(samples), dtype=torch.float32), counts),
        "cls": torch.cat([sample["cls"] for sample in samples]),
        "bboxes": torch.cat([sample["bboxes"] for sample in samples]),
    }


def to_device(batch: Batch, device: str | torch.device) -> Batch:
    """Move a collated batch to ``device``; the images become float32 in [0, 1]."""
    moved = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
    moved["img"] = moved["img"].float() / 255
    return moved


class StepLoader:
    """Loads the images of Poisson draws, in worker processes or in this one.

    What it yields depends on the dataset, the draws and ``physical_batch_size`` only, never on ``workers``: a sample is
    a pure function of its row number and the draw's seed.

    Args:
        dataset: A ``DetectionDataset``.
        physical_batch_size: Most images in memory on the device at once; a step is cut into batches of at most it.
        workers: Processes that decode ahead, also across steps; 0 decodes in this process, when asked.
        device: Where the batches go.
    """

    def __init__(
        self, dataset: Samples, physical_batch_size: int, workers: int = 0, device: str | torch.device = "cpu"
    ) -> None:
        if physical_batch_size < 1 or workers < 0:
            raise ValueError(f"physical_batch_size={physical_batch_size} must be >= 1 and workers={workers} >= 0")
        self.dataset = dataset
        self.physical_batch_size = physical_batch_size
        self.workers = workers
        self.device = torch.device(device)

    def steps(self, draws: Iterator[Draw]) -> Generator[Iterator[Batch], None, None]:
        """Yield, for every draw, an iterator over its physical batches.

        An empty draw yields an empty iterator: the step still takes its noise. A draw's images come in its order, each
        exactly once; what the caller leaves of a step is dropped when the next one is asked for. Closing the generator,
        or dropping it, ends the workers.

        With workers, ``draws`` is read ahead (by about ``2 * workers`` batches), so the sampler must have a random
        stream of its own; with ``workers=0`` a draw is read only when its step is asked for.

        Raises:
            DataError: An image or label cannot be read, or a worker died; no image is skipped in silence.
        """
        return self._here(draws) if self.workers == 0 else self._ahead(draws)

    def _chunks(self, draw: Draw) -> Iterator[_Chunk]:
        for start in range(0, len(draw.indices), self.physical_batch_size):
            yield _Chunk(np.asarray(draw.indices[start : start + self.physical_batch_size]), draw.seed)

    def _here(self, draws: Iterator[Draw]) -> Generator[Iterator[Batch], None, None]:
        for draw in draws:
            yield (batch for chunk in self._chunks(draw) for batch in self._moved(_load(self.dataset, chunk)))

    def _ahead(self, draws: Iterator[Draw]) -> Generator[Iterator[Batch], None, None]:
        lengths: deque[int] = deque()  # physical batches in each step that the loader has been told of

        def tasks() -> Iterator[_Chunk]:
            for draw in draws:
                lengths.append(math.ceil(len(draw.indices) / self.physical_batch_size))
                yield from self._chunks(draw)

        batches = _worker_batches(self.dataset, tasks(), self.workers, self.physical_batch_size, self.device)
        ready: deque[Batch] = deque()  # at most one: fetched to learn of the next step

        def step(length: int) -> Iterator[Batch]:
            for _ in range(length):
                yield from self._moved(ready.popleft() if ready else next(batches))

        try:
            while True:
                if not lengths:
                    ready.extend(_up_to_one(batches))
                if not lengths:
                    return
                current = step(lengths.popleft())
                yield current
                for _ in current:
                    pass
        finally:
            batches.close()

    def _moved(self, batch: Batch) -> Iterator[Batch]:
        """Yield the batch on the device; out of memory there, the same images in halves."""
        try:
            pieces = [to_device(batch, self.device)]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            pieces = []
        if pieces:
            yield pieces.pop()  # so that nothing here holds it any more
            return
        give_back()
        size = len(batch["img"])
        if size == 1:
            raise ModelError(
                f"not even one image fits in the memory of {self.device}: free some, or use another device"
            )
        for half in in_pieces(batch, (size + 1) // 2):
            yield from self._moved(half)


def _up_to_one(batches: Iterator[Batch]) -> list[Batch]:
    for batch in batches:
        return [batch]
    return []


def _load(dataset: Samples, chunk: _Chunk) -> Batch:
    return collate([dataset.sample(int(index), chunk.seed) for index in chunk.indices])


class _Loads(Dataset):
    """What a worker runs. A ``DataError`` travels back as a value: torch would wrap it in a page of traceback."""

    def __init__(self, dataset: Samples, share: bool) -> None:
        self.dataset = dataset
        self.share = share

    def __getitem__(self, chunk: _Chunk) -> Any:
        try:
            batch = _load(self.dataset, chunk)
        except DataError as error:
            return error
        return batch if self.share else {key: value.numpy() for key, value in batch.items()}


def _as_is(batch: Any) -> Any:
    return batch


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)  # the workers themselves are the parallelism
    # A signal to the whole process group must let the training process finish its step and write its state.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _room_to_share(imgsz: int, batch_size: int, workers: int) -> bool:
    """Whether shared memory holds twice what the workers keep ready; a small container's 64 MB kills them instead."""
    if not _SHARED_MEMORY.is_dir():
        return True
    needed = 3 * imgsz * imgsz * batch_size * workers * (_PREFETCH + 1)
    return shutil.disk_usage(_SHARED_MEMORY).free > 2 * needed


def _worker_batches(
    dataset: Samples, tasks: Iterator[_Chunk], workers: int, batch_size: int, device: torch.device
) -> Generator[Batch, None, None]:
    """Batches of ``tasks``, in their order, from worker processes that end with this generator."""
    share = _room_to_share(dataset.imgsz, batch_size, workers)  # otherwise batches go through a pipe: slower, but sure
    loader: DataLoader = DataLoader(
        _Loads(dataset, share),
        batch_size=None,
        sampler=tasks,
        num_workers=workers,
        collate_fn=_as_is,
        worker_init_fn=_start_worker,
        prefetch_factor=_PREFETCH,
        pin_memory=device.type == "cuda",
    )
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGCHLD) if in_main_thread else None
    iterator: Any = iter(loader)
    if handler is not None:
        # torch's handler would raise RuntimeError in the middle of a training step; asking for a batch notices as well.
        signal.signal(signal.SIGCHLD, handler)
    try:
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                return
            except RuntimeError as error:
                if not re.match(r"DataLoader worker \(pid", str(error)):
                    raise
                raise DataError(
                    f"a loader worker died ({' '.join(str(error).split())[:120]}); it may have run out of memory: "
                    f"lower workers={workers} or physical_batch_size={batch_size}"
                ) from None
            if isinstance(batch, DataError):
                raise batch
            yield batch if share else {key: torch.as_tensor(value) for key, value in batch.items()}
    finally:
        iterator._shutdown_workers()  # what its __del__ does, which a kept traceback would put off
