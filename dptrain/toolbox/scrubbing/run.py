"""Scrub a dataset into a new folder, or say what would leak."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

from ...datasets.data_yaml import YAML_SUFFIXES
from ...datasets.labels import label_path, plain_labels
from ...errors import ConfigError, DataError
from ...support.words import counted
from .clean import clean, suffix_of
from .cleaned import Cleaned, Damaged
from .names import STRUCTURE, Names, find_key, is_pseudonym, write_mapping
from .sources import Item, Source, find, read

EPOCH = 946684800  # 2000-01-01: the time of every file that is written
DICOM_AS = ("dicom", "png", "both")


@dataclass(frozen=True)
class ScrubbedFile:
    """What was in one file.

    Attributes:
        file: Its path within the source. **As private as the source.**
        found: What would leak, in words without values.
        warnings: Why writing may be burned into its pixels.
        written: The files made of it, within the output; empty where it is withheld, or in a check.
    """

    file: str
    found: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    written: tuple[str, ...] = ()


@dataclass(frozen=True)
class ScrubReport:
    """What a scrub has taken out, or a check has found.

    Attributes:
        files: File by file, in path order.
        left_out: Files that are no image and no label of one; they are not carried along.
        labels: Number of label files carried along.
        output: The new folder; None for a check.
    """

    files: tuple[ScrubbedFile, ...]
    left_out: tuple[str, ...]
    labels: int = 0
    output: Path | None = None

    @property
    def leaking(self) -> int:
        """How many files give something away."""
        return sum(bool(file.found) for file in self.files)

    @property
    def flagged(self) -> int:
        """How many images may have writing burned in."""
        return sum(bool(file.warnings) for file in self.files)

    @property
    def withheld(self) -> int:
        """How many images were not written, since writing may be burned into them."""
        return sum(not file.written for file in self.files) if self.output is not None else 0

    def kinds(self) -> dict[str, int]:
        """What was found, and in how many files."""
        return dict(Counter(word for file in self.files for word in file.found).most_common())

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        values = asdict(self) | {"kinds": self.kinds(), "leaking": self.leaking, "withheld": self.withheld}
        return values | {"output": None if self.output is None else str(self.output)}


def check(source: str | Path, *, names: bool = True) -> ScrubReport:
    """Say what the files of a source would give away; nothing is written.

    Args:
        source: An image, a folder or a data.yaml.
        names: Also look at file names and times, as :func:`scrub` replaces them.

    Raises:
        DataError: A file is damaged or of a format that cannot be scrubbed.
    """
    listed = find(source)
    strange = Names(b"\0" * 32)
    files = []
    for item in listed.items:
        data = read(item.file)
        found, warnings = _found(item, data, strange)
        if names:
            named = [part for part in item.folder.parts if part not in STRUCTURE and not is_pseudonym(part)]
            found += ("folder name",) * bool(named) + ("file name",) * (not is_pseudonym(item.file.stem))
            found += ("file time",) * (int(item.file.stat().st_mtime) != EPOCH)
        files.append(ScrubbedFile(item.name, found, warnings))
    return ScrubReport(tuple(files), listed.left_out)


def scrub(
    source: str | Path,
    output: str | Path,
    *,
    key: str | Path | None = None,
    mapping: str | Path | None = None,
    keep_names: bool = False,
    keep_icc: bool = False,
    dicom: str = "dicom",
    window: tuple[float, float] | None = None,
    keep_burned_in: bool = False,
) -> ScrubReport:
    """Write a copy of a dataset that has the same pixels and boxes, and tells nothing else.

    Out go EXIF (but for the orientation), GPS, XMP, IPTC, thumbnails, comments, further pages and frames, all that
    follows the picture, file names and times; of DICOM all that is not needed to show the image. The compressed pixels
    are copied as they are, never decoded. What is in the picture itself stays in it: faces, plates, signs.

    Args:
        source: An image, a folder or an Ultralytics data.yaml; never changed.
        output: A new folder, which is there whole or not at all.
        key: File with the key that makes the new names, made if missing; the same key makes the same names. ``None``
            takes a key that is forgotten.
        mapping: File for the table of new and old names and patients; keep it apart, or do without.
        keep_names: Keep file and folder names.
        keep_icc: Keep colour profiles.
        dicom: ``dicom`` for scrubbed DICOM files, ``png`` for 8-bit images to train on, or ``both``.
        window: Centre and width for those; ``None`` takes the file's own.
        keep_burned_in: Also write images that may have writing burned in; otherwise they are withheld.

    Raises:
        ConfigError: A setting contradicts another one, or a place cannot be written.
        DataError: A file is damaged, or of a format that cannot be scrubbed; then nothing is written.
    """
    place = Path(output).expanduser()
    if dicom not in DICOM_AS:
        raise ConfigError(f"dicom={dicom} is not one of {', '.join(DICOM_AS)}")
    if window is not None and not window[1] > 0:
        raise ConfigError(f"window={window[0]:g},{window[1]:g}: the width must be more than 0")
    _refuse_places(place, Path(source).expanduser(), mapping, key)
    listed = find(source)
    job = _Scrub(Names(find_key(key)), keep_names, keep_icc, dicom, window, keep_burned_in)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}.", suffix=".part"))
    except OSError as error:
        raise ConfigError(f"-o {place} cannot be written ({error.strerror}): choose another") from None
    try:
        files = job.write(listed, part)
        if (text := listed.data_yaml()) is not None:
            _write(part / "data.yaml", text.encode())
        part.chmod(0o755)
        if mapping is not None:
            write_mapping(Path(mapping).expanduser(), job.mapped)
        part.replace(place)
    except OSError as error:
        raise DataError(f"{error.filename or place}: cannot be written ({error.strerror}); free some space") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return ScrubReport(files, listed.left_out, job.labels, place)


def _refuse_places(place: Path, source: Path, mapping: str | Path | None, key: str | Path | None) -> None:
    if place.exists() and not (place.is_dir() and not any(place.iterdir())):
        raise ConfigError(f"-o {place} already exists: choose a new folder, so that nothing is overwritten")
    if source.is_file() and place.suffix.lower() == source.suffix.lower() not in YAML_SUFFIXES:
        raise ConfigError(f"-o {place} is a file's name, and a copy goes into a new folder, under a new name: give one")
    if source.is_dir() and place.resolve().is_relative_to(source.resolve()):
        raise ConfigError(f"-o {place} is inside {source}: choose another, or the next scrub would find it")
    for name, file in (("mapping", mapping), ("key", key)):
        if file is not None and Path(file).expanduser().resolve().is_relative_to(place.resolve()):
            raise ConfigError(f"--{name} {file} is inside {place}: keep it apart from what it can undo")
    if mapping is not None and Path(mapping).expanduser().exists():
        raise ConfigError(f"--mapping {mapping} already exists: choose another file, so that nothing is lost")


class _Scrub:
    def __init__(
        self,
        names: Names,
        keep_names: bool,
        keep_icc: bool,
        dicom: str,
        window: tuple[float, float] | None,
        keep_burned_in: bool,
    ) -> None:
        self.names, self.keep_names, self.keep_icc = names, keep_names, keep_icc
        self.dicom, self.window, self.keep_burned_in = dicom, window, keep_burned_in
        self.mapped: list[tuple[str, str, str]] = []
        self.labels = self.keypoints = 0

    def write(self, source: Source, root: Path) -> tuple[ScrubbedFile, ...]:
        """Write every image under its new name, in the order of the new names: that of the files tells nothing."""
        self.keypoints = 0 if source.data is None else source.data.keypoints
        places = {item: self._place(item) for item in source.items}
        if len(set(places.values())) < len(places):
            raise ConfigError("two images would have the same new name: scrub them apart, or without keep_names")
        done = {item: self._one(item, place, root) for item, place in sorted(places.items(), key=lambda pair: pair[1])}
        self.mapped.sort()
        return tuple(done[item] for item in source.items)

    def _place(self, item: Item) -> PurePath:
        """The new path without suffix."""
        if self.keep_names:
            return item.folder / Path(item.name).stem
        return self.names.folder(item.folder) / self.names.of(item.name, "file")

    def _one(self, item: Item, place: PurePath, root: Path) -> ScrubbedFile:
        data = read(item.file)
        patient = ""
        warnings: tuple[str, ...] = ()
        try:
            if suffix_of(data) == ".dcm":
                pieces, found, patient, warnings = self._dicom(data)
            else:
                cleaned = clean(data, self.keep_icc)
                pieces, found = {str(suffix_of(data)): cleaned.data}, cleaned.found
        except Damaged as error:
            raise DataError(f"{item.file}: {error}; replace it with an intact copy or remove it") from None
        if warnings and not self.keep_burned_in:
            return ScrubbedFile(item.name, found, warnings)
        written = []
        for ending, content in pieces.items():
            file = PurePath(f"{place}{ending}")
            _write(root / file, content)
            written.append(file.as_posix())
        self.mapped.append((place.as_posix(), item.name, patient))
        if item.labels is not None:
            if len(pieces) > 2:
                raise DataError(f"{item.labels}: labels one file of several frames; give each frame a file of its own")
            self._carry(item.labels, root / label_path(Path("/", f"{place}.x")).relative_to("/"))
        return ScrubbedFile(item.name, found, warnings, tuple(written))

    def _dicom(self, data: bytes) -> tuple[dict[str, bytes], tuple[str, ...], str, tuple[str, ...]]:
        import cv2

        from .dicom import clean_dicom
        from .windowing import training_images

        scrubbed = clean_dicom(data, self.names)
        images, warnings = _look(scrubbed, self.window)
        pieces = {".dcm": scrubbed.to_bytes()} if self.dicom != "png" else {}
        if self.dicom != "dicom":
            images = images or training_images(scrubbed.dataset, self.window)
            for number, image in enumerate(images):
                shown = image if image.ndim == 2 else image[..., ::-1]
                done, content = cv2.imencode(".png", shown)
                if not done:
                    raise Damaged("its pixels cannot be written as PNG")
                pieces[".png" if len(images) == 1 else f"_{number:04}.png"] = content.tobytes()
        return pieces, scrubbed.found, scrubbed.patient, warnings

    def _carry(self, labels: Path, file: Path) -> None:
        """Write the boxes, which are numbers once they were checked, and nothing that stands beside them."""
        _write(file, plain_labels(labels, self.keypoints).encode())
        self.labels += 1


def _look(scrubbed: Any, window: tuple[float, float] | None) -> tuple[list[Any], tuple[str, ...]]:
    """The frames as people see them, and all warnings; an image that cannot be decoded here is looked at no further."""
    from .windowing import training_images, writing

    try:
        images = training_images(scrubbed.dataset, window)
    except Damaged:
        return [], scrubbed.warnings
    lines = sum(len(writing(image)) for image in images[:1] + images[-1:][: len(images) - 1])
    seen = (f"{counted(lines, 'line')} that look like writing",) if lines else ()
    return images, (*scrubbed.warnings, *seen)


def _found(item: Item, data: bytes, names: Names) -> tuple[tuple[str, ...], tuple[str, ...]]:
    try:
        if suffix_of(data) == ".dcm":
            from .dicom import clean_dicom

            scrubbed = clean_dicom(data, names)
            return scrubbed.found, _look(scrubbed, None)[1]
        cleaned: Cleaned = clean(data)
        return cleaned.found, ()
    except Damaged as error:
        raise DataError(f"{item.file}: {error}; replace it with an intact copy or remove it") from None


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    os.utime(file, (EPOCH, EPOCH))
