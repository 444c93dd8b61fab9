"""Detection datasets for private training: checked once, then read one image at a time and never written to."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ..datasets.images import Letterbox, check_image, read_image
from ..datasets.labels import DROP_BAD_ROWS, STRICT
from ..datasets.sources import DataConfig, load_data
from ..errors import DataError
from ..support.threads import in_threads
from .augment import Augmentation
from .loader import StepLoader, collate, to_device

__all__ = [
    "Augmentation",
    "DataConfig",
    "DetectionDataset",
    "StepLoader",
    "collate",
    "load_data",
    "to_device",
]


class DetectionDataset(Dataset):
    """The images and boxes of one split; number i is the same image in every run on the same files.

    Nothing is cached on disk and nothing in the dataset's folders is written. Labels are held in memory (20 bytes a
    box), images are decoded when asked for.

    Args:
        data: From ``load_data``.
        split: train, val or test.
        imgsz: Side of the square canvas in pixels.
        augmentation: What to do to each image; ``None`` is the plain letterbox, as in validation.
        verify: Also decode every image once, now, so that a damaged file stops the run before step one, and one that
            changes later stops it then.

    Raises:
        DataError: One line about the first image or label, in path order, that is not as it should be; or no image of
            the split has a label file.
    """

    def __init__(
        self, data: DataConfig, split: str, imgsz: int, augmentation: Augmentation | None = None, verify: bool = True
    ) -> None:
        if imgsz < 1:
            raise DataError(f"imgsz={imgsz} is not a number of pixels above 0")
        if data.channels != 3:
            raise DataError(
                f"{data.file}: channels: {data.channels} asks for a detector of other channels than 3, and none is "
                "trained here; remove the line: a grey channel is then repeated, and channels after the third dropped"
            )
        self.data = data
        self.split = split
        self.imgsz = imgsz
        self.augmentation = augmentation if augmentation is not None and augmentation.active else None
        self.image_files = data.files(split)
        read = list(in_threads(self._read_labels, self.image_files))
        labels = [rows for rows, _ in read]
        #: How many images have no label file, and are background. Private for a training split.
        self.unlabelled = sum(rows is None for rows in labels)
        #: A line about each row that was left out (``labels=drop_bad_rows``). Private for a training split.
        self.dropped = tuple(line for _, lines in read for line in lines)
        if all(rows is None for rows in labels):
            raise DataError(
                f"{data.file}: none of the {split} images has a label file (looked for "
                f"{data.boxes_in(split).place(self.image_files[0])}); an empty one declares a background image"
            )
        # One array, not one a row: workers started by fork then share it instead of copying it.
        filled = [np.zeros((0, 5), np.float32) if rows is None else rows for rows in labels]
        self._labels = np.concatenate(filled)
        self._starts = np.concatenate([[0], np.cumsum([len(rows) for rows in filled])])
        # Of every file, the bytes that were checked: no other ones are trained on.
        self._contents = np.frombuffer(b"".join(in_threads(check_image, self.image_files)), "V32") if verify else None

    def _read_labels(self, image: Path) -> tuple[np.ndarray | None, list[str]]:
        dropped: list[str] = []
        strict = self.data.labels == STRICT
        try:
            return self.data.labels_of(self.split, image, None if strict else dropped), dropped
        except DataError as error:
            if strict:
                with suppress(DataError):  # a bad row, and not a bad file
                    self.data.labels_of(self.split, image, dropped)
                    error.add_note(f"labels={DROP_BAD_ROWS} leaves out bad lines")
            raise

    def __len__(self) -> int:
        return len(self.image_files)

    @property
    def most_boxes(self) -> int:
        """The largest number of boxes in one image. Private for a training split."""
        return int(np.diff(self._starts).max())

    def labels(self, index: int) -> np.ndarray:
        """Class and xywh box in parts of the original image, float32 of shape (m, 5); a copy."""
        return self._labels[self._starts[index] : self._starts[index + 1]].copy()

    def read(self, index: int) -> np.ndarray:
        """Decode one image: uint8 BGR pixels (height, width, 3)."""
        wanted = None if self._contents is None else self._contents[index].tobytes()
        return read_image(self.image_files[index], wanted=wanted)

    def sample(self, index: int, seed: int = 0) -> dict[str, torch.Tensor]:
        """Read, augment and letterbox one image; the first of what :meth:`samples` returns."""
        return self.samples(index, seed, 1)[0]

    def samples(self, index: int, seed: int = 0, copies: int = 1) -> list[dict[str, torch.Tensor]]:
        """Read one image, and augment and letterbox it ``copies`` times, each time anew.

        Args:
            index: Number in ``range(len(self))``.
            seed: Not negative. With ``index`` and the copy's number it decides the augmentation, and nothing else does.
            copies: How many; without augmentation they are equal.

        Returns:
            For each copy ``img`` uint8 (3, imgsz, imgsz) RGB; ``cls`` float32 (m, 1); ``bboxes`` float32 (m, 4), xywh
            in parts of the canvas.

        Raises:
            DataError: The image cannot be read any more, or is not the one that was checked.
        """
        image = self.read(index)
        return [self._sample(image, self.labels(index), [seed, index, copy]) for copy in range(copies)]

    def _sample(self, image: np.ndarray, labels: np.ndarray, key: list[int]) -> dict[str, torch.Tensor]:
        if self.augmentation is None:
            place = Letterbox.fit(image.shape[0], image.shape[1], self.imgsz)
            canvas = place.pad(place.resize(image))
            labels[:, 1:] = place.to_canvas(labels[:, 1:])
        else:
            rng = np.random.default_rng(key if key[2] else key[:2])
            canvas, labels = self.augmentation.apply(image, labels, self.imgsz, rng)
        return {
            "img": torch.from_numpy(to_rgb_planes(canvas)),
            "cls": torch.from_numpy(labels[:, :1].copy()),
            "bboxes": torch.from_numpy(labels[:, 1:].copy()),
        }

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.sample(index)


def to_rgb_planes(canvas: np.ndarray) -> np.ndarray:
    """BGR pixels (h, w, 3) to RGB planes (3, h, w), contiguous."""
    return np.ascontiguousarray(canvas.transpose(2, 0, 1)[::-1])
