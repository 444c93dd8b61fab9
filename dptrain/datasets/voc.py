"""Pascal VOC: an XML file an image, with the objects' corners in pixels.

Corners are taken as they are written. VOC itself counts pixels from 1, labelling tools from 0. Ultralytics' script for
VOC.yaml moves every box by one pixel, which is as far off for the former, and further for the latter.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from ..errors import DataError
from ..support.files import MOST_TEXT
from .contents import read_data
from .labels import Row, label_path

_DEEPEST = 100  # elements inside one another
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_IMAGES, _ANNOTATIONS = ("JPEGImages", "images"), ("Annotations", "annotations")


def xml_of(image: Path) -> Path:
    """The annotation of an image: beside it, or where the folder of images is called ``JPEGImages`` or ``images``,
    in ``Annotations`` next to that. Where none is there, the place of the last.
    """
    places = [image.with_suffix(".xml"), *(place / f"{image.stem}.xml" for place in _folders(image.parent))]
    return next((place for place in places if os.path.lexists(place)), places[-1])


def is_voc(images: Collection[Path]) -> bool:
    """Whether images have annotations in XML.

    Raises:
        DataError: Some also have a label file in YOLO text. Neither is taken: the files of one image would decide how
            those of the others are read.
    """
    folders = {image.parent for image in images}
    places = {place for folder in folders for place in (folder, *_folders(folder))}
    if not any(place.is_dir() and _holds_xml(place) for place in places):
        return False
    found = next((image for image in images if xml_of(image).is_file()), None)
    text = next((image for image in images if label_path(image).exists()), None)
    if found is not None and text is not None:
        raise DataError(
            f"{xml_of(found)} and {label_path(text)}: there are labels as VOC and as YOLO text; say which to read, "
            "'labels: voc' or 'labels: yolo' in data.yaml"
        )
    return found is not None


def with_annotations(folder: Path) -> Path:
    """Of a folder in VOC's layout, or of its ``Annotations``, the folder with the images; any other one as it is."""
    if (folder / "Annotations").is_dir() and (folder / "JPEGImages").is_dir():
        return folder / "JPEGImages"
    beside = folder.parent / "JPEGImages"
    return beside if folder.name in _ANNOTATIONS and beside.is_dir() else folder


def listed(file: Path, line: str) -> Path | None:
    """The image of a line in a list of ``ImageSets``, which gives a name without a suffix; None for another list."""
    if "ImageSets" not in file.parts or Path(line).name != line or Path(line).suffix:
        return None
    root = Path(*file.parts[: len(file.parts) - 1 - file.parts[::-1].index("ImageSets")])
    return root / "JPEGImages" / f"{line}.jpg"


def object_rows(file: Path, classes: Mapping[str, int]) -> list[Row] | None:
    """Return the objects of an annotation, unchecked; None where there is no such file.

    Those that VOC marks as difficult are left out, as Ultralytics' script for VOC does.

    Raises:
        DataError: The file cannot be read, is no XML without entities, or no annotation with the size of its image.
    """
    if (root := _read(file)) is None:
        return None
    width, height = _size(file, root)
    rows = []
    for number, item in enumerate(root.iterfind("object"), start=1):
        if (item.findtext("difficult") or "").strip() in ("", "0"):
            rows.append(_row(f"{file}: object {number}", item, width, height, classes))
    return rows


def size_in(file: Path) -> tuple[float, float] | None:
    """Return width and height of the image by its annotation; None where there is no such file.

    Raises:
        DataError: As :func:`object_rows`.
    """
    root = _read(file)
    return None if root is None else _size(file, root)


def _read(file: Path) -> Element | None:
    try:
        data = read_data(file, MOST_TEXT)
    except FileNotFoundError:
        if file.is_symlink():
            raise DataError(f"{file}: links to a file that is not there; fetch it, or remove the link") from None
        return None
    except OSError as error:
        raise DataError(f"{file}: cannot read the annotation ({error.strerror}); check path and permission") from None
    root = _parsed(file, data)
    if root.tag != "annotation":
        raise DataError(f"{file}: is XML of '{root.tag[:40]}', not a VOC annotation; export it as Pascal VOC")
    return root


def _size(file: Path, root: Element) -> tuple[float, float]:
    width, height = (_number(root.findtext(f"size/{side}")) for side in ("width", "height"))
    if not width > 0 or not height > 0:
        given = " x ".join((root.findtext(f"size/{side}") or "nothing").strip() for side in ("width", "height"))
        raise DataError(f"{file}: the size of the image is {given[:40]}; write its width and height in pixels")
    return width, height


def _row(place: str, item: Element, width: float, height: float, classes: Mapping[str, int]) -> Row:
    name = (item.findtext("name") or "").strip()
    left, top, right, bottom = corners = [_number(item.findtext(f"bndbox/{corner}")) for corner in _CORNERS]
    if name not in classes:
        return Row(place, (name,), f"class '{name[:80]}' is not one of names in data.yaml; add it there, or correct it")
    if not all(map(math.isfinite, corners)):
        return Row(place, (name,), f"has no bndbox of {', '.join(_CORNERS)}, four numbers; correct it or delete it")
    box = ((left + right) / 2 / width, (top + bottom) / 2 / height, (right - left) / width, (bottom - top) / height)
    return Row(place, (str(classes[name]), *(f"{value:g}" for value in box)))


def _folders(folder: Path) -> list[Path]:
    """Where the annotations of a folder of images may be, beside in it."""
    parts = folder.parts
    last = max((at for at, part in enumerate(parts) if part in _IMAGES), default=None)
    return [] if last is None else [Path(*parts[:last], name, *parts[last + 1 :]) for name in _ANNOTATIONS]


def _holds_xml(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(entry.name.endswith(".xml") for entry in entries)


def _number(text: str | None) -> float:
    """A number, or one that is none."""
    try:
        return float(text or "")
    except ValueError:
        return math.nan


def _parsed(file: Path, data: bytes) -> Element:
    """The XML of a file. A document type is refused: its entities can stand for gigabytes, or for other files."""
    builder, parser, depth = TreeBuilder(), expat.ParserCreate(), 0

    def begin(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _DEEPEST:
            raise DataError(f"{file}: elements are more than {_DEEPEST} deep in one another; export it again")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse(*_: Any) -> None:
        raise DataError(f"{file}: has a document type (DOCTYPE), which may define entities; remove that line")

    parser.StartElementHandler, parser.EndElementHandler = begin, end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    try:
        parser.Parse(data, True)
        return builder.close()
    except expat.ExpatError as error:
        line = f":{error.lineno}" if error.lineno > 0 else ""
        raise DataError(f"{file}{line}: not valid XML ({expat.ErrorString(error.code)}); export it again") from None
    except (LookupError, ValueError) as error:  # an encoding that nobody knows
        raise DataError(f"{file}: cannot be read as XML ({' '.join(str(error).split())}); save it as UTF-8") from None
