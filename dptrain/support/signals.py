"""Stopping between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stop_signal() -> Iterator[threading.Event]:
    """Turn the first SIGINT or SIGTERM into an event that is looked at between steps; a second one acts at once.

    So is a SIGUSR2 that somebody listens for: by it submitit tells a job to make place, and starts it again later.
    Whoever listened hears of it at the end of the block.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    moves = False
    if callable(handler := signal.getsignal(signal.SIGUSR2)):
        before[signal.SIGUSR2] = handler

    def ask(number: int, _: Any) -> None:
        nonlocal moves
        moves = moves or number == signal.SIGUSR2
        event.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, ask)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if moves:
            signal.raise_signal(signal.SIGUSR2)
