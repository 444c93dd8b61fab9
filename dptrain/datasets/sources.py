"""Ultralytics' ``data.yaml`` as a whole: images, classes and boxes of every split; nothing is written or downloaded."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from ..sealing.archive import is_sealed_dataset, open_dataset
from .boxes import CocoBoxes, TextBoxes, VocBoxes
from .coco import CocoFile
from .data_yaml import (
    boxes_written,
    channel_count,
    class_names,
    keypoint_shape,
    read_yaml,
    refuse_no_yaml,
    refuse_unread_val,
)
from .labels import STRICT, boxes_of
from .listing import list_split
from .own import OwnFiles, find_own
from .roots import root_of, shipped
from .voc import is_voc

if TYPE_CHECKING:
    import numpy as np

SPLITS = ("train", "val", "test")
_TEXT = TextBoxes()


@dataclass(frozen=True)
class DataConfig:
    """A dataset as its ``data.yaml`` declares it.

    Attributes:
        path: Root folder that relative entries start from.
        names: Class number to class name, numbers 0, 1, 2, ...
        train: Image files of the training split, sorted, each file once. **Their number is private.**
        val: Image files of the validation split.
        test: Image files of the test split; empty where it is not declared or not there.
        file: The ``data.yaml`` itself.
        missing: Why a split has no files, by split.
        kpt_shape: Of a pose dataset: keypoints of each object, and numbers of each keypoint. A detector reads none.
        labels: What is done about a bad row in a label file, one of ``datasets.labels.LABELS``.
        channels: Of a detector for these images in Ultralytics.
        boxes: Where the boxes of a split are written, by split; YOLO text where nothing is said.
    """

    path: Path
    names: dict[int, str]
    train: tuple[Path, ...] = ()
    val: tuple[Path, ...] = ()
    test: tuple[Path, ...] = ()
    file: Path = Path("data.yaml")
    missing: dict[str, str] = field(default_factory=dict)
    kpt_shape: tuple[int, int] | None = None
    labels: str = STRICT
    channels: int = 3
    boxes: Mapping[str, TextBoxes] = field(default_factory=dict, repr=False)

    def boxes_in(self, split: str) -> TextBoxes:
        """Where the boxes of a split are written."""
        return self.boxes.get(split, _TEXT)

    def labels_of(self, split: str, image: Path, dropped: list[str] | None = None) -> np.ndarray | None:
        """Read and check the boxes of an image, as :func:`dptrain.datasets.labels.read_labels` does."""
        rows = self.boxes_in(split).rows(image)
        return None if rows is None else boxes_of(rows, self.num_classes, self.keypoints, dropped)

    @property
    def keypoints(self) -> int:
        """How many columns of keypoints may follow a box in a label file."""
        return self.kpt_shape[0] * self.kpt_shape[1] if self.kpt_shape else 0

    @property
    def meaning(self) -> dict[str, Any]:
        """What a copy's data.yaml must say of images and labels, beside its splits."""
        keypoints = {} if self.kpt_shape is None else {"kpt_shape": list(self.kpt_shape)}
        return {"names": self.names, **keypoints, **({} if self.channels == 3 else {"channels": self.channels})}

    @property
    def num_classes(self) -> int:
        """How many classes the dataset names."""
        return len(self.names)

    @property
    def folders(self) -> set[Path]:
        """Where its images are, and where their labels are looked for."""
        found: set[Path] = set()
        for split in SPLITS:
            for file in getattr(self, split):
                found |= {file.parent, self.boxes_in(split).place(file).parent}
        return {folder.resolve() for folder in found}

    def folder_around(self, place: Path) -> Path | None:
        """The one of :attr:`folders` that a place is, or lies in: what is written there would be read as data."""
        whole = place.resolve()
        return next((folder for folder in self.folders if whole.is_relative_to(folder)), None)

    def files(self, split: str) -> tuple[Path, ...]:
        """The image files of ``split`` (train, val or test), at least one; ``DataError`` says why there is none."""
        if split not in SPLITS:
            raise DataError(f"split '{split}' is not one of {', '.join(SPLITS)}")
        found: tuple[Path, ...] = getattr(self, split)
        if not found:
            raise DataError(self.missing.get(split, f"{self.file}: split '{split}' holds no images; add some"))
        return found


