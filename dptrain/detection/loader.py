"""Batches for DP-SGD: every drawn unit exactly once and whole, an empty draw as an empty step."""

from __future__ import annotations

import os
import re
import shutil
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..datasets.silence import silence_process
from ..errors import DataError
from ..gradients.batches import UnitBatch
from ..support.out_of_memory import in_memory

if TYPE_CHECKING:
    from ..privacy.sampling import Draw
    from ..privacy.units import UnitExamples

Batch = dict[str, torch.Tensor]
_SHARED_MEMORY = Path("/dev/shm")
_LONGEST_FOLDER = 107 - len("/pymp-12345678/listener-12345678")  # of what an address of a local socket may be
_PREFETCH = 2  # batches each worker keeps ready
_UNIT = "unit"  # of a batch on its way: the unit of every example


class Samples(Protocol):
    """What the loader needs of a dataset."""

    imgsz: int

    def sample(self, index: int, seed: int) -> dict[str, Any]:
        """One image and its boxes, a pure function of ``index`` and ``seed``."""


class Copies(Samples, Protocol):
    """What it needs where an image is augmented several times."""

    def samples(self, index: int, seed: int, copies: int) -> list[dict[str, Any]]:
        """The same image, augmented ``copies`` times: a pure function of the three."""


class _Chunk(NamedTuple):
    indices: np.ndarray  # of units
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
    """Move a collated batch to ``device``; the images become float32 in [0, 1].

    A GPU fetches it from pinned memory while the batch before is computed; workers' batches are pinned already.
    """
    if torch.device(device).type == "cuda":
        batch = {key: value if value.is_pinned() else value.pin_memory() for key, value in batch.items()}
    moved = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
    moved["img"] = moved["img"].float() / 255
    return moved


class StepLoader:
    """Loads the images of Poisson draws, in worker processes or in this one.

    What it yields depends on the dataset, the draws and ``physical_batch_size`` only, never on ``workers``: a sample is
    a pure function of its number and the draw's seed, and so is what a step takes of a unit of several examples.

    Args:
        dataset: A ``DetectionDataset``, or other ``Samples``; ``Copies``, where ``units`` has several of each image.
        physical_batch_size: Most images in one batch; a step is cut into batches of at most it. Where units have
            several examples, batches hold as many units as fit, each whole, and at least one. The trainer fills every
            batch up to it, so that all forward passes have one shape.
        workers: Processes that decode ahead, also across steps; 0 decodes in this process, when asked.
        device: Where the batches go.
        units: The examples of every unit; batches are then ``UnitBatch``. None: each example is a unit.
    """

    def __init__(
        self,
        dataset: Samples,
        physical_batch_size: int,
        workers: int = 0,
        device: str | torch.device = "cpu",
        units: UnitExamples | None = None,
    ) -> None:
        if physical_batch_size < 1 or workers < 0:
            raise ValueError(f"physical_batch_size={physical_batch_size} must be >= 1 and workers={workers} >= 0")
        self.dataset = dataset
        self.physical_batch_size = physical_batch_size
        self.workers = workers
        self.device = torch.device(device)
        self.units = units

    @property
    def examples_at_once(self) -> int:
        """Examples in every forward pass of the trainer."""
        return self.physical_batch_size

    def steps(self, draws: Iterator[Draw]) -> Generator[Iterator[Batch | UnitBatch], None, None]:
        """Yield, for every draw, an iterator over its physical batches.

        An empty draw yields an empty iterator: the step still takes its noise. A draw's units come in its order, each
        exactly once; what the caller leaves of a step is dropped when the next one is asked for. Closing the generator,
        or dropping it, ends the workers.

        With workers, ``draws`` is read ahead (by about ``2 * workers`` batches), so the sampler must have a random
        stream of its own; with ``workers=0`` a draw is read only when its step is asked for.

        Raises:
            DataError: An image or label cannot be read, or a worker died; no image is skipped in silence.
        """
        return self._here(draws) if self.workers == 0 else self._ahead(draws)

    def _chunks(self, draw: Draw) -> Iterator[_Chunk]:
        chunk: list[int] = []
        held = 0
        for unit in map(int, draw.indices):
            more = 1 if self.units is None else self.units.count(unit)
            if chunk and held + more > self.physical_batch_size:
                yield _Chunk(np.array(chunk), draw.seed)
                chunk, held = [], 0
            chunk.append(unit)
            held += more
        if chunk:
            yield _Chunk(np.array(chunk), draw.seed)

    def _here(self, draws: Iterator[Draw]) -> Generator[Iterator[Batch | UnitBatch], None, None]:
        for draw in draws:
            loaded = (_load(self.dataset, self.units, chunk) for chunk in self._chunks(draw))
            yield map(self._moved, loaded)

    def _ahead(self, draws: Iterator[Draw]) -> Generator[Iterator[Batch | UnitBatch], None, None]:
        lengths: deque[int] = deque()  # physical batches in each step that the loader has been told of

        def tasks() -> Iterator[_Chunk]:
            for draw in draws:
                chunks = list(self._chunks(draw))
                lengths.append(len(chunks))
                yield from chunks

        most = max(self.physical_batch_size, self.units.most_at_once if self.units else 1)
        loads = _Loads(self.dataset, self.units, _room_to_share(self.dataset.imgsz, most, self.workers))
        batches = _worker_batches(loads, tasks(), self.workers, self.physical_batch_size, self.device)
        ready: deque[Batch] = deque()  # at most one: fetched to learn of the next step

        def step(length: int) -> Iterator[Batch | UnitBatch]:
            for _ in range(length):
                yield self._moved(ready.popleft() if ready else next(batches))

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

    def _moved(self, batch: Batch) -> Batch | UnitBatch:
        units = batch.pop(_UNIT, None)
        with in_memory(self.device, len(batch["img"])):
            moved = to_device(batch, self.device)
        return moved if units is None else UnitBatch(moved, units)


