"""Nothing that is said of an image reaches a descriptor: a log would tell when the image was drawn, and how often.

The codecs that OpenCV brings write to descriptor 2 themselves, and its own log to 1 or 2; neither can be told not to.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_HEARD = (1, 2)

_lock = threading.Lock()
_inside = 0  # threads that decode
_kept: list[tuple[int, int | None]] = []  # where the descriptors led; None: they were closed
_pillow = threading.Lock()


@contextmanager
def codecs_silenced() -> Iterator[None]:
    """Let descriptors 1 and 2 of this process lead nowhere inside the block.

    It may be entered by several threads, and within itself. What other threads write to the two meanwhile is lost too.
    """
    global _inside
    with _lock:
        if not _inside:
            _redirect()
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _restore()


def silence_process() -> None:
    """Let this process, a worker of a run, say nothing for as long as it lives; its errors travel as values."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - a notebook's lead elsewhere than to 1 and 2
    for descriptor in _HEARD:
        os.dup2(sys.stdout.fileno(), descriptor)


@contextmanager
def pillow_silenced() -> Iterator[None]:
    """Let Pillow warn of nothing and log nothing inside the block, in which one thread is at a time."""
    loggers = [logging.getLogger(name) for name in list(logging.root.manager.loggerDict) if name.startswith("PIL.")]
    with _pillow, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        switches = [logger.disabled for logger in loggers]
        try:
            for logger in loggers:
                logger.disabled = True
            yield
        finally:
            for logger, switch in zip(loggers, switches, strict=True):
                logger.disabled = switch


def _redirect() -> None:
    _flush()  # what is in C's buffers belongs where the descriptors lead now
    for descriptor in _HEARD:
        _kept.append((descriptor, _duplicate(descriptor)))
    null = os.open(os.devnull, os.O_WRONLY)
    for descriptor in _HEARD:
        os.dup2(null, descriptor)
    if null not in _HEARD:  # as it is where one of them was closed
        os.close(null)


def _restore() -> None:
    _flush()  # what a codec printed would come out later
    while _kept:
        descriptor, place = _kept.pop()
        if place is None:
            os.close(descriptor)
        else:
            os.dup2(place, descriptor)
            os.close(place)


def _duplicate(descriptor: int) -> int | None:
    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, max(_HEARD) + 1)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        return None


def _flush() -> None:
    """Empty the buffer of C's ``stdout``; its ``stderr`` has none, and Python's streams are their own."""
    if _STDOUT is not None:
        _C.fflush(_STDOUT)


def _c_stdout() -> ctypes.c_void_p | None:
    for name in ("stdout", "__stdoutp"):
        try:
            return ctypes.c_void_p.in_dll(_C, name)
        except ValueError:
            pass
    return None


def _in_child() -> None:
    """Of a process that another thread forked meanwhile: it has none of the threads that decode."""
    global _inside
    if _inside:
        _inside = 0
        _restore()
    _lock.release()


_C = ctypes.CDLL(None)
_STDOUT = _c_stdout()
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_in_child)
