"""How the command speaks: exit statuses, one line an error, and dptrain's own log lines."""

from __future__ import annotations

import logging
import os
import select
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import DptrainError

EXIT_FAILED = 1  # something that dptrain did not foresee
EXIT_REFUSED = 2  # a setting, a file or a guarantee that does not hold
EXIT_INTERRUPTED = 130
EXIT_UNREAD = 141  # as of a process that SIGPIPE ends: dptrain ... | head


def fail(message: str, status: int, debug: bool) -> int:
    """Print one line on stderr, and the traceback with ``--debug``; return the exit status."""
    if debug:
        traceback.print_exc()
    print(f"dptrain: error: {message}", file=sys.stderr)
    return status


def described(error: Exception) -> str:
    """One line, with the notes that were added on the way; what dptrain did not foresee also gets its kind."""
    line = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, (DptrainError, OSError)):
        line = f"{type(error).__name__}: {line} (--debug shows where)"
    return "; ".join((line, *getattr(error, "__notes__", ())))


def nobody_reads() -> bool:
    """Whether stdout is a pipe whose reader has gone."""
    try:
        place = sys.stdout.fileno()
    except (OSError, ValueError):
        return False
    poll = select.poll()
    poll.register(place, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def reader_gone(error: BrokenPipeError) -> int:
    """End without a word about the pipe, but with what was noted of a run; return the exit status."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the interpreter flushes once more when it ends
    for note in getattr(error, "__notes__", ()):
        print(f"dptrain: {note}", file=sys.stderr)
    return EXIT_UNREAD


class _ConsoleHandler(logging.StreamHandler):
    """Facts go to stdout, warnings to stderr, each as it is now, so that lines go around a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        super().emit(record)


@contextmanager
def own_messages() -> Iterator[None]:
    """:func:`messages`, unless somebody up the stack has set them up already."""
    if any(isinstance(handler, _ConsoleHandler) for handler in logging.getLogger("dptrain").handlers):
        yield
    else:
        with messages():
            yield


@contextmanager
def messages() -> Iterator[None]:
    """Print dptrain's own log lines, and only those, whatever handlers MLflow and others put on the root logger."""
    logger = logging.getLogger("dptrain")
    handler = _ConsoleHandler()
    handler.setFormatter(logging.Formatter("dptrain: %(message)s"))
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]
