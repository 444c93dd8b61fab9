"""The fastest of several ways to compute the same thing, timed once a shape and remembered.

What is timed are random numbers of the shapes at hand, never the batch itself, so that the choice, and with it the run
time, tells nothing about the images. Where the same numbers must come out in every process (a seeded run), the ways are
chosen by a rule of shapes alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_measures: ContextVar[bool] = ContextVar("measures", default=True)
_REPEATS = 3
_HOPELESS = 3.0  # a first try this much slower than the best so far is not repeated


@contextmanager
def by_rule() -> Iterator[None]:
    """Choose by rule inside the block: nothing is timed, so every process chooses the same."""
    token = _measures.set(False)
    try:
        yield
    finally:
        _measures.reset(token)


class Chooser:
    """Remembers which way was fastest for a key, for as long as the process lives."""

    def __init__(self) -> None:
        self.choices: dict[Hashable, tuple[int, str]] = {}
        self._lock = threading.Lock()

    def __call__(
        self,
        key: Hashable,
        n: int,
        ways: Callable[[int], Mapping[str, Callable[[], object]]],
        rule: Callable[[], str],
        device: torch.device,
    ) -> str:
        """Return the name of the way to take.

        Args:
            key: Everything that the times depend on but the number of examples and that of threads.
            n: Number of examples. What was fastest for more serves fewer too: the last batch of a draw is small.
            ways: Makes the ways to time for a number of examples, on numbers of its own.
            rule: Names the way to take where nothing is measured.
            device: Where the ways compute.
        """
        if not _measures.get():
            return rule()
        key, size = (key, device.type, torch.get_num_threads()), power_of_two(n)
        with self._lock:
            known, choice = self.choices.get(key, (0, ""))
            if known < size:
                choice = _fastest(ways(size), device)
                self.choices[key] = size, choice
            return choice


def _fastest(ways: Mapping[str, Callable[[], object]], device: torch.device) -> str:
    if len(ways) == 1:
        return next(iter(ways))
    best = {name: _seconds(way, device) for name, way in ways.items()}  # the first call of a shape also prepares it
    for _ in range(_REPEATS):
        limit = _HOPELESS * min(best.values())
        for name, way in ways.items():
            if best[name] <= limit:
                best[name] = min(best[name], _seconds(way, device))
    return min(best, key=lambda name: best[name])


def _seconds(way: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    began = time.perf_counter()
    way()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def power_of_two(n: int) -> int:
    """Return the largest power of two up to ``n``: draws differ in size, and most should find the times taken."""
    return 1 << (max(n, 1).bit_length() - 1)
