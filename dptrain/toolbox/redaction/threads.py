"""Reading ahead and writing behind, so that the model never waits for a decoder or an encoder that keeps up with it."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar, cast

T = TypeVar("T")
R = TypeVar("R")
_PATIENCE = 0.1  # seconds between two looks at whether anybody still listens


class Prefetcher(Iterable[T]):
    """Runs an iterator in a thread of its own, up to ``depth`` items ahead; use it as a context manager.

    Args:
        items: What to iterate; its errors are raised in the consumer.
        depth: Most items that wait.
        live: Let the oldest waiting item go instead of holding up a source that does not wait.

    Attributes:
        dropped: Items that were let go.
    """

    def __init__(self, items: Iterable[T], depth: int, live: bool = False) -> None:
        self._items, self._live = items, live
        self._queue: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.dropped = 0

    def _run(self) -> None:
        iterator = iter(self._items)
        try:
            for item in iterator:
                if not self._put(("item", item), self._live):
                    return
            self._put(("end", None))
        except BaseException as error:
            self._put(("error", error))
        finally:
            close = getattr(
                iterator, "close", None
            )  # of a generator: its files are closed in the thread that opened them
            if close is not None:
                close()

    def _put(self, entry: tuple[str, Any], live: bool = False) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(entry, timeout=0 if live else _PATIENCE)
                return True
            except queue.Full:
                if live:
                    try:
                        self._queue.get_nowait()
                        self.dropped += 1
                    except queue.Empty:
                        pass
        return False

    def __iter__(self) -> Iterator[T]:
        while True:
            kind, value = self._queue.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield cast(T, value)

    def __enter__(self) -> Prefetcher[T]:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


@contextmanager
def mapped_ahead(
    function: Callable[[T], R], items: Iterable[T], workers: int, depth: int
) -> Iterator[Iterator[tuple[T, Future[R]]]]:
    """Map in order in ``workers`` threads, at most ``depth`` items ahead; the consumer asks each future itself."""
    pool = ThreadPoolExecutor(workers)

    def run() -> Iterator[tuple[T, Future[R]]]:
        waiting: deque[tuple[T, Future[R]]] = deque()
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) > depth:
                yield waiting.popleft()
        yield from waiting

    try:
        yield run()
    finally:
        pool.shutdown(cancel_futures=True)


class BackgroundWriter:
    """Does work in ``workers`` threads, in the order of the calls, with at most ``depth`` pieces waiting.

    The first error of a piece is raised by a later :meth:`put` or by leaving the block.
    """

    def __init__(self, workers: int, depth: int) -> None:
        self._pool, self._depth = ThreadPoolExecutor(workers), depth
        self._waiting: deque[Future[Any]] = deque()

    def put(self, function: Callable[..., object], *arguments: Any) -> None:
        """Queue a piece of work; wait while too much is queued."""
        self._waiting.append(self._pool.submit(function, *arguments))
        while len(self._waiting) > self._depth:
            self._waiting.popleft().result()

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            while kind is None and self._waiting:
                self._waiting.popleft().result()
        finally:
            self._pool.shutdown(cancel_futures=True)
