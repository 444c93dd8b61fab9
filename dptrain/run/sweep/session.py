"""A sweep from its first job to its table: its folder, and the MLflow run above the jobs' runs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from ...errors import ConfigError
from ...settings.schema import TrainConfig
from ...support.files import even_times
from ..owner import OWNER
from ..tracking import NoTracker, Tracker
from .jobs import FAILED, FINISHED, OUTCOMES, REFUSED, Study, SweepJob, SweepRecord
from .pictures import draw
from .table import METRICS, SweepTable, mlflow_table, read_table, summary, write_table

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sweep:
    """A sweep that is open.

    Attributes:
        record: Its jobs and its folder.
        title: What its pictures say above: model and data.
        silent: Whether no job says on the screen why it failed.
    """

    record: SweepRecord
    title: str
    tracker: Tracker
    silent: bool = False

    @classmethod
    def begin(
        cls, folder: Path, plan: Sequence[SweepJob] | Study, settings: TrainConfig, silent: bool = False
    ) -> Sweep:
        """Open the sweep, or go on with the one in ``folder``, before any of its jobs starts.

        Args:
            folder: The sweep's ``output_dir``.
            plan: The jobs, or the study.
            settings: The command's settings but for the swept ones.
            silent: Whether no job says on the screen why it failed.

        Raises:
            ConfigError: The folder holds something else than the sweep that is asked for, or its jobs differ.
            TrackingError: MLflow cannot be reached.
        """
        known = SweepRecord.read(folder)
        if settings.resume:
            record = _continued(known, folder, plan)
        else:
            _refuse_used(known, folder)
            study = plan if isinstance(plan, Study) else None
            record = SweepRecord(folder, () if isinstance(plan, Study) else tuple(plan), study=study)
        tracker = _tracker(settings, record)
        record = replace(record, parent_run=tracker.run_id or record.parent_run)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            record.write()
        except OSError as error:
            raise ConfigError(f"output_dir={folder} cannot be written ({error.strerror}): choose another") from error
        return cls(record, _title(settings), tracker, silent)

    def failures(self) -> list[bool]:
        """For each job that failed when it last ran, whether dptrain refused it (or did not foresee the failure)."""
        outcomes = [self.record.outcome(n) for n in self.record.numbers() if self.record.state(n) != FINISHED]
        return [outcome.get("failure") == REFUSED for outcome in outcomes if outcome.get("state") == FAILED]

    def untold(self) -> list[str]:
        """Why jobs failed that could not say so themselves, one line each; for the owner's screen."""
        numbers = self.record.numbers() if self.silent else []
        reasons = [(self.record.outcome(number).get("label"), number, self.record.reason(number)) for number in numbers]
        return [f"job {number} ({label}) failed: {reason}" for label, number, reason in reasons if reason]

    def end(self, interrupted: bool = False) -> SweepTable:
        """Write the table, the pictures and the composed cost, here and in MLflow, whatever became of the jobs."""
        folder = self.record.folder
        table = read_table(self.record)
        write_table(table, folder)
        pictures = draw(table, folder, self.title)
        even_times(folder / OUTCOMES)
        even_times(folder / OWNER)
        even_times(folder, deep=False)
        for file in (folder / "sweep.csv", folder / "summary.json", *pictures):
            self.tracker.file(file)
        if table.rows:
            self.tracker.table(mlflow_table(table), "runs.json")
        self._log(table)
        complete = table.finished == len(table.rows)
        self.tracker.end("KILLED" if interrupted else "FINISHED" if complete else "FAILED")
        return table

    def _log(self, table: SweepTable) -> None:
        """The composed cost, and one point a finished job: MLflow then draws the curve of the sweep itself."""
        values = {key: value for key, value in summary(table).items() if isinstance(value, float | int)}
        for name in ("valid", "ended_early"):
            values.pop(name)
        self.tracker.metrics({f"sweep/{key}": value for key, value in values.items()}, table.finished)
        logged = self.tracker.logged_steps("sweep/epsilon")
        for row in table.rows:
            if row.state == FINISHED and row.cost is not None and row.number not in logged:
                points = {f"sweep/{METRICS[key]}": value for key, value in row.metrics.items()}
                self.tracker.metrics({"sweep/epsilon": row.cost.epsilon(), **points}, row.number)


def _continued(known: SweepRecord | None, folder: Path, plan: Sequence[SweepJob] | Study) -> SweepRecord:
    if known is None:
        raise ConfigError(f"resume=true, and output_dir={folder} holds no sweep: leave resume out to start one")
    if isinstance(plan, Study) or known.study:
        raise ConfigError(
            f"the sweep in {folder} cannot be resumed: a sweeper that chooses its values as it runs would choose "
            "others; resume its jobs one by one"
        )
    known.refuse_changed(plan)
    return known


def _refuse_used(known: SweepRecord | None, folder: Path) -> None:
    if known is not None:
        raise ConfigError(f"output_dir={folder} already holds a sweep: choose another, or resume it with resume=true")
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"output_dir={folder} is not empty: choose a new folder, so that nothing is overwritten")


def _tracker(settings: TrainConfig, record: SweepRecord) -> Tracker:
    tracking = settings.tracking
    if not tracking.enabled:
        return NoTracker()
    study = record.study
    swept: Mapping[str, list[Any]] = {
        key: ["chosen"] if study else [job.swept[key] for job in record.jobs]
        for key in (study.keys if study else record.jobs[0].swept)
    }
    name = tracking.run_name or f"sweep over {', '.join(swept)}"
    model, data = _names(settings)
    tags = {"dptrain.sweep": "true", "dptrain.dataset": data, "dptrain.model": model}
    tracker = Tracker.start(tracking.uri, tracking.experiment, name, tags, record.parent_run)
    if record.parent_run is None:
        values = {f"sweep.{key}": ", ".join(dict.fromkeys(swept[key])) for key in swept}
        tracker.parameters({**values, "output_dir": record.folder, "jobs": study.trials if study else len(record.jobs)})
    return tracker


def _title(settings: TrainConfig) -> str:
    return " on ".join(_names(settings))


def _names(settings: TrainConfig) -> tuple[str, str]:
    """What people call the model and the data; ``several`` where it is swept over."""
    model, data = Path(settings.model), Path(settings.data)
    name = data.resolve().parent.name if data.stem in ("data", "dataset") else data.stem
    return (
        "several" if settings.model == MISSING else model.stem,
        "several" if settings.data == MISSING else name,
    )
