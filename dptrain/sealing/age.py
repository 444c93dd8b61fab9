"""The age format (age-encryption.org/v1), by pyrage: X25519 or scrypt, ChaCha20-Poly1305 in chunks of 64 KiB.

Each chunk is authenticated with its number and whether it is the last one (the STREAM construction of Hoang,
Reyhanitabar, Rogaway and Vizár 2015), so a flipped bit, a cut at any place, chunks in another order and bytes after the
end all fail.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from ..errors import SealError
from ..support.files import write_atomically
from .keys import Keys, pyrage

MAGIC = b"age-encryption.org/v1\n"
SUFFIX = ".age"


def is_sealed(file: Path) -> bool:
    """Whether a file begins as age files do."""
    try:
        with file.open("rb") as stream:
            return stream.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def encrypt(source: IO[bytes], target: IO[bytes], recipients: Sequence[Any], passphrase: str | None = None) -> None:
    """Seal a stream, to public keys chunk by chunk, or with a passphrase in memory.

    Raises:
        OSError: A stream failed.
    """
    if passphrase is not None:
        target.write(pyrage().passphrase.encrypt(source.read(), passphrase))
    else:
        pyrage().encrypt_io(source, target, list(recipients))


def decrypt(source: IO[bytes], target: IO[bytes], keys: Keys, name: str) -> None:
    """Open a stream. What was written to ``target`` when it fails is to be thrown away.

    Raises:
        SealError: It is no age file, the key is another one, or any bit is not as it was sealed.
    """
    library = pyrage()
    head = source.read(len(MAGIC) + 16)
    source.seek(0)
    if not head.startswith(MAGIC):
        raise SealError(f"{name} is not a sealed file: it does not begin as age files do, or its header is damaged")
    by_passphrase = head[len(MAGIC) :].startswith(b"-> scrypt ")
    if by_passphrase and keys.passphrase is None:
        raise SealError(f"{name} was sealed with a passphrase, and {keys.place} holds an identity")
    if not by_passphrase and not keys.identities:
        raise SealError(f"{name} was sealed to public keys, and {keys.place} holds a passphrase")
    watched = _Watched(target)
    try:
        if by_passphrase:
            watched.write(library.passphrase.decrypt(source.read(), keys.passphrase))
        else:
            library.decrypt_io(source, watched, list(keys.identities))
    except library.DecryptError as error:
        raise SealError(
            f"{name} cannot be opened with the key from {keys.place}: it is another key, or the header is damaged "
            f"({str(error).splitlines()[0].rstrip('.')})"
        ) from None
    except OSError as error:  # what the chunks' authentication says comes as one, too
        if watched.failed or error.errno is not None:
            raise
        raise SealError(f"{name} is damaged or cut off ({error}): nothing of it is used") from None


class _Watched:
    """Tells a disk that is full from a chunk that is forged."""

    def __init__(self, target: IO[bytes]) -> None:
        self._target, self.failed = target, False

    def write(self, data: bytes) -> int:
        try:
            return self._target.write(data)
        except BaseException:
            self.failed = True
            raise

    def flush(self) -> None:
        self._target.flush()


def decrypted(file: Path, keys: Keys) -> io.BytesIO:
    """Return the content of a sealed file, in memory only.

    Raises:
        SealError: As :func:`decrypt`, or it cannot be read.
    """
    content = io.BytesIO()
    try:
        with file.open("rb") as stream:
            decrypt(stream, content, keys, str(file))
    except OSError as error:
        raise SealError(f"{file} cannot be read ({error.strerror}): check path and permission") from None
    content.seek(0)
    return content


def write_sealed(file: Path, write: Callable[[IO[bytes]], object], recipients: Sequence[Any]) -> str:
    """As :func:`dptrain.support.files.write_atomically`, but sealed; return the sha256 of what was sealed, in memory
    only.
    """
    content = io.BytesIO()
    write(content)
    content.seek(0)
    digest = hashlib.sha256(content.getbuffer()).hexdigest()
    write_atomically(file, lambda stream: encrypt(content, stream, recipients))
    return digest
