"""Folders and datasets as one tar stream, and sealed datasets that are read from memory."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from ..errors import ConfigError, SealError
from ..support.files import mount, mounted
from .age import decrypted
from .keys import Keys, find_keys

SUFFIX = ".seal"
DATA_YAML = "data.yaml"

_opened: dict[Path, tuple[int, int, int]] = {}  # which file each archive in memory was read from

Member = tuple[str, Path | bytes]  # its name in the archive, and the file or its content


def write_tar(members: Iterator[Member], stream: IO[bytes]) -> int:
    """Write members as a tar stream without owners and times; return how many."""
    count = 0
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
            else:
                with content.open("rb") as source:
                    entry.size = content.stat().st_size
                    archive.addfile(entry, source)
            count += 1
    return count


def extract(stream: IO[bytes], folder: Path) -> int:
    """Write the files of a tar stream below a folder; return how many.

    Raises:
        SealError: It holds something else than files, or a name that leads out of the folder.
    """
    count = 0
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for entry in archive:
            if not entry.isfile():
                raise SealError(f"the archive holds {entry.name}, which is not a file")
            try:
                archive.extract(entry, folder, set_attrs=False, filter="data")
            except tarfile.FilterError as error:
                raise SealError(f"the archive holds a name that leads elsewhere ({error})") from None
            count += 1
    return count


def open_archive(file: Path, keys: Keys) -> None:
    """Decrypt a sealed archive into memory; from here on its members can be read as files below its path.

    Nothing of it is on a disk, but for what the system swaps out.

    Raises:
        SealError: It cannot be opened, or is no archive.
    """
    place = file.absolute()
    status = place.stat()
    view = decrypted(place, keys).getbuffer()
    members: dict[str, memoryview] = {}
    try:
        with tarfile.open(fileobj=_Reader(view), mode="r:") as archive:
            for entry in archive:
                if entry.isfile():
                    members[entry.name] = view[entry.offset_data : entry.offset_data + entry.size]
    except tarfile.TarError:
        raise SealError(f"{file} is sealed, but it is not an archive of a dataset: seal its data.yaml") from None
    if DATA_YAML not in members:
        raise SealError(f"{file} is a sealed archive, but it has no data.yaml: seal the dataset by its data.yaml")
    mount(place, members)
    _opened[place] = status.st_ino, status.st_size, status.st_mtime_ns


def is_open(place: Path) -> bool:
    status = place.stat()
    return _opened.get(place) == (status.st_ino, status.st_size, status.st_mtime_ns)


class _Reader(io.RawIOBase):
    """Reads a view without a copy of the whole."""

    def __init__(self, view: memoryview) -> None:
        self._view, self._at = view, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(0, offset + (0, self._at, len(self._view))[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        end = len(self._view) if size is None or size < 0 else self._at + size
        data = bytes(self._view[self._at : end])
        self._at += len(data)
        return data


def is_sealed_dataset(path: str | Path) -> bool:
    """Whether ``data=`` names a sealed dataset."""
    return Path(path).suffix.lower() == SUFFIX


def open_dataset(path: str | Path, keys: Keys | None = None) -> Mapping[str, tuple[Path, ...]]:
    """Open a sealed dataset and list the images of its splits, as paths below the archive's own.

    Args:
        path: Made by ``dptrain seal data.yaml``.
        keys: ``None`` takes them from the environment.

    Raises:
        SealError: It cannot be opened.
        ConfigError: It is not there.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ConfigError(f"data={path} is not there: seal a dataset with dptrain seal data.yaml -o {path}")
    place = file.absolute()
    if keys is not None or not is_open(place):
        open_archive(place, keys or find_keys())
    members = mounted(place) or {}
    splits: dict[str, list[Path]] = {}
    for name in sorted(members):
        head, _, rest = name.partition("/")
        split, slash, _ = rest.partition("/")
        if head == "images" and slash:
            splits.setdefault(split, []).append(place / name)
    return {split: tuple(images) for split, images in splits.items()}
