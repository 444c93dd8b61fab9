"""The record of a sweep, ``sweep.json``: its jobs, so that it can go on later, and how each of them ended.

Jobs may run in other processes or on other machines, so all they tell goes through files in the sweep's folder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...errors import ConfigError, DptrainError
from ...settings.schema import FREE_TO_CHANGE
from ...support.files import flatten, is_changed, to_json, write_json, write_text
from ...training.journal import steps_started
from ..owner import OF_A_SWEEP, OWNER, owner_folder

RECORD = "sweep.json"
_FORMAT = 3
OUTCOMES = "jobs"

FINISHED, BEGUN, FAILED, NOT_STARTED = "finished", "begun", "failed", "not started"
REFUSED, UNFORESEEN = "refused", "unforeseen"  # kinds of failure
_ERROR = "job_{}_error.txt"  # in the owner's folder


@dataclass(frozen=True)
class SweepJob:
    """One run of a sweep, as planned.

    Attributes:
        number: Its place, from 0; also the name of its folder.
        swept: The keys that differ from job to job, each with its value as text.
        settings: Every setting that a continued sweep must have again, flat.
    """

    number: int
    swept: dict[str, str]
    settings: dict[str, Any]

    @property
    def label(self) -> str:
        """The swept values in short: ``noise_multiplier=0.8``."""
        return " ".join(f"{leaf(key)}={short(value)}" for key, value in self.swept.items())


@dataclass(frozen=True)
class Study:
    """A sweep whose values are chosen as it goes.

    Attributes:
        keys: Those whose values are chosen; none of them changes what a trial costs.
        trials: How many there may be; all of them are in the cost, wherever it ends.
    """

    keys: tuple[str, ...]
    trials: int


@dataclass(frozen=True)
class SweepRecord:
    """What is known of a sweep from its folder.

    Attributes:
        folder: Where its jobs' folders are.
        jobs: In order; empty in a study.
        parent_run: MLflow run that holds the jobs' runs; None without tracking.
    """

    folder: Path
    jobs: tuple[SweepJob, ...] = field(default=())
    parent_run: str | None = None
    study: Study | None = None

    @classmethod
    def read(cls, folder: Path) -> SweepRecord | None:
        """Read it back; None if there is no sweep.

        Raises:
            ConfigError: The file is damaged.
        """
        file = folder / RECORD
        if not file.exists():
            return None
        try:
            values = json.loads(file.read_text())
            form, jobs = values["format"], tuple(SweepJob(**job) for job in values["jobs"])
            study = Study(tuple(values["study"]["keys"]), values["study"]["trials"]) if values["study"] else None
            record = cls(folder, jobs, values["parent_run"], study)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{file} cannot be read ({type(error).__name__}): start a new sweep elsewhere") from error
        if form != _FORMAT:
            raise ConfigError(f"{file}: format={form!r} is not {_FORMAT}: start a new sweep elsewhere")
        return record

    def write(self) -> None:
        """Write it, whole or not at all."""
        known = {"parent_run": self.parent_run, "jobs": [asdict(job) for job in self.jobs]}
        write_json(
            self.folder / RECORD, {"format": _FORMAT, **known, "study": asdict(self.study) if self.study else None}
        )

    def refuse_changed(self, jobs: Sequence[SweepJob]) -> None:
        """A sweep that goes on has the jobs it began with.

        Raises:
            ConfigError: It names the first job that differs, and how.
        """
        fix = f"resume with the sweep's own values ({self.folder / RECORD}), or start a new sweep elsewhere"
        for known, now in zip(self.jobs, jobs, strict=False):
            for key in {**known.settings, **now.settings}:
                if is_changed(key, now.settings, known.settings):
                    raise ConfigError(
                        f"job {now.number}: {key}={now.settings.get(key)} differs from the sweep in {self.folder}, "
                        f"which has {known.settings.get(key)}: {fix}"
                    )
        if len(self.jobs) != len(jobs):
            number = min(len(self.jobs), len(jobs))
            which, where = (jobs, "is not in") if len(jobs) > number else (self.jobs, "is missing here, and is in")
            raise ConfigError(f"job {number} ({which[number].label}) {where} the sweep in {self.folder}: {fix}")

    def job_folder(self, number: int) -> Path:
        """The ``output_dir`` of a job."""
        return self.folder / str(number)

    def numbers(self) -> list[int]:
        """The jobs there are: those planned, or else those that left a trace."""
        if self.jobs:
            return [job.number for job in self.jobs]
        outcomes = (self.folder / OUTCOMES).glob("*.json")
        return sorted(int(file.stem) for file in outcomes if file.stem.isdecimal())

    def job(self, number: int, overrides: Sequence[str]) -> SweepJob:
        """The job as planned, or, of a study, as the overrides that its sweeper gave it say."""
        planned = next((job for job in self.jobs if job.number == number), None)
        if planned is not None:
            return planned
        values = {key.lstrip("+"): value for key, _, value in (text.partition("=") for text in overrides)}
        return SweepJob(
            number, {key: values[key] for key in self.study.keys if key in values} if self.study else {}, {}
        )

    def state(self, number: int) -> str:
        """How far a job is, from what is on disk."""
        folder = self.job_folder(number)
        if _status(folder / "statement.json") == "finished":
            return FINISHED
        if steps_started(folder):
            return BEGUN
        return FAILED if self.outcome(number).get("state") == FAILED else NOT_STARTED

    def outcome(self, number: int) -> dict[str, Any]:
        """What the job told when it last ran: ``state``, ``label``, a trial's ``swept``, a failure's ``failure``."""
        file = self.folder / OUTCOMES / f"{number}.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def reason(self, number: int) -> str:
        """Why a job failed, for its owner; empty where it did not."""
        file = self.folder / OWNER / _ERROR.format(number)
        return file.read_text().strip() if file.exists() else ""

    def tell(self, number: int, state: str, **more: Any) -> None:
        """Note how a job ended; called where the job runs."""
        write_json(self.folder / OUTCOMES / f"{number}.json", {"state": state, **more})
        (self.folder / OWNER / _ERROR.format(number)).unlink(missing_ok=True)

    def tell_failure(self, number: int, label: str, error: Exception, **more: Any) -> None:
        """Note that a job failed: of which kind here, and why, which may name private files, for the data's owner."""
        failure = REFUSED if isinstance(error, DptrainError) else UNFORESEEN
        self.tell(number, FAILED, label=label, **more, failure=failure)
        write_text(owner_folder(self.folder, OF_A_SWEEP) / _ERROR.format(number), f"{error}\n")


def comparable(settings: Any) -> dict[str, Any]:
    """The settings of a job that must be the same when its sweep goes on, flat, as JSON has them."""
    values = {key: value for key, value in asdict(settings).items() if key not in FREE_TO_CHANGE}
    return flatten(json.loads(to_json(values)))


def _status(statement: Path) -> str | None:
    try:
        return json.loads(statement.read_text()).get("status")
    except (OSError, ValueError):
        return None


def leaf(key: str) -> str:
    """A key without its section."""
    return key.rpartition(".")[2]


def short(value: str) -> str:
    """A swept value as text; of a file, its name."""
    return Path(value).stem if value.endswith((".pt", ".yaml", ".yml")) else value
