"""Reading ahead: order, errors, a consumer that stops early, a source that does not wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from dptrain.toolbox.redaction.threads import BackgroundWriter, Prefetcher, mapped_ahead


def test_items_come_in_order_and_errors_reach_the_consumer() -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise ValueError("broken")

    got = []
    with Prefetcher(items(), 2) as ahead, pytest.raises(ValueError, match="broken"):
        for item in ahead:
            got.append(item)
    assert got == list(range(5))


def test_a_consumer_that_stops_early_ends_the_thread_and_closes_the_source() -> None:
    closed = threading.Event()

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    with Prefetcher(endless(), 3) as ahead:
        assert next(iter(ahead)) == 1
    assert closed.is_set()


def test_a_live_source_is_never_held_up_and_the_newest_items_are_kept() -> None:
    with Prefetcher(iter(range(100)), 4, live=True) as ahead:
        time.sleep(0.3)
        got = list(ahead)
    assert got == [97, 98, 99] or got == [96, 97, 98, 99]
    assert ahead.dropped == 100 - len(got)


def test_work_behind_is_done_in_order_and_its_error_is_raised() -> None:
    done: list[int] = []
    with BackgroundWriter(1, 2) as behind:
        for number in range(20):
            behind.put(done.append, number)
    assert done == list(range(20))

    def fail() -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), BackgroundWriter(1, 2) as behind:
        behind.put(fail)


def test_only_a_few_items_are_mapped_before_they_are_asked_for() -> None:
    started: list[int] = []
    with mapped_ahead(lambda n: started.append(n) or n, range(1000), 2, 5) as results:
        first = [future.result() for _, future in (next(results), next(results))]
        assert first == [0, 1]
        assert len(started) <= 8
