"""A power cut: what was not brought to the disk is gone, file by file and name by name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from dptrain.support.files import write_atomically
from dptrain.training.journal import StepJournal


class Disk:
    """What of one folder would be there after a power cut: contents and names as they were at their last sync.

    A name may also get there sooner, by itself; so a file must be synced before it is given another one's name.
    """

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.names: dict[str, int] = {}
        self.contents: dict[int, bytes] = {}
        real_fsync, real_replace = os.fsync, os.replace

        def fsync(handle: int) -> None:
            real_fsync(handle)
            number = os.fstat(handle).st_ino
            if number == folder.stat().st_ino:
                self.names = {file.name: file.stat().st_ino for file in folder.iterdir()}
            for file in folder.iterdir():
                if file.stat().st_ino == number:
                    self.contents[number] = file.read_bytes()

        def replace(source: Any, target: Any) -> None:
            assert self.contents.get(Path(source).stat().st_ino) == Path(source).read_bytes(), "not on the disk"
            real_replace(source, target)

        patch.setattr(os, "fsync", fsync)
        patch.setattr(os, "replace", replace)

    def after_a_cut(self) -> dict[str, bytes | None]:
        return {name: self.contents.get(number) for name, number in self.names.items()}


def test_a_file_is_on_the_disk_before_it_takes_the_old_ones_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(tmp_path, monkeypatch)
    for content in (b"old", b"the new one"):
        write_atomically(tmp_path / "f", lambda stream, content=content: stream.write(content))  # type: ignore[misc]
        assert disk.after_a_cut() == {"f": content}


def test_a_step_is_on_the_disk_when_it_is_counted_and_so_is_the_journals_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(tmp_path, monkeypatch)
    journal = StepJournal(tmp_path / "j")
    for steps in (1, 2, 5):
        journal.record(steps)
        assert disk.after_a_cut() == {"j": b"." * steps}
    journal.close()
