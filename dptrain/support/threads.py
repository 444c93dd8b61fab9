"""Work in threads: the same for many files, since decoders and hashes let others run meanwhile; and spare cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")
_BAR_FROM = 2000  # files


def in_threads(function: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """Map in order; the first failure, in that order, ends it."""
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        yield from pool.map(function, items)
    finally:
        pool.shutdown(cancel_futures=True)


def spare_threads(device: str) -> int:
    """Return how many cores are left to this process while a kind of device computes a pass; at most 8."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, min(8, cores - (torch.get_num_threads() if device == "cpu" else 1)))


@contextmanager
def bar(what: str, files: int) -> Iterator[Callable[[int, int], None]]:
    """Show how far work on many files is, on a terminal; what it gives is told the number done, and of all."""
    from rich.console import Console

    console = Console(stderr=True)
    if files < _BAR_FROM or not console.is_terminal:
        yield lambda done, total: None
        return
    from rich.progress import Progress

    with Progress(console=console, transient=True) as shown:
        task = shown.add_task(what, total=files)
        yield lambda done, total: shown.update(task, completed=done, total=total)
