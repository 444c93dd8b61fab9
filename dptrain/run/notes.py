"""What a run tells the data's owner of the private images: on the owner's screen and in ``owner/``, nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ..datasets.labels import DROP_BAD_ROWS
from ..detection.data import DetectionDataset
from ..support.files import write_text
from ..support.words import counted
from .owner import owner_folder

DATASET = "dataset.txt"


def dropped_rows(datasets: Sequence[DetectionDataset | None]) -> list[str]:
    """Say how many rows ``labels=drop_bad_rows`` left out of each split, and which; nothing without any."""
    notes = []
    for dataset in datasets:
        if dataset is not None and dataset.dropped:
            many = counted(len(dataset.dropped), "row")
            notes += [f"labels={DROP_BAD_ROWS}: {many} of the {dataset.split} labels left out:", *dataset.dropped]
    return notes


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
