"""The peak memory of one method, and beforehand a guess of it from public sizes."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .cases import Case
from .steps import steps, subject

_ROOM = 0.9  # of the memory that is free may be used
# Peak over what autograd saves of a forward pass: what was measured, and some room.
_OVER_SAVED = {"plain": 1.15, "fused": 1.2, "microbatch": 1.3, "ultralytics": 1.4, "opacus": 1.6}


def measure_memory(case: Case) -> dict[str, Any]:
    """Return the MiB that steps of the case's one method need at most, on top of module and batch.

    ``first`` is of the first two steps, ``later`` of the third: a first step may try things out.
    """
    (warm_up,) = steps(replace(case, images=1, pixels=min(case.pixels, 64))).values()
    warm_up()  # what the libraries load on first use is not the step's
    (step,) = steps(case).values()
    return {"first": peak(lambda: (step(), step()), case.device), "later": peak(step, case.device)}


def peak(work: Callable[[], object], device: str = "cpu") -> float:
    """Return the MiB that ``work`` needs at most on top of what is held before."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    _give_back()
    with _Watch() as watch:
        work()
    return watch.mebibytes


def _give_back() -> None:
    """Have the C library return what is free, so that a peak cannot hide in what came before."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


class _Watch:
    """The highest resident memory of this process within the block, in MiB above that at its start.

    The kernel's own high-water mark where it can be reset, else samples every few milliseconds.
    """

    def __enter__(self) -> _Watch:
        self._before = self._highest = resident()
        self._marked = _reset_mark()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        if not self._marked:
            self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._done.wait(0.004):
            self._highest = max(self._highest, resident())

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._marked:
            self._highest = _status("VmHWM")
        else:
            self._thread.join()
        self.mebibytes = (self._highest - self._before) / 2**20


def resident() -> int:
    """Return the resident memory of this process in bytes."""
    if Path("/proc/self/status").exists():
        return _status("VmRSS")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def _reset_mark() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def available(device: str = "cpu") -> int:
    """Return the bytes of memory that are free."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info()[0]
    found = [int(line.split()[1]) * 1024 for line in _lines("/proc/meminfo") if line.startswith("MemAvailable")]
    limit, used = (_lines(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit and limit[0].isdigit() and used:
        found.append(int(limit[0]) - int(used[0]))
    return min(found, default=sys.maxsize)


def _lines(file: str) -> list[str]:
    path = Path(file)
    return path.read_text().splitlines() if path.exists() else []


def needed(case: Case) -> dict[str, int]:
    """Guess the bytes that each method needs, from what autograd saves of one small image, images and parameters.

    Nothing is tried out at full size: a machine without swap would end the wrong process.
    """
    few = replace(case, images=1, pixels=min(case.pixels, 64), device="cpu", precision="fp32")
    module, losses, batch = subject(few)
    seen: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        losses(module, batch)
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    saved = sum(size for place, size in seen.items() if place not in own)
    parameters = 4 * sum(p.numel() for p in module.parameters())

    def bytes_of(method: str) -> int:
        images = 1 if method == "microbatch" else case.images
        activations = images * saved * (case.pixels / few.pixels) ** 2 * _OVER_SAVED[method]
        gradients = 2 * case.images * parameters if method == "opacus" else 0
        return int(activations + 4 * parameters + gradients)

    return {method: bytes_of(method) for method in case.methods}


def too_large(case: Case) -> dict[str, str]:
    """Return, for every method that would not fit in the memory that is free, why."""
    free = _ROOM * available(case.device)
    return {
        method: f"would need about {wanted / 2**30:.0f} GiB, and {free / 2**30:.0f} GiB may be used"
        for method, wanted in needed(case).items()
        if wanted > free
    }
