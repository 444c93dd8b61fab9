"""Which files are redacted, and where each goes; nothing is written before all of it is clear."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path

from ...datasets.data_yaml import YAML_SUFFIXES
from ...datasets.labels import label_path
from ...datasets.listing import IMAGE_SUFFIXES
from ...errors import ConfigError, DataError
from ...sealing.archive import is_sealed_dataset
from . import images, video
from .dataset import Dataset, labels_of, normal

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RedactionJob:
    """One file, or one stream.

    Attributes:
        source: The file, or the address of the stream.
        output: Where its redacted copy goes.
        name: For the report: the path below the source folder.
        kind: ``image``, ``video``, ``stream`` or ``other``.
        labels: Of an image in a dataset: its label file, and where the copy goes.
        keypoints: Columns of keypoints in it (``DataConfig.keypoints``).
    """

    source: Path | str
    output: Path
    name: str
    kind: str
    labels: tuple[Path, Path] | None = None
    keypoints: int = 0


def find_jobs(
    source: str, output: Path | None, *, in_place: bool, overwrite: bool
) -> tuple[list[RedactionJob], Dataset | None]:
    """List what is to be done, and the dataset whose data.yaml goes along.

    Args:
        source: An image, a video, a folder of them (searched to any depth; hidden files, and folders that are links,
            are left out), a data.yaml, a camera's number, or the address of a stream.
        output: The file, or for a folder the folder, to write to; None with ``in_place``.
        in_place: Write over the originals.
        overwrite: Write over other files that are there.

    Raises:
        ConfigError: Source and output do not go together, or something would be overwritten.
        DataError: There is no such source, or it holds no pictures.
    """
    if in_place == (output is not None):
        raise ConfigError("give -o OUT, or --in-place to overwrite the originals, not both")
    dataset = None
    if video.is_stream(source):
        if output is None:
            raise ConfigError(f"{video.shown(source)} is a stream and has no place of its own: give -o FILE.mp4")
        jobs = [RedactionJob(source, output, video.shown(source), "stream")]
    elif Path(source).is_dir():
        jobs = _in_folder(Path(source), output)
        if output is not None:
            dataset = Dataset.inside(Path(source))
            jobs = _with_labels(jobs, Path(source), output, dataset)
    elif Path(source).is_file() and Path(source).suffix.lower() in YAML_SUFFIXES:
        dataset = Dataset.listed(Path(source))
        jobs = _listed(dataset, output)
        dataset = None if in_place else dataset
    elif Path(source).is_file():
        if is_sealed_dataset(source):
            raise DataError(
                f"{source} is sealed, and redacted pictures would be stored unencrypted: dptrain unseal it first"
            )
        kind = _kind(Path(source))
        if kind == "other":
            raise DataError(f"{source}: is neither an image nor a video by its suffix; nothing was redacted")
        if output is not None and output.is_dir():
            raise ConfigError(f"-o {output} is a folder: give the name of the file")
        jobs = [RedactionJob(Path(source), output or Path(source), Path(source).name, kind)]
    else:
        raise DataError(f"{source}: no such file or folder, and neither a camera's number nor the address of a stream")
    if len(jobs) == 1 and jobs[0].kind != "other":
        refuse_suffix(jobs[0])
    _refuse_overwriting(jobs, in_place, overwrite)
    if dataset is not None and output is not None:
        written = {job.output.relative_to(output) for job in jobs if job.kind == "image"}
        for file in dataset.outputs(output, written):
            _refuse_file(file, overwrite)
    return jobs, dataset


def refuse_suffix(job: RedactionJob) -> None:
    """Refuse a job whose output nothing can be written under.

    Raises:
        DataError: Its suffix is not one that is written.
    """
    (images if job.kind == "image" else video).refuse_suffix(job.output)


def _kind(file: Path) -> str:
    suffix = file.suffix.lower()
    return "image" if suffix in IMAGE_SUFFIXES else "video" if suffix in video.VIDEO_SUFFIXES else "other"


def _in_folder(folder: Path, output: Path | None) -> list[RedactionJob]:
    if output is not None:
        if output.exists() and not output.is_dir():
            raise ConfigError(f"-o {output} is a file, and {folder} is a folder: give a folder")
        inside = output.resolve()
        if inside != folder.resolve() and inside.is_relative_to(folder.resolve()):
            raise ConfigError(f"-o {output} is inside {folder}, which is read: choose a folder beside it")
    jobs: list[RedactionJob] = []
    for here, folders, files in os.walk(folder, onerror=_cannot_list):
        linked = sorted(name for name in folders if (Path(here) / name).is_symlink())
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in linked)
        for name in (*sorted(name for name in files if not name.startswith(".")), *linked):
            file = Path(here) / name
            below = file.relative_to(folder)
            kind = "other" if name in linked else _kind(file)
            jobs.append(RedactionJob(file, file if output is None else output / below, below.as_posix(), kind))
    if all(job.kind == "other" for job in jobs):
        raise DataError(f"{folder}: holds no images and no videos")
    return jobs


def _with_labels(jobs: list[RedactionJob], folder: Path, output: Path, dataset: Dataset | None) -> list[RedactionJob]:
    """The jobs of a folder, of which label files and a data.yaml that go along are none of their own."""
    keypoints = 0 if dataset is None else dataset.config.keypoints
    found = [
        replace(job, labels=labels_of(Path(job.source), folder, job.output, output, dataset), keypoints=keypoints)
        if job.kind == "image"
        else job
        for job in jobs
    ]
    outside = sum(_labelled_outside(Path(job.source), folder) for job in jobs if job.kind == "image")
    if outside:
        logger.warning(
            "labels of %d images are outside %s and are not copied: give the folder above it, or the data.yaml, to "
            "include them",
            outside,
            folder,
        )
    carried = {job.labels[0] for job in found if job.labels is not None}
    if dataset is not None:
        carried.add(normal(folder / "data.yaml"))
    return [job for job in found if normal(Path(job.source)) not in carried]


def _labelled_outside(image: Path, folder: Path) -> bool:
    labels = label_path(normal(image))
    return not labels.is_relative_to(normal(folder)) and labels.is_file()


def _listed(dataset: Dataset, output: Path | None) -> list[RedactionJob]:
    """The images of a data.yaml, wherever they are."""
    if output is None:
        return [RedactionJob(image, image, dataset.below(image).as_posix(), "image") for image in dataset.images]
    if output.exists() and not output.is_dir():
        raise ConfigError(f"-o {output} is a file, and {dataset.config.file} lists many: give a folder")
    if (folder := dataset.config.folder_around(output)) is not None:
        raise ConfigError(f"-o {output} is inside {folder}, which is read: choose a folder beside it")
    jobs = []
    for image in dataset.images:
        below = dataset.below(image)
        labels = labels_of(image, dataset.root, output / below, output, dataset)
        jobs.append(RedactionJob(image, output / below, below.as_posix(), "image", labels, dataset.config.keypoints))
    return jobs


def _cannot_list(error: OSError) -> None:
    raise DataError(f"{error.filename}: cannot be listed ({error.strerror}); pictures in it would be left out")


def refuse_report(folder: Path, names: tuple[str, ...], source: str, overwrite: bool) -> None:
    """Refuse a folder for the report in which it would lie among the originals, or on an earlier one.

    Raises:
        ConfigError: It names the file.
    """
    if Path(source).is_dir() and folder.resolve().is_relative_to(Path(source).resolve()):
        raise ConfigError(f"--report {folder} is inside {source}, which is read: choose a folder beside it")
    for file in (folder / name for name in names):
        if file.exists() and not overwrite:
            raise ConfigError(f"{file} already exists: choose another --report, or --overwrite")


def _refuse_overwriting(jobs: list[RedactionJob], in_place: bool, overwrite: bool) -> None:
    written = [job for job in jobs if job.kind != "other"]
    originals = {_identity(Path(job.source)) for job in written if job.kind != "stream"}
    originals |= {_identity(job.labels[0]) for job in written if job.labels is not None}
    for job in written:
        if in_place and (job.output.is_symlink() or job.output.stat().st_nlink > 1):
            raise ConfigError(
                f"{job.output} is a link, or has other names, and what they lead to would stay as it is: redact a copy"
            )
        for target in () if in_place else (job.output, *(job.labels or ())[1:]):
            if target.exists() and _identity(target) in originals:
                raise ConfigError(
                    f"{target} is an original, and originals stay as they are: use --in-place to replace them"
                )
            _refuse_file(target, overwrite)


def _refuse_file(file: Path, overwrite: bool) -> None:
    if file.exists() and not overwrite:
        raise ConfigError(f"{file} already exists: choose another -o, or --overwrite")


def _identity(file: Path) -> tuple[int, int]:
    """The file on the disk, whatever names and links lead to it."""
    status = file.stat()
    return status.st_dev, status.st_ino
