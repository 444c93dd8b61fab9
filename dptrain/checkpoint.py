"""What may be written, and how a run resumes."""

from __future__ import annotations

import dataclasses
import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .errors import PrivacyError
from .files import sync_folder, write_atomically

if TYPE_CHECKING:
    from .plan import PrivacyPlan


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


# Everything a checkpoint may hold. All of it is noised or public.
CHECKPOINT_KEYS = ("format", "plan", "step", "parameters", "frozen", "average", "optimizer", "seed")
CHECKPOINT_FORMAT = 1


def save_checkpoint(file: Path, state: dict[str, Any], plan: PrivacyPlan, seed: int | None) -> None:
    """Write the state of a run, atomically.

    Raises:
        PrivacyError: The state has a key that is not on the whitelist.
    """
    payload = {"format": CHECKPOINT_FORMAT, "plan": dataclasses.asdict(plan), "seed": seed, **state}
    unknown = set(payload) - set(CHECKPOINT_KEYS)
    if unknown:
        raise PrivacyError(f"a checkpoint may not hold {sorted(unknown)}: only {', '.join(CHECKPOINT_KEYS)}")
    write_atomically(file, lambda stream: torch.save(payload, stream))


def load_checkpoint(file: Path, plan: PrivacyPlan, seed: int | None) -> dict[str, Any]:
    """Read the state of a run that followed the same plan; tensors on the CPU.

    Raises:
        PrivacyError: There is no such file, it cannot be read, or it belongs to another plan or seed.
    """
    if not file.is_file():
        raise PrivacyError(f"{file} is not there, so the run cannot be resumed: start a new one in another output_dir")
    try:
        payload = torch.load(file, map_location="cpu", weights_only=True)
        written, seeded = payload["plan"], payload["seed"]
    except Exception as error:  # a damaged file fails in many ways; all mean the same to the user
        raise PrivacyError(f"{file} is not a dptrain checkpoint ({type(error).__name__}), or it is damaged") from error
    if written != dataclasses.asdict(plan) or seeded != seed:
        changed = [k for k, v in dataclasses.asdict(plan).items() if written.get(k) != v] or ["seed"]
        raise PrivacyError(
            f"{file} was made with another {changed[0]} than this run's: resume with the same settings "
            "(they are in config.yaml beside it)"
        )
    return {key: payload[key] for key in ("step", "parameters", "frozen", "average", "optimizer")}
