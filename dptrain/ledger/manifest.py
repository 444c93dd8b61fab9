"""What a dataset is: keyed hashes of every picture and of its labels, under whatever names the files have.

A unit is a picture: its decoded pixels, however they are turned or mirrored. So renaming, copying, moving between
folders, saving again without loss, turning it or taking the EXIF data out leaves it the same unit. A picture that was
resized or compressed again with loss has other pixels and is not recognised.

Where runs protect groups of pictures (a patient's), a charge is to every group, by its name, and to each of its
pictures beside it: a patient who gets new pictures, and pictures whose patient gets a new name, keep what they have
spent. The third thing that is remembered is which picture was in which group.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ..datasets.contents import read_data
from ..datasets.people import People, names_in
from ..datasets.repeats import refuse_repeats
from ..errors import BudgetError, DataError
from ..support.threads import in_threads
from ..support.words import counted
from .keys import mac

if TYPE_CHECKING:
    from ..datasets.boxes import TextBoxes as Boxes

KnownFiles = Callable[[Sequence[bytes]], dict[bytes, bytes]]
_CHUNK = 256
# In the place of the labels' hash, of what is charged beside the pictures.
GROUP, MEMBERSHIP = b"\x00" * 32, b"\x01" * 32


@dataclass(frozen=True)
class Picture:
    """One image file: the keyed hashes of its bytes, of its pixels and of its labels."""

    file: bytes
    unit: bytes
    labels: bytes


@dataclass(frozen=True)
class Changes:
    """How a manifest differs from an earlier one, in pictures."""

    added: int
    removed: int
    relabelled: int
    regrouped: int = 0

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.relabelled or self.regrouped)

    def __str__(self) -> str:
        parts = []
        for count, verb in ((self.added, "added"), (self.removed, "removed")):
            if count:
                parts.append(f"{counted(count, 'image')} {verb}")
        if self.relabelled:
            parts.append(f"the labels of {counted(self.relabelled, 'image')} changed")
        if self.regrouped:
            parts.append(f"{counted(self.regrouped, 'image')} in another group")
        return ", ".join(parts) or "no change"


@dataclass(frozen=True)
class Manifest:
    """The content of a training folder, under one ledger's key. **The number of pictures is private.**

    Attributes:
        units: Keyed hash of every picture, and that of its labels. Where groups are protected, also of every group,
            with ``GROUP``, and of every picture in its group, with ``MEMBERSHIP``.
        files: Of the files that the ledger did not know: the keyed hash of the bytes, and the unit they decode to.
        digest: Keyed hash of all of it; equal for equal content in any order and under any names but the groups'.
        memberships: Where groups are protected, of every picture what says which group it is in; else empty.
        people: Whether the groups are people, several of whom may be in one picture.
    """

    units: dict[bytes, bytes]
    files: dict[bytes, bytes]
    key: bytes
    memberships: dict[bytes, bytes] = field(default_factory=dict)
    people: bool = False

    @cached_property
    def digest(self) -> str:
        return digest_of(self.key, self.units)

    @property
    def unit(self) -> str:
        """What one unit is: image, group or person."""
        if self.people:
            return "person"
        return "group" if self.memberships else "image"

    def changes_since(self, earlier: dict[bytes, bytes]) -> Changes:
        """Compare with the units of an earlier manifest."""
        now, then = (
            {unit: labels for unit, labels in units.items() if labels not in (GROUP, MEMBERSHIP)}
            for units in (self.units, earlier)
        )
        common = now.keys() & then.keys()
        return Changes(
            added=len(now) - len(common),
            removed=len(then) - len(common),
            relabelled=sum(now[unit] != then[unit] for unit in common),
            regrouped=sum(self.memberships[unit] not in earlier for unit in common) if self.memberships else 0,
        )


def digest_of(key: bytes, units: dict[bytes, bytes]) -> str:
    """Return the keyed hash of a set of units with their labels."""
    return mac(key, "snapshot", b"".join(unit + units[unit] for unit in sorted(units))).hex()


def make_manifest(
    key: bytes,
    image_files: Sequence[Path],
    known_files: KnownFiles,
    progress: Callable[[int, int], None] | None = None,
    groups: Sequence[str] | None = None,
    pictures: Mapping[Path, bytes] | None = None,
    copies_are_one: bool = False,
    boxes: Boxes | None = None,
) -> Manifest:
    """Hash the pictures and labels of a training split, and where groups are protected, the groups.

    Args:
        key: The ledger's.
        image_files: The images.
        known_files: Returns, for some of the file hashes it is given, the unit: those are not decoded again.
        progress: Called with the number of files done and their total.
        groups: The group of every image, where groups are protected.
        pictures: The identities of the images, where they have been decoded already.
        copies_are_one: Whether whoever draws from these images takes the copies of a picture as one unit.
        boxes: Where their labels are; None: where Ultralytics looks for them.

    Raises:
        DataError: An image or a label file cannot be read, or the same picture is there twice, but for copies that are
            in one group or drawn as one.
        BudgetError: There are no images.
    """
    if not image_files:
        raise BudgetError("no images: a dataset without units has no budget")
    known: dict[bytes, bytes] = {}
    hashed: list[tuple[bytes, bytes]] = []
    labels: list[bytes] = []
    for part, hashes in find_units(key, image_files, known_files, pictures, known):
        hashed += hashes
        labels += in_threads(lambda file: label_hash(key, file, boxes), part)
        if progress is not None:
            progress(len(hashed), len(image_files))
    units = [unit for _, unit in hashed]
    if groups is not None or not copies_are_one:
        refuse_repeats(dict(zip(image_files, units, strict=True)), groups)
    found = [Picture(file, unit, boxes) for (file, unit), boxes in zip(hashed, labels, strict=True)]
    return from_pictures(key, found, known, groups)


def find_units(
    key: bytes,
    image_files: Sequence[Path],
    known_files: KnownFiles,
    pictures: Mapping[Path, bytes] | None = None,
    known: dict[bytes, bytes] | None = None,
) -> Iterator[tuple[Sequence[Path], list[tuple[bytes, bytes]]]]:
    """Yield some of the images at a time, with the hash of each one's file and its unit.

    A file that is known keeps its unit, also where another version of a decoder gives other pixels by now. What is
    known is added to ``known``.
    """
    from ..datasets.identity import picture_in

    known = {} if known is None else known
    for start in range(0, len(image_files), _CHUNK):
        part = image_files[start : start + _CHUNK]
        hashes = list(in_threads(lambda file: file_hash(key, file), part))
        known |= known_files(hashes)
        unknown = [file for file, hashed in zip(part, hashes, strict=True) if hashed not in known]
        if pictures is None:
            fresh = in_threads(lambda file: unit_of(key, picture_in(file)), unknown)
        else:
            fresh = (unit_of(key, pictures[file]) for file in unknown)
        yield part, [(hashed, known[hashed] if hashed in known else next(fresh)) for hashed in hashes]


def from_pictures(
    key: bytes, pictures: Iterable[Picture], known: Container[bytes] = (), groups: Sequence[str] | None = None
) -> Manifest:
    """Put the hashes of single pictures together; ``known`` files need not be remembered again."""
    pictures = list(pictures)
    labels: dict[bytes, list[bytes]] = {}
    files: dict[bytes, bytes] = {}
    for picture in pictures:
        labels.setdefault(picture.unit, []).append(picture.labels)
        if picture.file not in known:
            files[picture.file] = picture.unit
    units = {
        unit: copies[0] if len(copies) == 1 else mac(key, "copies", *sorted(copies)) for unit, copies in labels.items()
    }
    memberships: dict[bytes, bytes] = {}
    for picture, group in zip(pictures, groups or (), strict=groups is not None):
        names = [group_of(key, name) for name in names_in(group)]
        memberships[picture.unit] = mac(key, "picture in group", picture.unit, *names)
        units |= {**dict.fromkeys(names, GROUP), memberships[picture.unit]: MEMBERSHIP}
    people = any(isinstance(group, People) for group in groups or ())
    return Manifest(units, files, key, memberships, people)


def file_hash(key: bytes, file: Path) -> bytes:
    """Return the keyed hash of a file's bytes, and of what decides how they are decoded."""
    suffix = file.suffix.lower()
    decoder = suffix if suffix in (".tif", ".tiff", ".avif") else ""
    try:
        return mac(key, "file", decoder.replace("tiff", "tif").encode(), read_data(file))
    except OSError as error:
        raise DataError(f"{file}: cannot read the image ({error.strerror}); check path and permission") from None


def unit_of(key: bytes, picture: bytes) -> bytes:
    """Return the keyed hash of a picture's identity."""
    return mac(key, "picture", picture)


def group_of(key: bytes, group: str) -> bytes:
    """Return the keyed hash of a group's name."""
    return mac(key, "group", group.encode())


def label_hash(key: bytes, file: Path, boxes: Boxes | None = None) -> bytes:
    """Return the keyed hash of a picture's labels; the order of the rows and their spelling make no difference."""
    from ..datasets.labels import label_path, row_keys, text_rows

    rows = text_rows(label_path(file)) if boxes is None else boxes.rows(file)
    return mac(key, "labels", *sorted(row_keys(rows or ())))  # what they mean is the dataset's business