def load_data(path: str | Path, labels: str = STRICT, trains: bool = True, text_for: str = "") -> DataConfig:
    """Read a ``data.yaml`` and list the images of its splits.

    Entries are folders (searched to any depth), ``.txt`` lists of image files, COCO files, or a list of either. As in
    Ultralytics, a list's line that begins with ``./`` starts from the list's own folder and any other relative line
    from the current folder. Where a relative ``path`` starts, :func:`dptrain.datasets.roots.root_of` says.
    ``download`` is never followed. ``labels: yolo``, ``coco`` or ``voc`` says how boxes are written; without it a JSON
    file is COCO, and images are VOC if there are XML files for them.

    Args:
        path: The ``data.yaml``, the name of one that Ultralytics ships (``coco8.yaml``), or a sealed dataset, which is
            read from memory.
        labels: What is done about a bad row in a label file, when labels are read.
        trains: Whether a training split must be there.
        text_for: Who can use YOLO text only, in words; others than that are then refused.

    Returns:
        The splits' image files; ``test`` may be empty, and ``val`` where none is declared.

    Raises:
        DataError: One line with the place, the value and the fix: no such file, not YAML, no names, ``nc`` that does
            not match, a missing folder or image, an image listed twice within a split.
        SealError: It is a sealed dataset that cannot be opened.
    """
    if not isinstance(path, str | os.PathLike):
        raise DataError(
            f"data is a {type(path).__name__}: a dataset of your own goes to dptrain.train; give a data.yaml"
        )
    if (own := find_own(Path(path))) is not None:
        return _load_own(Path(path), own, labels)
    file = shipped(Path(path))
    if is_sealed_dataset(file):
        return _load_sealed(file, labels)
    refuse_no_yaml(file)
    data = read_yaml(file)
    root = root_of(file, data)
    refuse_unread_val(file, data)
    written = boxes_written(file, data)
    files: dict[str, tuple[Path, ...]] = {}
    missing: dict[str, str] = {}
    coco: dict[str, list[CocoFile]] = {split: [] for split in SPLITS}
    for split in SPLITS:
        entry = data.get(split)
        if split == "val" and entry is None:
            entry = data.get("validation")  # Ultralytics' other name for it
        try:
            files[split] = list_split(file, split, root, entry, coco[split])
        except DataError as error:
            if split != "test" and entry is not None:
                raise  # a test split that is not on this machine stops only those who ask for it
            missing[split] = str(error)
    if trains and not files.get("train"):
        raise DataError(missing["train"])
    meaning = _meaning(file, data, labels, [part for parts in coco.values() for part in parts])
    boxes = {
        split: found
        for split, images in files.items()
        if (found := _boxes(file, split, images, coco[split], written, data, meaning["names"])) is not _TEXT
    }
    if text_for and boxes:
        split, other = next(iter(boxes.items()))
        raise DataError(
            f"{file}: {split}: its boxes are {other.format.upper()}, and {text_for} takes YOLO text only: convert them "
            "first (ultralytics.data.converter.convert_coco for COCO)"
        )
    return DataConfig(root, file=file, missing=missing, boxes=boxes, **(meaning | files))


def _boxes(
    file: Path,
    split: str,
    images: Sequence[Path],
    coco: Sequence[CocoFile],
    written: str | None,
    data: Mapping[Any, Any],
    names: Mapping[int, str],
) -> TextBoxes:
    """Where the boxes of a split are written."""
    if coco:
        if written not in (None, "coco") or sum(len(part.images) for part in coco) != len(images):
            other = f"labels: {written}" if written not in (None, "coco") else "other images"
            raise DataError(f"{file}: {split}: {coco[0].file.name} is a COCO file beside {other}; keep one of them")
        rows = {image: found for part in coco for image, found in part.rows(names).items()}
        files = {image: part.file for part in coco for image in part.images}
        return CocoBoxes(rows, files, {image: size for part in coco for image, size in part.sizes.items()})
    if written == "coco":
        raise DataError(f"{file}: labels: coco, and {split} names no COCO file; write '{split}: <file>.json'")
    if written == "voc" or (written is None and is_voc(images)):
        if data.get("names") is None:
            raise DataError(f"{file}: the boxes of {split} are VOC, which has no list of classes; add 'names: [...]'")
        return VocBoxes({name: number for number, name in names.items()})
    return _TEXT


def _meaning(file: Path, data: Mapping[Any, Any], labels: str, coco: Sequence[CocoFile] = ()) -> dict[str, Any]:
    """What a data.yaml says of its images and labels, as keywords of :class:`DataConfig`."""
    if coco and data.get("names") is None:
        data = {**data, "names": coco[0].names}
    return {
        "names": class_names(file, data),
        "kpt_shape": keypoint_shape(file, data),
        "channels": channel_count(file, data),
        "labels": labels,
    }


def _load_sealed(file: Path, labels: str) -> DataConfig:
    splits = open_dataset(file)
    inside = file.expanduser().absolute() / "data.yaml"
    data = read_yaml(inside)
    missing = {split: f"{file}: the sealed dataset has no {split} split" for split in SPLITS if split not in splits}
    if "train" in missing:
        raise DataError(missing["train"])
    found = {split: splits.get(split, ()) for split in SPLITS}
    return DataConfig(inside.parent, file=inside, missing=missing, **(_meaning(inside, data, labels) | found))


def _load_own(file: Path, own: OwnFiles, labels: str) -> DataConfig:
    if not own.images["train"]:
        raise DataError(f"{file.parent}: the dataset has no item; its length is 0")
    missing = {split: f"{file.parent}: the dataset has no {split} split" for split in SPLITS if split not in own.images}
    train, val = own.images["train"], own.images.get("val", ())
    return DataConfig(file.parent, own.names, train, val, file=file, missing=missing, labels=labels)
