"""Files of a run that many rooms read or write. Nothing here needs torch, so the quick commands stay quick."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from ..errors import ConfigError, DptrainError

MOST_BYTES, MOST_TEXT = 1 << 31, 1 << 26  # of an image, and of a file that people or programs write as text
_PART = ".part"


def write_atomically(file: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file so that a reader, or a crash, finds the whole old one or the whole new one.

    Raises:
        OSError: It could not be written; the error names it, and the old one is still there.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.", suffix=_PART)
    try:
        with os.fdopen(handle, "wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(file)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        # torch.save raises an error of its own over the failed write; what dptrain raises over one says what it means.
        failed = error if isinstance(error, OSError | DptrainError) else error.__context__
        if isinstance(failed, OSError) and failed.errno is not None:
            raise OSError(failed.errno, failed.strerror, str(file)) from error
        raise
    sync_folder(file.parent)


def refuse_unwritable(place: Path, setting: str) -> None:
    """Refuse a place where nothing can be made, before the work whose outcome would be lost.

    Raises:
        ConfigError: What is above it is not a folder, or may not be written.
    """
    whole = place.expanduser().absolute()
    there = next(part for part in (whole, *whole.parents) if os.path.lexists(part))
    if there != whole and not there.is_dir():
        raise ConfigError(f"{setting} {place}: {there} is not a folder; choose another place")
    if not os.access(there if there.is_dir() else there.parent, os.W_OK | os.X_OK):
        raise ConfigError(f"{setting} {place} cannot be written (no permission); choose another place")


def sync_folder(folder: Path) -> None:
    """Bring a folder's list of names to the disk: a file that was synced can still lose its name to a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_parts(folder: Path) -> None:
    """Remove what writes that were killed have left in a folder and below it."""
    for file in folder.rglob(f".*{_PART}"):
        file.unlink(missing_ok=True)


def write_text(file: Path, text: str) -> None:
    """:func:`write_atomically` of a text, as UTF-8."""
    write_atomically(file, lambda stream: stream.write(text.encode()))


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    """:func:`write_atomically` of plain values, by :func:`to_json`."""
    write_text(file, to_json(values, indent=1))


def to_json(values: Any, indent: int | None = None) -> str:
    """Return plain values as JSON, which has no infinity: the text ``"inf"`` stands for it, and null for no number."""
    return json.dumps(_finite(values), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


_DAY = 24 * 60 * 60


def start_of_day() -> int:
    """Return the second at which this day began, UTC: the finest time that leaves a run."""
    return int(time.time()) // _DAY * _DAY


def even_times(folder: Path, deep: bool = True) -> None:
    """Give a folder and what is in it one time, the start of the day.

    When a file was written tells how long the steps before it took, and that depends on the images they drew.

    Args:
        folder: Nothing happens where there is none.
        deep: Whether also in the folders that are in it.
    """
    if not folder.is_dir():
        return
    at = start_of_day()
    for place in (*(folder.rglob("*") if deep else folder.glob("*")), folder):
        with suppress(OSError):  # one that is gone by now, or that somebody else owns
            os.utime(place, (at, at), follow_symlinks=False)


Members = Mapping[str, memoryview] | Mapping[str, bytes]
_archives: dict[str, Members] = {}  # opened archives, by their path


def mount(archive: Path, members: Members) -> None:
    """Let :func:`read_file` find the members of an archive in memory as files below its path."""
    _archives[str(archive)] = members


def unmount(archive: Path) -> None:
    """Forget what :func:`mount` was told."""
    del _archives[str(archive)]


def mounted(archive: Path) -> Members | None:
    """The members of an archive that is in memory, None where it is not."""
    return _archives.get(str(archive))


def _member(file: Path) -> memoryview | bytes | None:
    """The member that a path names, None where it leads into no archive."""
    text = str(file)
    for archive, members in _archives.items():
        if text.startswith(f"{archive}{os.sep}"):
            found = members.get(text[len(archive) + 1 :])
            if found is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), text)
            return found
    return None


def read_file(file: Path, most: int = MOST_BYTES) -> bytes:
    """Return the bytes of an ordinary file of at most ``most`` bytes; a pipe or a device may never end.

    A path into an archive in memory (:func:`mount`) gives that member's.

    Raises:
        OSError: It cannot be read, is no ordinary file or a larger one; ``strerror`` says which.
    """
    member = _member(file)
    if member is not None:
        return bytes(member)
    try:
        status = file.stat()
    except ValueError:  # a zero byte, or a character that no file name can hold
        raise OSError(errno.EINVAL, "not a file name", str(file)) from None
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not an ordinary file", str(file))
    if status.st_size > most:
        raise OSError(errno.EFBIG, f"{status.st_size} bytes, and at most {most} are read", str(file))
    return file.read_bytes()


def read_json(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        OSError: It cannot be read.
        ValueError: It holds something else; the message says what.
    """
    try:
        values = json.loads(read_file(file, MOST_TEXT).decode())
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError("no JSON object")
    return values


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def file_hash(file: Path) -> str:
    """Return the sha256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def is_changed(key: str, now: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    """Whether a setting is not what it was; a switch that an earlier version did not have was off."""
    return now.get(key) != before.get(key) and (key in before or now[key] is not False)


def differences(now: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    """Return which settings are not what they were, in words for a message; empty where none.

    All of them: one that follows from another (a learning rate, from its optimizer) changes with it.
    """
    new, old = flatten(now), flatten(before)
    changed = [key for key in sorted(old.keys() | new.keys()) if is_changed(key, new, old)]
    return ", ".join(f"{key}={new.get(key)} (there: {old.get(key)})" for key in changed)


def refuse_damage(file: Path | IO[bytes]) -> None:
    """Hold the parts of a torch file against their checksums, which torch itself does not look at.

    Raises:
        zipfile.BadZipFile: One of them is not what was written. Files of before torch 1.6 have no checksums and pass.
    """
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        broken = archive.testzip()
    if broken is not None:
        raise zipfile.BadZipFile(f"{broken} does not fit its checksum")
