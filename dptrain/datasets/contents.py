"""A dataset's files, read so that what is trained on is what was checked and charged: the bytes decide, not the times.

Sizes and times of a file can be those of another one, a network file system reports old ones, and a hard link or a
backup changes them where nothing changed. So each read is compared by the hash of what was read.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import DataError
from ..support.files import MOST_BYTES, read_file

_ABSENT = b""  # in place of a hash: there was no such file

_lock = threading.Lock()
_runs = 0  # blocks of files_held that are open
_first: dict[str, bytes] = {}  # what a file held when it was first read


@contextmanager
def files_held() -> Iterator[None]:
    """Inside the block, refuse a file that is not what it was when :func:`read_data` first read it there."""
    global _runs
    with _lock:
        _runs += 1
    try:
        yield
    finally:
        with _lock:
            _runs -= 1
            if not _runs:
                _first.clear()


def read_data(file: Path, most: int = MOST_BYTES, wanted: bytes | None = None) -> bytes:
    """Read a file of a dataset: an image, labels, a list.

    Args:
        file: Its path.
        most: Most bytes that are read.
        wanted: The :func:`content_hash` that it must have.

    Raises:
        DataError: It is not what it was.
        OSError: As :func:`dptrain.support.files.read_file`.
    """
    try:
        data = read_file(file, most)
    except FileNotFoundError:
        if wanted is not None or (_runs and _first.setdefault(str(file), _ABSENT) != _ABSENT):
            raise DataError(f"{file}: was removed after it was checked; {_FIX}") from None
        raise
    if _runs or wanted is not None:
        found = content_hash(data)
        if wanted not in (None, found) or (_runs and _first.setdefault(str(file), found) != found):
            raise DataError(f"{file}: changed after it was checked; {_FIX}")
    return data


def content_hash(data: bytes) -> bytes:
    """Return the SHA-256 hash of a file's bytes; it is not keyed: keep it in memory only."""
    return hashlib.sha256(data).digest()


_FIX = "restore the file and resume, or start a new run"
