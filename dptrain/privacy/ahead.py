"""Noise that is made in the background, while the gradients that it will hide are computed.

It depends on no data, so nothing is lost by making it before they are known, and a step no longer waits for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

from torch import Tensor

from ..errors import PrivacyError


class Ahead:
    """One block of noise on its way, made by ``make`` in a thread of its own.

    Formal guarantee: :meth:`take` returns what ``make`` returned, once, or raises: never a part of it, nor anything
    else in its place. What is dropped is never seen.

    Args:
        request: What was asked for; the block serves that request and no other.
        make: Makes it. It is given a function that raises once the block is no longer wanted, to be called often.
    """

    def __init__(self, request: tuple[int, int | None], make: Callable[[Callable[[], None]], Tensor]) -> None:
        self._request, self._unwanted = request, threading.Event()
        self._pool = ThreadPoolExecutor(1, "dptrain noise")
        self._block: Future[Tensor] = self._pool.submit(make, self._go_on)

    def _go_on(self) -> None:
        if self._unwanted.is_set():
            raise PrivacyError("this noise is no longer wanted: the step that it was for is not taken")

    def take(self, request: tuple[int, int | None]) -> Tensor:
        """Return the block, once it is there.

        Raises:
            PrivacyError: Another block is asked for, or this one could not be made.
        """
        if request != self._request:
            self.drop()
            raise PrivacyError(
                f"noise for {self._request[0]} numbers was made ahead, and {request[0]} are to be noised: the set of "
                "trainable parameters changed within a step"
            )
        try:
            return self._block.result()
        except Exception as error:
            reason = " ".join(str(error).split())[:120]
            raise PrivacyError(
                f"the noise could not be made ({type(error).__name__}: {reason}), so the step is not taken: resume "
                "the run"
            ) from error
        finally:
            self._pool.shutdown()

    def drop(self) -> None:
        """Give the block up, and wait until nothing more is drawn for it."""
        self._unwanted.set()
        with suppress(Exception):
            self._block.result()
        self._pool.shutdown()


def in_parallel(work: Callable[[], None], threads: int) -> None:
    """Run ``work`` in so many threads at once, of which this is one; raise what any of them raised."""
    if threads <= 1:
        work()
        return
    with ThreadPoolExecutor(threads - 1, "dptrain noise") as pool:
        others = [pool.submit(work) for _ in range(threads - 1)]
        work()
    for other in others:
        other.result()
