"""Sealed weights as a start of training, or to evaluate: opened in memory, and unsealed on no disk."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ConfigError
from ..support.files import file_hash
from .age import SUFFIX, decrypted
from .keys import Keys, find_keys

_opened: dict[Path, tuple[tuple[int, int, int], bytes]] = {}  # which file each content in memory was read from


def is_weights(path: str | Path) -> bool:
    """Whether a path names a checkpoint, unsealed (``.pt``) or sealed (``.pt.age``)."""
    return Path(path).name.removesuffix(SUFFIX).endswith(".pt")


def is_sealed_weights(path: str | Path) -> bool:
    """Whether a path names a sealed checkpoint."""
    return is_weights(path) and Path(path).suffix == SUFFIX


def open_weights(file: Path, keys: Callable[[], Keys] = find_keys) -> bytes:
    """Decrypt sealed weights into memory, where they stay for :func:`plain_weights`; return their content.

    Args:
        file: Made by a sealed run, or by ``dptrain seal last.pt``.
        keys: Finds the key, where the file was not opened before; by default that of the environment.

    Raises:
        SealError: It cannot be opened.
        OSError: It is not there.
    """
    place = file.expanduser().absolute()
    status = place.stat()
    known = status.st_ino, status.st_size, status.st_mtime_ns
    found = _opened.get(place)
    if found is None or found[0] != known:
        found = _opened[place] = known, decrypted(place, keys()).getvalue()
    return found[1]


@contextmanager
def plain_weights(file: Path) -> Iterator[Path]:
    """A path to read the unsealed content of weights from: their own or, where they are sealed, a link to memory.

    Raises:
        SealError: They are sealed and cannot be opened.
        ConfigError: They are sealed, and this system has no files in memory.
        OSError: They are sealed and not there.
    """
    if not is_sealed_weights(file):
        yield file
        return
    content = open_weights(file)
    if not hasattr(os, "memfd_create"):
        raise ConfigError(f"{file}: sealed weights are read from memory on Linux only: unseal them first")
    handle = os.memfd_create("weights", os.MFD_CLOEXEC)
    try:
        with open(handle, "wb", closefd=False) as stream:
            stream.write(content)
        with tempfile.TemporaryDirectory() as folder:  # what loads them wants the suffix .pt
            link = Path(folder, file.name.removesuffix(SUFFIX))
            link.symlink_to(f"/proc/{os.getpid()}/fd/{handle}")
            yield link
    finally:
        os.close(handle)


def weights_hash(file: Path) -> str:
    """The sha256 of weights, of what is in them where they are sealed.

    Raises:
        SealError: They are sealed and cannot be opened.
        OSError: They are not there.
    """
    return hashlib.sha256(open_weights(file)).hexdigest() if is_sealed_weights(file) else file_hash(file)
