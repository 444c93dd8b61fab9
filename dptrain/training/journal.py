"""The count of the steps whose noise was drawn, on disk."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from ..errors import PrivacyError
from ..support.files import sync_folder

JOURNAL = "steps.journal"


def steps_started(folder: Path) -> int:
    """Steps whose noise was drawn in a run's folder, also those that a crash lost: the size of its journal."""
    journal = folder / JOURNAL
    return journal.stat().st_size if journal.exists() else 0


class StepJournal:
    """Counts the steps whose noise was drawn, on disk, before anything of them can leave the process.

    The file grows by one byte a step and is flushed to the disk each time, so its size is the count whatever happened
    to the process. A run that was killed resumes with these steps spent, also those that its checkpoint has not seen.
    """

    def __init__(self, file: Path, new: bool = True) -> None:
        """Open the journal of a new run, or of one that is resumed.

        Raises:
            PrivacyError: Another process is at work on the same run.
            OSError: The file exists although ``new``, or is missing although not, or cannot be written.
        """
        self.file = file
        flags = os.O_CREAT | os.O_EXCL if new else 0
        self._handle = os.open(file, os.O_WRONLY | os.O_APPEND | flags, 0o644)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._handle)
            raise PrivacyError(f"another process is training in {file.parent}: wait for it, or stop it") from error
        if new:
            sync_folder(file.parent)

    @property
    def steps(self) -> int:
        """Number of steps started so far."""
        return os.fstat(self._handle).st_size

    def record(self, steps: int) -> None:
        """Count up to ``steps``; returns when they are on the disk.

        Raises:
            OSError: They could not be written, so the step may not be taken. It may be counted all the same.
        """
        while (missing := steps - self.steps) > 0:
            os.write(self._handle, b"." * missing)
        os.fsync(self._handle)

    def close(self) -> None:
        os.close(self._handle)
