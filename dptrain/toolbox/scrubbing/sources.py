"""What is there to scrub: a file, a folder or a dataset, with the labels that belong to its images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

import yaml

from ...datasets.data_yaml import YAML_SUFFIXES
from ...datasets.labels import label_path
from ...datasets.sources import SPLITS, DataConfig, load_data
from ...errors import ConfigError, DataError
from ...sealing.archive import is_sealed_dataset
from ...support.files import read_file
from .clean import suffix_of

_HEAD = 132
_IMAGES = (
    ".avif", ".bmp", ".dng", ".dcm", ".gif", ".heic", ".heif", ".jp2", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff",
    ".webp",
)  # fmt: skip


@dataclass(frozen=True)
class Item:
    """One image to scrub.

    Attributes:
        file: Where it is.
        name: Its path within the source: what its new name is made of, and what reports call it.
        folder: Where it goes, as a folder of the output whose parts are still the old names.
        labels: Its label file, None where it has none.
    """

    file: Path
    name: str
    folder: PurePath
    labels: Path | None


@dataclass(frozen=True)
class Source:
    """The images of a source in path order, what stays behind, and a dataset whose data.yaml goes along."""

    items: tuple[Item, ...]
    left_out: tuple[str, ...] = ()
    data: DataConfig | None = None

    def data_yaml(self) -> str | None:
        """The data.yaml of the output, None where the source is no dataset."""
        if self.data is None:
            return None
        splits = dict.fromkeys(item.folder.parts[1] for item in self.items)
        return yaml.safe_dump({**{split: f"images/{split}" for split in splits}, **self.data.meaning}, sort_keys=False)


def find(place: str | Path) -> Source:
    """List what a source holds.

    Args:
        place: An image, a folder (searched to any depth, without hidden files), or an Ultralytics data.yaml.

    Raises:
        ConfigError: It is not there.
        DataError: It holds no image, or one in a format that cannot be scrubbed.
    """
    root = Path(place).expanduser()
    try:
        if root.is_dir():
            source = _folder(root)
        elif root.suffix.lower() in YAML_SUFFIXES:
            source = _dataset(root)
        elif root.is_file() and is_sealed_dataset(root):
            raise DataError(
                f"{place} is sealed, and scrubbed images would be stored unencrypted: dptrain unseal it first"
            )
        elif root.is_file():
            source = Source((Item(root, root.name, PurePath(), _labels(root)),))
        else:
            raise ConfigError(f"{place} is not there: give an image, a folder or a data.yaml")
    except OSError as error:
        raise DataError(f"{error.filename or place}: cannot be looked into ({error.strerror})") from None
    if not source.items:
        raise DataError(f"{place} holds no JPEG, PNG, TIFF, WebP or DICOM image: correct the path")
    for item in source.items:
        if _kind(item.file) is None:
            raise DataError(
                f"{item.file}: is not a JPEG, PNG, TIFF, WebP or DICOM file, so its metadata cannot be removed; "
                "convert it to PNG, or remove the file"
            )
    return source


def _folder(root: Path) -> Source:
    items, others = [], []
    for file in _files(root):
        relative = file.relative_to(root)
        if file.suffix.lower() in _IMAGES or (file.suffix.lower() != ".txt" and _kind(file) is not None):
            items.append(Item(file, relative.as_posix(), PurePath(*relative.parts[:-1]), _labels(file)))
        else:
            others.append(file)
    carried = {item.labels for item in items}
    return Source(tuple(items), tuple(str(file) for file in others if file.absolute() not in carried))


def _files(folder: Path) -> Iterator[Path]:
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir() and not entry.is_symlink():
            yield from _files(entry)
        elif entry.is_file():
            yield entry


def _dataset(file: Path) -> Source:
    data = load_data(file, text_for="dptrain scrub")
    items = []
    for split in SPLITS:
        for image in getattr(data, split):
            inside = image.is_relative_to(data.path)
            name = (image.relative_to(data.path) if inside else image).as_posix()
            items.append(Item(image, name, PurePath("images", split), _labels(image)))
    return Source(tuple(items), data=data)


def _labels(image: Path) -> Path | None:
    labels = label_path(image.absolute())  # of images/x.jpg alone, Ultralytics' rule would not see the folder
    return labels if labels.is_file() else None


def _kind(file: Path) -> str | None:
    with file.open("rb") as stream:
        return suffix_of(stream.read(_HEAD))


def read(file: Path) -> bytes:
    """The bytes of a source file.

    Raises:
        DataError: It cannot be read.
    """
    try:
        return read_file(file)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); check path and permission") from None
