"""Datasets of one's own: images and boxes from memory, a database or a stream, in the place of files.

Inside a run each item is a file that is nowhere on the disk: its pixels as BMP, its boxes as text. So all that holds
for files holds for it: its identity by pixels, the ledger's hashes, and that each read is what was checked and charged.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, runtime_checkable
from urllib.parse import quote, unquote

import numpy as np
from numpy.typing import ArrayLike

from ..errors import ConfigError, DataError
from ..support.files import mount, mounted, unmount
from . import MOST_PIXELS
from .data_yaml import class_names, shown

#: Where such a dataset lies, as its paths have it.
IN_MEMORY = Path("/in memory")
_NAME = re.compile(r"\w[\w .-]*", re.ASCII)
_SPLITS = ("train", "val")


@runtime_checkable
class Dataset(Protocol):
    """Images and boxes for ``dptrain.train(data=...)``, item by item.

    The guarantee is that for files, for adding or removing one item, or with ``privacy.unit="group"`` all items of one
    ``unit``. It rests on items that do not change: an item must be the same, in each pixel and each box, whenever it is
    asked for, or the run stops. Let ``augment`` vary images, never the dataset.

    Items are asked for in one process, one at a time, from several threads in turn; each some times before the first
    step, and then whenever it is drawn. Nothing of them is written to a disk.

    Attributes:
        names: Class names: a list, or number to name, numbers 0, 1, 2, ... They are public.
        name: May be left out. What the data is called in the statement and the ledger; public. A resumed run must have
            the same.
    """

    names: Sequence[str] | Mapping[int, str]

    def __len__(self) -> int:
        """The number of items; it may not change. Private: ``privacy.dataset_size`` is what is declared of it."""

    def __getitem__(self, index: int, /) -> tuple[ArrayLike, ArrayLike, ArrayLike]:
        """Return an item.

        Args:
            index: Number in ``range(len(self))``.

        Returns:
            The image, uint8 of shape (height, width, 3), RGB; its boxes, shape (m, 4): centre x, centre y, width and
            height in parts of the image; their classes, shape (m,). ``m`` may be 0.
        """


@runtime_checkable
class GroupedDataset(Dataset, Protocol):
    """A :class:`Dataset` of groups (patients, videos), for ``privacy.unit="group"``."""

    def unit(self, index: int, /) -> str:
        """Return the name of the group that an item is of; it may not change."""


@contextmanager
def held(data: Dataset | Mapping[str, Dataset]) -> Iterator[Path]:
    """Let :func:`dptrain.datasets.sources.load_data` find a dataset inside the block; give its place.

    Raises:
        ConfigError: It is no :class:`Dataset`, has a name that cannot be, or is in use by another run.
        DataError: Its splits have other classes, or a group has no name.
    """
    splits = dict(data) if isinstance(data, Mapping) else {"train": data}
    for split, items in splits.items():
        if split not in _SPLITS or not isinstance(items, Dataset):
            raise ConfigError(
                f"data={shown(split)}: {type(items).__name__} is no split: give a data.yaml, a dptrain.Dataset (names, "
                "__len__, __getitem__), or {'train': one, 'val': another}"
            )
    if "train" not in splits:
        raise ConfigError("data has no 'train': give {'train': a dptrain.Dataset, 'val': another}")
    name = getattr(splits["train"], "name", "dataset")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(f"the dataset's name {shown(name)} is not one of letters, digits, spaces, dots and dashes")
    place = IN_MEMORY / name
    if mounted(place) is not None:
        raise ConfigError(f"a dataset called {name!r} is in use by another run here: give this one another name")
    mount(place, OwnFiles(place, splits))
    try:
        yield place / "data.yaml"
    finally:
        unmount(place)


class OwnFiles(Mapping[str, bytes]):
    """The items of a dataset as files that are made when they are read.

    Attributes:
        images: The images of every split, by their places, in the order of the items.
        names: Class number to class name.
        has_units: Whether the training items say what group they are of.
    """

    def __init__(self, place: Path, splits: Mapping[str, Dataset]) -> None:
        self.place = place
        self.has_units = callable(getattr(splits["train"], "unit", None))
        named = {split: class_names(place / split, {"names": _plain(items.names)}) for split, items in splits.items()}
        self.names = named["train"]
        if named.get("val", self.names) != self.names:
            raise DataError(f"{place}: the classes of val {shown(named['val'])} are not those of train; make them one")
        self._splits = splits
        self._items: dict[str, tuple[str, int]] = {}  # without their suffix, of images/... and labels/... alike
        self._first: dict[tuple[str, int], tuple[bytes, bytes]] = {}  # hash of an item, and its boxes
        self._lock = threading.RLock()
        self.images = {split: tuple(self._listed(split, items)) for split, items in splits.items()}

    def _listed(self, split: str, items: Dataset) -> Iterator[Path]:
        for index in range(len(items)):
            below = PurePosixPath(split, *([f"={quote(self._unit(split, index), safe='')}"] if self.has_units else ()))
            self._items[str(below / str(index))] = split, index
            yield self.place / "images" / below / f"{index}.bmp"

    def _unit(self, split: str, index: int) -> str:
        unit = getattr(self._splits[split], "unit", None)
        found = unit(index) if callable(unit) else None
        if not isinstance(found, str) or not found:
            raise DataError(
                f"{self.place}: unit({index}) of {split} is {shown(found)}: every item needs the name of its group, a "
                "text"
            )
        return found

    def __getitem__(self, name: str) -> bytes:
        kind, _, rest = name.partition("/")
        path = PurePosixPath(rest)
        item = self._items.get(str(path.with_suffix("")))
        if item is None or (kind, path.suffix) not in (("images", ".bmp"), ("labels", ".txt")):
            raise KeyError(name)
        with self._lock:
            if kind == "labels" and item in self._first:
                return self._first[item][1]
            pixels, boxes = self._read(*item)
            return boxes if kind == "labels" else pixels

    def _read(self, split: str, index: int) -> tuple[bytes, bytes]:
        """The files of an item: what it was when it was first read, or an error."""
        place = f"{self.place}: item {index} of {split}"
        try:
            image, boxes, classes = self._splits[split][index]
            pixels, rows, kinds = np.asarray(image), np.asarray(boxes), np.asarray(classes)
        except Exception as error:  # whatever the code of others raises
            reason = " ".join(str(error).split())[:200]
            raise DataError(
                f"{place} cannot be read ({type(error).__name__}: {reason}); correct the dataset"
            ) from error
        text = _as_text(place, rows, kinds)
        content = _as_bmp(place, pixels)
        found = hashlib.sha256(hashlib.sha256(content).digest() + text).digest()
        if self._first.setdefault((split, index), (found, text))[0] != found:
            raise DataError(
                f"{place} changed after it was checked: an item must be the same at every read; let augment vary images"
            )
        return content, text

    def __iter__(self) -> Iterator[str]:
        return (f"images/{name}.bmp" for name in self._items)

    def __len__(self) -> int:
        return len(self._items)


def find_own(file: Path) -> OwnFiles | None:
    """The dataset that ``data=`` names; None where it names a file.

    Raises:
        DataError: It was one, and is none here.
    """
    if not is_own(file):
        return None
    found = mounted(file.parent)
    if not isinstance(found, OwnFiles):
        raise DataError(
            f"data={file} was a dataset in Python, which no command can find: give it to dptrain.train(data=...) again"
        )
    return found


def is_own(data: str | Path) -> bool:
    """Whether ``data=`` names a dataset of one's own."""
    return Path(data).is_relative_to(IN_MEMORY)