def _up_to_one(batches: Iterator[Batch]) -> list[Batch]:
    for batch in batches:
        return [batch]
    return []


def _load(dataset: Samples, units: UnitExamples | None, chunk: _Chunk) -> Batch:
    if units is None:
        return collate([dataset.sample(int(index), chunk.seed) for index in chunk.indices])
    samples: list[dict[str, Any]] = []
    of_example: list[int] = []
    for number, unit in enumerate(chunk.indices):
        for index in map(int, units.chosen(int(unit), chunk.seed)):
            if units.copies == 1:
                samples.append(dataset.sample(index, chunk.seed))
            else:
                samples += cast("Copies", dataset).samples(index, chunk.seed, units.copies)
        of_example += [number] * (len(samples) - len(of_example))
    return {**collate(samples), _UNIT: torch.tensor(of_example)}


class _Loads(Dataset):
    """What a worker runs. An error travels back as a value: torch would wrap it in a page of traceback.

    Where ``share`` is false, batches go through a pipe instead of shared memory: slower, but sure.
    """

    def __init__(self, dataset: Samples, units: UnitExamples | None, share: bool) -> None:
        self.dataset, self.units, self.share = dataset, units, share

    def __getitem__(self, chunk: _Chunk) -> Any:
        try:
            batch = _load(self.dataset, self.units, chunk)
        except DataError as error:
            return error
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            return DataError(f"a loader worker failed ({type(error).__name__}: {reason}); workers=0 shows where")
        return batch if self.share else {key: value.numpy() for key, value in batch.items()}


def _as_is(batch: Any) -> Any:
    return batch


def _start_worker(_: int) -> None:
    silence_process()
    cv2.setNumThreads(0)  # the workers themselves are the parallelism
    # A signal to the whole process group must let the training process finish its step and write its state.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _room_to_share(imgsz: int, batch_size: int, workers: int) -> bool:
    """Whether shared memory holds twice what the workers keep ready; a small container's 64 MB kills them instead.

    A worker hands its memory over by a socket in the temporary folder. Where that has too long a name for one, the
    worker would wait for ever.
    """
    if len(os.fsencode(tempfile.gettempdir())) > _LONGEST_FOLDER:
        return False
    if not _SHARED_MEMORY.is_dir():
        return True
    needed = 3 * imgsz * imgsz * batch_size * workers * (_PREFETCH + 1)
    return shutil.disk_usage(_SHARED_MEMORY).free > 2 * needed


def _worker_batches(
    loads: _Loads, tasks: Iterator[_Chunk], workers: int, most: int, device: torch.device
) -> Generator[Batch, None, None]:
    """Batches of ``tasks``, in their order, from worker processes that end with this generator."""
    loader: DataLoader = DataLoader(
        loads,
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
                    f"lower workers={workers} or physical_batch_size={most}"
                ) from None
            if isinstance(batch, DataError):
                raise batch
            yield batch if loads.share else {key: torch.as_tensor(value) for key, value in batch.items()}
    finally:
        iterator._shutdown_workers()  # what its __del__ does, which a kept traceback would put off
