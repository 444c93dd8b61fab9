"""The folder of one run: who may write there, what a resumed run must agree with, and what an aborted start leaves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, PrivacyError
from ..statement.results import TABLES
from ..support.files import differences, read_json, remove_parts, write_json, write_text
from ..training.journal import JOURNAL, StepJournal
from .owner import OF_THE_RUN, OWNER, README

if TYPE_CHECKING:
    from ..datasets.sources import DataConfig

CHECKPOINT, SETTINGS = "checkpoint.pt", "settings.json"
ROUNDS = "rounds.json"  # of a site: dptrain.federated
RELEASES = "releases.journal"  # of a private val split: one byte for every release that was begun
_OF_A_START = (
    JOURNAL, RELEASES, CHECKPOINT, f"{CHECKPOINT}.age", SETTINGS, ROUNDS, "config.yaml", "mlflow_run", README, *TABLES,
)  # fmt: skip


class RunFolder:
    """``output_dir`` of a run, new or resumed.

    Attributes:
        path: The folder.
        resume: Whether the run that is there goes on.
        journal: The steps started so far; there inside :meth:`opened`.
        keep: Whether a folder without steps stays: the ledger could not be told that nothing was taken.
    """

    journal: StepJournal

    def __init__(self, path: Path, resume: bool) -> None:
        self.path, self.resume = path, resume
        self.keep = False

    def check(self) -> None:
        """Refuse a folder that holds something else than the run that is asked for; nothing is written.

        Raises:
            ConfigError: It holds a run and ``resume`` is off, holds none and it is on, or the run is finished.
        """
        path = self.path
        try:
            begun, used = (path / JOURNAL).exists(), path.is_dir() and any(path.iterdir())
        except (OSError, ValueError) as error:
            raise ConfigError(f"output_dir={path} cannot be looked into ({error}): choose another") from error
        if begun and not (path / JOURNAL).is_file():
            raise ConfigError(
                f"{path / JOURNAL} is not the journal of a run, which is a file: choose another output_dir"
            )
        if begun and not self.resume:
            raise ConfigError(f"output_dir={path} already holds a run: choose another, or resume it with resume=true")
        if self.resume and not begun:
            other = " in another folder" if used else ""
            raise ConfigError(f"resume=true, and output_dir={path} holds no run: leave resume out to start one{other}")
        if not begun and used:
            raise ConfigError(f"output_dir={path} is not empty: choose a new folder, so that nothing is overwritten")
        if begun and self._status() == "finished":
            raise ConfigError(f"the run in output_dir={path} is finished: start a new one in another folder")

    def _status(self) -> str | None:
        statement = self.path / "statement.json"
        try:
            status = read_json(statement).get("status") if statement.exists() else None
        except (OSError, ValueError) as error:
            raise ConfigError(f"{statement} cannot be read ({error}): put it back, or start a new run") from error
        if status not in (None, "running", "stopped", "finished"):
            raise ConfigError(f"{statement} has status={status!r}, which no run writes: put it back")
        return status

    def refuse_inside(self, data: DataConfig) -> None:
        """Refuse to write among a dataset's files: a picture there would be a training image of the next run."""
        if (folder := data.folder_around(self.path)) is not None:
            raise ConfigError(f"output_dir={self.path} is inside the dataset's folder {folder}: choose another")

    @contextmanager
    def opened(self, config: str, settings: Mapping[str, Any]) -> Iterator[RunFolder]:
        """Make the folder and its journal inside the block; if no step was taken there, take back what was made.

        Args:
            config: ``config.yaml``, for people.
            settings: ``settings.json``: what a resumed run is compared with; public, all of it.

        Raises:
            ConfigError: The folder cannot be written.
            PrivacyError: Another process trains there, or the settings of the resumed run differ.
        """
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not self.resume:  # before the journal: whoever resumes is compared with them
                write_text(self.path / README, OF_THE_RUN)
                write_text(self.path / "config.yaml", config)
                write_json(self.path / SETTINGS, settings)
            self.journal = StepJournal(self.path / JOURNAL, new=not self.resume)
        except OSError as error:
            if not self.resume and not isinstance(error, FileExistsError):  # another process was quicker: it is its own
                with suppress(OSError):
                    self._undo(made)
            raise ConfigError(f"output_dir={self.path} cannot be written ({error.strerror}): choose another") from error
        try:
            self._refuse_changed(settings)
            remove_parts(self.path)
            yield self
        finally:
            if self.journal.steps == 0 and not self.resume and not self.keep:
                self._undo(made)
            self.journal.close()

    def write(self, name: str, text: str) -> None:
        """Write one of the run's text files, whole or not at all."""
        write_text(self.path / name, text)

    def _undo(self, made: list[Path]) -> None:
        for name in _OF_A_START:
            (self.path / name).unlink(missing_ok=True)
        shutil.rmtree(self.path / OWNER, ignore_errors=True)
        for folder in made:
            if not any(folder.iterdir()):
                folder.rmdir()

    def _refuse_changed(self, settings: Mapping[str, Any]) -> None:
        """A resumed run under another plan would be accounted wrongly; under other settings it would be another run."""
        file = self.path / SETTINGS
        try:
            changed = differences(json.loads(json.dumps(settings)), read_json(file))
        except (OSError, ValueError, AttributeError) as error:
            raise PrivacyError(f"{file} cannot be read, so the run cannot be resumed") from error
        if changed:
            raise PrivacyError(
                f"{changed}: not the settings of the run in {self.path}; "
                "resume with its own (config.yaml), or start a new run elsewhere"
            )