def unit_in(image: Path) -> str | None:
    """The group of an item that says it; None of other images."""
    folder = image.parent.name
    return unquote(folder[1:]) if is_own(image) and folder.startswith("=") else None


def _plain(names: Any) -> Any:
    return list(names) if isinstance(names, Sequence) and not isinstance(names, str) else names


def _as_text(place: str, rows: np.ndarray, kinds: np.ndarray) -> bytes:
    rows = rows.reshape(0, 4) if rows.size == 0 else rows
    kinds = kinds.reshape(-1)
    if (
        rows.ndim != 2
        or rows.shape[1] != 4
        or len(kinds) != len(rows)
        or not {rows.dtype.kind, kinds.dtype.kind} <= _REAL
    ):
        raise DataError(
            f"{place}: boxes are {_kind(rows)} and classes {_kind(kinds)}, not numbers of shape (m, 4) and (m,)"
        )
    lines = (" ".join(map(repr, [kind, *row])) for kind, row in zip(kinds.tolist(), rows.tolist(), strict=True))
    return "".join(f"{line}\n" for line in lines).encode()


def _as_bmp(place: str, pixels: np.ndarray) -> bytes:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise DataError(f"{place}: the image is {_kind(pixels)}, not uint8 of shape (height, width, 3), RGB")
    if pixels.shape[0] * pixels.shape[1] > MOST_PIXELS:
        raise DataError(f"{place}: the image has more than {MOST_PIXELS:,} pixels; cut it into tiles or shrink it")
    import cv2  # what only looks whether an image is in memory needs no codecs

    done, content = cv2.imencode(".bmp", np.ascontiguousarray(pixels[..., ::-1]))
    if not done:
        raise DataError(f"{place}: an image of {pixels.shape[1]} x {pixels.shape[0]} pixels cannot be held; shrink it")
    return bytes(content)


def _kind(array: np.ndarray) -> str:
    return f"{array.dtype} of shape {array.shape}"


_REAL = set("iuf")
