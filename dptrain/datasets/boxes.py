"""Where the boxes of a split are written: YOLO text beside each image, a COCO file, or Pascal VOC files.

Whatever it is, a row is what Ultralytics' converters would write for it, so the boxes, and what the ledger knows of
them, are those of the converted dataset.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .labels import Row, label_path, text_rows
from .voc import object_rows, size_in, xml_of


@dataclass(frozen=True)
class TextBoxes:
    """A text file an image, where Ultralytics looks for it."""

    format = "yolo"

    def rows(self, image: Path) -> list[Row] | None:
        """Return what is said of an image, unchecked; None where it has no label file.

        Raises:
            DataError: The file cannot be read.
        """
        return text_rows(label_path(image))

    def place(self, image: Path) -> Path:
        """Where the boxes of an image are, or would be."""
        return label_path(image)

    def size(self, image: Path) -> tuple[float, float] | None:
        """Width and height that the boxes of an image are measured in; None where they are parts of it anyway."""
        return None


@dataclass(frozen=True)
class CocoBoxes(TextBoxes):
    """The annotations of COCO files, as they were when the files were read.

    Attributes:
        of_image: Of every image that the files list.
        files: Of every image, the file that lists it.
        sizes: Of every image, width and height.
    """

    of_image: Mapping[Path, list[Row]] = field(repr=False, default_factory=dict)
    files: Mapping[Path, Path] = field(repr=False, default_factory=dict)
    sizes: Mapping[Path, tuple[float, float]] = field(repr=False, default_factory=dict)
    format = "coco"

    def rows(self, image: Path) -> list[Row] | None:
        return self.of_image[image]

    def place(self, image: Path) -> Path:
        return self.files[image]

    def size(self, image: Path) -> tuple[float, float] | None:
        return self.sizes[image]


@dataclass(frozen=True)
class VocBoxes(TextBoxes):
    """An XML file an image, in Pascal VOC's format.

    Attributes:
        classes: Class name to number.
    """

    classes: Mapping[str, int] = field(default_factory=dict)
    format = "voc"

    def rows(self, image: Path) -> list[Row] | None:
        return object_rows(xml_of(image), self.classes)

    def place(self, image: Path) -> Path:
        return xml_of(image)

    def size(self, image: Path) -> tuple[float, float] | None:
        return size_in(xml_of(image))
