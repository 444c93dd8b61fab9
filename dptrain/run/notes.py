"""What a run tells the data's owner of the private images: on the owner's screen and in ``owner/``, nowhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from ..datasets.labels import DROP_BAD_ROWS
from ..datasets.near import pairs_nearby
from ..datasets.series import find_series
from ..detection.data import DetectionDataset
from ..support.files import write_text
from ..support.words import counted
from .owner import owner_folder

DATASET = "dataset.txt"


def labels_read(datasets: Sequence[DetectionDataset | None]) -> list[str]:
    """Say how many images of each split have no labels, and which rows ``labels=drop_bad_rows`` left out."""
    notes = []
    for dataset in datasets:
        if dataset is not None and dataset.unlabelled:
            many = counted(len(dataset), f"{dataset.split} image")
            notes.append(f"{dataset.unlabelled} of {many} without a label file: background")
        if dataset is not None and dataset.dropped:
            many = counted(len(dataset.dropped), "row")
            notes += [f"labels={DROP_BAD_ROWS}: {many} of the {dataset.split} labels left out:", *dataset.dropped]
    return notes


def same_source(pictures: Mapping[Path, bytes], small: Sequence[np.ndarray]) -> list[str]:
    """Say of what the train images are copies, tiles or frames, by their names and by pictures that look alike.

    Args:
        pictures: The identity of the picture in every image file.
        small: Of every one, in the same order, the small copy that is compared.
    """
    files, known = list(pictures), list(pictures.values())
    alike = [(one, other) for one, other in pairs_nearby(np.array(small)) if known[one] != known[other]]
    if (series := find_series(files, alike)) is not None:
        return [f"train: {series}"]
    if not alike:
        return []
    one, other = alike[0]
    many = len({number for pair in alike for number in pair})
    return [
        f"train: {many} images look nearly the same as another one, such as {files[one].name} and {files[other].name}: "
        "where they are of one photo or person, epsilon for an image is not theirs; dptrain check --json lists them, "
        "and privacy.unit=group privacy.groups.csv=TABLE protects groups"
    ]


def tell_owner(folder: Path, notes: Sequence[str]) -> None:
    """Write notes to the owner's folder of a run, and show the first ones where stderr is a terminal.

    What is written to a file or a pipe instead may be a log that others read.
    """
    if not notes:
        return
    file = owner_folder(folder) / DATASET
    write_text(file, "\n".join([*notes, ""]))
    console = Console(stderr=True, markup=False, highlight=False)
    if console.is_terminal and console.file.isatty():
        for note in notes[:_SHOWN]:
            console.print(f"owner: {note}", soft_wrap=True)
        more = f"and {len(notes) - _SHOWN} more lines in " if len(notes) > _SHOWN else "for the data's owner only: "
        console.print(f"owner: {more}{file}", soft_wrap=True)


_SHOWN = 4
