"""Perturbed copies of a dataset, in Ultralytics' layout, with its labels."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import yaml

from ...datasets.images import read_image
from ...datasets.labels import label_path, read_labels
from ...datasets.sources import SPLITS, DataConfig, load_data
from ...errors import ConfigError, DataError
from ...support.files import read_file, refuse_unwritable
from .kinds import Kind, kind_of, perturb


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        data: The new data.yaml.
        images: Pictures written.
        labels: Label files carried along.
        size: Height and width of the first picture, for what its noise is worth.
    """

    data: Path
    images: int
    labels: int
    size: tuple[int, int]


def export_perturbed(
    data: str | Path,
    output: str | Path,
    *,
    kind: str,
    level: float,
    seed: int | None = None,
) -> Export:
    """Write perturbed copies of every picture of a dataset, with its labels and a data.yaml of its own.

    Pictures are written as PNG (``jpeg``: as JPEG of that quality), without EXIF data. **Not differential privacy** at
    any level that leaves a picture to look at: see :func:`dptrain.toolbox.perturbation.epsilon.local_epsilon`.

    Args:
        data: A data.yaml; the splits that are there are written.
        output: A new or empty folder. It appears whole or not at all.
        kind: ``noise``, ``blur``, ``jpeg`` or ``dark``.
        level: See :data:`dptrain.toolbox.perturbation.kinds.KINDS`.
        seed: Decides the noise, so that whoever knows it can take the noise off again. None: drawn by the operating
            system and forgotten.

    Raises:
        ConfigError: The kind, the level or the folder is not one that can be used.
        DataError: A picture or a label cannot be read, or two pictures would get one name.
    """
    chosen, folder = kind_of(kind), Path(output)
    chosen.check(level)
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or seed < 0):
        raise ConfigError(f"seed={seed} is not a whole number of 0 or more")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"-o {folder} is there and not empty: choose a new folder, so that nothing is overwritten")
    refuse_unwritable(folder, "-o")
    config = load_data(data, text_for="dptrain perturb")
    if (read := config.folder_around(folder)) is not None:
        raise ConfigError(f"-o {folder} is inside {read}, which is read: choose a folder beside it")
    suffix = ".jpg" if kind == "jpeg" else ".png"
    copies = {split: _copies(getattr(config, split), split, suffix) for split in SPLITS if getattr(config, split)}
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".part"))
    try:
        job = _Job(config, chosen, float(level), secrets.randbits(128) if seed is None else seed, work)
        tasks = [task for pairs in copies.values() for task in pairs]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            try:
                labels = sum(pool.map(job.copy, tasks))
            finally:
                pool.shutdown(cancel_futures=True)
        text = {split: f"images/{split}" for split in copies} | config.meaning
        (work / "data.yaml").write_text(yaml.safe_dump(text, sort_keys=False, allow_unicode=True), encoding="utf-8")
        size = read_image(work / tasks[0][1]).shape
        work.chmod(0o777 & ~_umask())
        work.replace(folder)  # over an empty folder, too
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return Export(folder / "data.yaml", len(tasks), labels, (size[0], size[1]))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _copies(images: tuple[Path, ...], split: str, suffix: str) -> list[tuple[Path, Path]]:
    """Pairs of a picture and the place of its copy below the new folder; the tree below the split's folder is kept."""
    top = Path(os.path.commonpath([image.parent for image in images]))
    pairs: dict[Path, Path] = {}
    for image in images:
        copy = Path("images", split, image.relative_to(top)).with_suffix(suffix)
        if copy in pairs:
            raise DataError(f"{image}: its copy would be {copy}, as that of {pairs[copy]}: rename one of them")
        pairs[copy] = image
    return [(image, copy) for copy, image in pairs.items()]


def picture_name(data: DataConfig, image: Path) -> str:
    """The name by which a picture's noise is drawn: below the dataset's folder, the same on every machine."""
    root = data.path.resolve()
    return (image.relative_to(root) if image.is_relative_to(root) else Path(image.name)).as_posix()


@dataclass(frozen=True)
class _Job:
    config: DataConfig
    kind: Kind
    level: float
    seed: int
    folder: Path

    def copy(self, task: tuple[Path, Path]) -> bool:
        """Write one copy, and its label file where there is one; return whether there is."""
        image, below = task
        target = self.folder / below
        target.parent.mkdir(parents=True, exist_ok=True)
        pixels = read_image(image, strict=True)
        self._write(target, perturb(pixels, self.kind, self.level, self.seed, picture_name(self.config, image)), pixels)
        source, label = label_path(image), label_path(target)
        if read_labels(source, self.config.num_classes, self.config.keypoints) is None:
            return False
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_bytes(read_file(source))  # of a sealed dataset, too
        return True

    def _write(self, file: Path, perturbed: np.ndarray, pixels: np.ndarray) -> None:
        """A JPEG is made of the original at the level, since one of its own decoded copy would be another."""
        if self.kind.name == "jpeg":
            done, content = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, int(self.level)])
        else:
            done, content = cv2.imencode(".png", perturbed)
        if not done:
            raise DataError(f"{file}: a picture of {pixels.shape[1]} x {pixels.shape[0]} pixels cannot be written")
        file.write_bytes(content.tobytes())  # by Python: of a full disk OpenCV tells in three lines of its own
