"""Datasets in Ultralytics' layout: their labels and data.yaml go along with the redacted pictures.

Redaction keeps the size of a picture, so its boxes stay where they are.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePath

import yaml

from ...datasets.labels import label_path
from ...datasets.sources import SPLITS, DataConfig, load_data
from ...errors import ConfigError


def normal(path: Path) -> Path:
    """The whole path without ``.`` and ``..``; links stay, since a dataset of links has a tree of its own."""
    return Path(os.path.abspath(path))  # noqa: PTH100


@dataclass(frozen=True)
class Dataset:
    """What a data.yaml lists, below a folder that keeps its tree.

    Attributes:
        config: The data.yaml.
        root: The folder that the output mirrors.
    """

    config: DataConfig
    root: Path

    @classmethod
    def listed(cls, file: Path) -> Dataset:
        """The dataset of a data.yaml; its root is the dataset's folder, or one above where its images are elsewhere."""
        config = load_data(file, text_for="dptrain redact")
        folders = {normal(image.parent) for split in SPLITS for image in getattr(config, split)}
        return cls(config, Path(os.path.commonpath([config.path, *folders])))

    @classmethod
    def inside(cls, folder: Path) -> Dataset | None:
        """The dataset of the data.yaml in a folder; None without one, or where it speaks of another folder."""
        file = folder / "data.yaml"
        if not file.is_file():
            return None
        found = cls.listed(file)
        return cls(found.config, folder.resolve()) if found.root.is_relative_to(folder.resolve()) else None

    @property
    def images(self) -> list[Path]:
        """Every image of every split, once."""
        return list(dict.fromkeys(image for split in SPLITS for image in getattr(self.config, split)))

    def below(self, image: Path) -> Path:
        """The path of an image below the root."""
        return normal(image).relative_to(self.root)

    def outputs(self, output: Path, images: Collection[PurePath]) -> dict[Path, str]:
        """The data.yaml of the output, after the lists that it needs, and what they say.

        Args:
            output: The folder that mirrors the root.
            images: Those that are written, below it; a folder that holds images of no split needs a list.
        """
        files, entries = {}, {}
        for split in SPLITS:
            own = [below for image in getattr(self.config, split) if (below := self.below(image)) in images]
            if not own:
                continue
            top = PurePath(os.path.commonpath([below.parent for below in own]))
            if set(own).issuperset(image for image in images if image.is_relative_to(top)):
                entries[split] = top.as_posix()
            else:
                entries[split] = f"{split}.txt"
                files[output / f"{split}.txt"] = "".join(f"./{below.as_posix()}\n" for below in own)
        text = yaml.safe_dump({**entries, **self.config.meaning}, sort_keys=False, allow_unicode=True)
        return {**files, output / "data.yaml": text}


def labels_of(image: Path, root: Path, copy: Path, output: Path, dataset: Dataset | None) -> tuple[Path, Path] | None:
    """Return the label file of an image below ``root``, and where its copy belongs; None where there is none.

    Without a data.yaml only a tree with ``images`` and ``labels`` says that a text beside a picture is its labels.

    Raises:
        ConfigError: Labels of what is written to ``output`` would be looked for outside of it.
    """
    root, image = normal(root), normal(image)
    source = label_path(image)
    if not source.is_file() or not source.is_relative_to(root):
        return None
    if dataset is None and "images" not in image.relative_to(root).parts[:-1]:
        return None
    target = output / source.relative_to(root)
    if label_path(copy.absolute()) != target.absolute():
        raise ConfigError(
            f"-o {output}: below a folder named images labels are looked for elsewhere: choose another -o"
        )
    return source, target
