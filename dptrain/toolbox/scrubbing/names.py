"""New names for files: keyed, so that nobody without the key can tell or guess the old ones."""

from __future__ import annotations

import csv
import hmac
import io
import os
import re
import secrets
import stat
import uuid
from collections.abc import Iterable
from pathlib import Path, PurePath

from ...errors import ConfigError
from ...support.files import read_file

_KEY_BYTES = 32
_DIGITS = 20  # 80 bits: two of a million files share a name with probability below 1e-12
_PSEUDONYM = re.compile(rf"[0-9a-f]{{{_DIGITS}}}(_\d{{4}})?")
# Folder names that readers of a dataset look for; any other can be a patient's, a ward's, a place's.
STRUCTURE = frozenset({"images", "labels", "train", "val", "valid", "test", "dicom"})
COLUMNS = ("pseudonym", "original", "patient")


class Names:
    """Pseudonyms by HMAC-SHA256 under one key: the same name always has the same one, and names never meet.

    Args:
        key: 32 bytes.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def of(self, text: str, kind: str) -> str:
        """Return the pseudonym of a name among those of its kind (file, folder, patient)."""
        return self._mac(kind, text).hex()[:_DIGITS]

    def folder(self, place: PurePath) -> PurePath:
        """Return the new place of a folder; the names that a dataset is read by stay as they are."""
        parts = [part if part in STRUCTURE else self.of(part, "folder") for part in place.parts]
        return PurePath(*parts)

    def uid(self, old: str) -> str:
        """Return the UID that stands for a DICOM one everywhere: a UUID of its own (PS3.5 annex B.2)."""
        return f"2.25.{uuid.UUID(bytes=self._mac('uid', old)[:16], version=4).int}"

    def _mac(self, kind: str, text: str) -> bytes:
        return hmac.digest(self._key, f"{kind}\0{text}".encode("utf-8", "surrogateescape"), "sha256")


def is_pseudonym(name: str) -> bool:
    """Whether a name, without its suffix, looks like one made here."""
    return _PSEUDONYM.fullmatch(name) is not None


def find_key(file: str | Path | None) -> bytes:
    """Return the key in a file, which is made if it is not there; without a file a key that nobody will ever know.

    Raises:
        ConfigError: It cannot be read or made, is no key, or can be read by everyone.
    """
    if file is None:
        return secrets.token_bytes(_KEY_BYTES)
    path = Path(file).expanduser()
    try:
        if not path.exists():
            _write_secret(path, secrets.token_hex(_KEY_BYTES) + "\n")
        text, mode = read_file(path, 4096).decode("ascii", "replace").strip(), path.stat().st_mode
    except OSError as error:
        raise ConfigError(f"--key {file} cannot be read or made ({error.strerror}): choose another place") from None
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise ConfigError(f"--key {file} is not a key: 64 hexadecimal digits are expected (they are not shown)")
    if mode & stat.S_IRWXO:
        raise ConfigError(f"--key {file} can be read by everyone: chmod o= {file}")
    return bytes.fromhex(text)


def write_mapping(file: Path, rows: Iterable[tuple[str, str, str]]) -> None:
    """Write which pseudonym stands for which file and patient, for its owner's eyes only; it never replaces one.

    Raises:
        ConfigError: It cannot be written.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    try:
        _write_secret(file, text.getvalue())
    except OSError as error:
        raise ConfigError(f"--mapping {file} cannot be written ({error.strerror}): choose another place") from None


def _write_secret(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as stream:
        stream.write(text.encode("utf-8", "surrogateescape"))
        stream.flush()
        os.fsync(handle)
