"""Seal files, folders and datasets; open them again."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

import yaml

from ..datasets.data_yaml import YAML_SUFFIXES
from ..datasets.labels import label_path
from ..errors import ConfigError, DataError
from ..sealing.age import SUFFIX, decrypt, encrypt, is_sealed
from ..sealing.archive import DATA_YAML, Member, extract, write_tar
from ..sealing.archive import SUFFIX as DATASET
from ..sealing.keys import Keys, find_keys, recipients_of
from ..support.files import write_atomically

if TYPE_CHECKING:
    from ..datasets.sources import DataConfig

TAR = f".tar{SUFFIX}"


def seal(
    source: str | Path,
    output: str | Path | None = None,
    *,
    recipients: Iterable[str] = (),
    keys: Keys | None = None,
) -> Path:
    """Encrypt a file, a folder or a dataset, in the format of age; the source stays as it is.

    What is sealed is secret to all but the holders of the keys and cannot be changed unnoticed by anyone who is not
    told a recipient. Its size is not secret. A file sealed to public keys does not say who sealed it.

    Args:
        source: A file; a folder, which becomes a tar archive; an Ultralytics data.yaml, which becomes a sealed dataset
            that ``dptrain train data=X.seal`` reads; or ``-`` for the standard input.
        output: Default: the source with ``.age``, ``.tar.age`` or ``.seal`` after its name. It must not be there yet.
        recipients: Public keys (``age1...``) or files of such lines.
        keys: With a passphrase, instead of recipients.

    Returns:
        The sealed file.

    Raises:
        ConfigError: Both or neither of recipients and a passphrase, or a place that does not fit.
        DataError: The source cannot be read.
    """
    public = recipients_of(recipients)
    passphrase = keys.passphrase if keys is not None else None
    if bool(public) == (passphrase is not None):
        raise ConfigError("give either recipients (age1... or a file of such lines), or a passphrase")
    name = str(source)
    if name == "-" and output is None:
        raise ConfigError("what comes from the standard input needs -o FILE")
    place = Path(source).expanduser()
    kind = _kind(place, name)
    target = Path(output).expanduser() if output is not None else _default(place, kind)
    if kind == "dataset" and target.suffix != DATASET:
        raise ConfigError(f"output={target}: a sealed dataset is called NAME{DATASET}, or data= would not know it")
    if target.exists():
        raise ConfigError(f"output={target} already exists: choose another, so that nothing is overwritten")
    if kind == "folder" and target.resolve().is_relative_to(place.resolve()):
        raise ConfigError(f"output={target} is inside {place}: choose another")
    try:
        if kind == "stream":
            write_atomically(target, lambda stream: encrypt(sys.stdin.buffer, stream, public, passphrase))
        elif kind == "file":
            with place.open("rb") as content:
                write_atomically(target, lambda stream: encrypt(content, stream, public, passphrase))
        else:
            members = _members(place, kind)
            write_atomically(
                target,
                lambda stream: _pumped(
                    lambda pipe: write_tar(members, pipe), lambda pipe: encrypt(pipe, stream, public, passphrase)
                ),
            )
    except OSError as error:
        raise DataError(f"{error.filename or target} cannot be read or written ({error.strerror or error})") from None
    return target


def unseal(source: str | Path, output: str | Path | None = None, *, keys: Keys | None = None) -> Path:
    """Decrypt what :func:`seal`, or age itself, has sealed; nothing is left if any bit of it is not as it was.

    Args:
        source: A sealed file; ``.tar.age`` and ``.seal`` are unpacked into a folder.
        output: A new file or folder; default: the name without its last suffix.
        keys: Default: from the environment.

    Raises:
        SealError: The key is another one, or the file is damaged; nothing is written.
        ConfigError: A place does not fit.
    """
    place = Path(source).expanduser()
    if not place.is_file():
        raise ConfigError(f"{source} is not there: give a sealed file")
    archive = place.name.endswith(TAR) or place.suffix == DATASET
    if output is None and place.suffix not in (SUFFIX, DATASET):
        raise ConfigError(f"{source} does not end in {SUFFIX} or {DATASET}: give -o")
    plain = place.with_name(place.name.removesuffix(TAR)) if place.name.endswith(TAR) else place.with_suffix("")
    target = Path(output).expanduser() if output is not None else plain
    if target.exists():
        raise ConfigError(f"output={target} already exists: choose another, so that nothing is overwritten")
    keys = keys or find_keys()
    try:
        with place.open("rb") as sealed:
            if archive:
                _unpack(sealed, target, keys, str(source))
            else:
                write_atomically(target, lambda stream: decrypt(sealed, stream, keys, str(source)))
    except OSError as error:
        raise DataError(f"{error.filename or target} cannot be read or written ({error.strerror or error})") from None
    return target


def _unpack(sealed: IO[bytes], target: Path, keys: Keys, name: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part"))
    try:
        _pumped(lambda pipe: decrypt(sealed, pipe, keys, name), lambda pipe: extract(pipe, part))
        part.chmod(0o755)
        part.replace(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _pumped(produce: Callable[[IO[bytes]], object], consume: Callable[[IO[bytes]], object]) -> None:
    """Run a writer in a thread and a reader here, with a pipe between them; the writer's failure comes first."""
    reading, writing = os.pipe()
    failure: list[BaseException] = []

    def work() -> None:
        try:
            with os.fdopen(writing, "wb", 1 << 20) as pipe:
                produce(pipe)
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        with os.fdopen(reading, "rb", 1 << 20) as pipe:
            consume(pipe)
            while pipe.read(1 << 20):  # a tar ends before its stream does; what follows is authenticated too
                pass
    except BaseException as error:
        thread.join()
        told = [cause for cause in failure if not isinstance(cause, BrokenPipeError)]
        raise (told[0] if told else error) from None
    thread.join()
    if failure:
        raise failure[0]


def _kind(place: Path, name: str) -> str:
    if name == "-":
        return "stream"
    if place.is_dir():
        return "folder"
    if not place.is_file():
        raise ConfigError(f"{name} is not there: give a file, a folder or a data.yaml")
    if is_sealed(place):
        raise ConfigError(f"{name} is sealed already")
    return "dataset" if place.suffix.lower() in YAML_SUFFIXES else "file"


def _default(place: Path, kind: str) -> Path:
    suffix = {"file": SUFFIX, "folder": TAR, "dataset": DATASET}[kind]
    if kind == "dataset":
        from ..datasets.data_yaml import data_name

        return place.with_name(data_name(place) + suffix)
    return place.with_name((place.name or place.resolve().name) + suffix)


def _members(place: Path, kind: str) -> Iterator[Member]:
    if kind == "folder":
        return folder_members(place)
    from ..datasets.sources import load_data

    return dataset_members(load_data(place, text_for="dptrain seal"))


def dataset_members(data: DataConfig) -> Iterator[Member]:
    """What a sealed dataset holds: a data.yaml of its own, then images and labels in the order that training has."""
    splits = {split: getattr(data, split) for split in ("train", "val", "test") if getattr(data, split)}
    declared = {**{split: f"images/{split}" for split in splits}, **data.meaning}
    yield DATA_YAML, yaml.safe_dump(declared, sort_keys=False).encode()
    for split, images in splits.items():
        for number, image in enumerate(images):
            name = f"{number:07}_{image.name}"
            yield f"images/{split}/{name}", image
            labels = label_path(image)
            if labels.is_file():
                yield f"labels/{split}/{PurePosixPath(name).with_suffix('.txt')}", labels
            elif labels.is_symlink():
                raise DataError(f"{labels}: links to a file that is not there; fetch it, or remove the link")


def folder_members(folder: Path) -> Iterator[Member]:
    """Every file of a folder, at any depth; a link is an error, since what it leads to would not be sealed."""
    for file in sorted(folder.rglob("*")):
        if file.is_symlink():
            raise DataError(f"{file} is a link: what it leads to would not be sealed; put the file there itself")
        if file.is_file():
            yield file.relative_to(folder).as_posix(), file
