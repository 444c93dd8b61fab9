"""MLflow: the privacy budget next to mAP, at the same whole-number step.

What is logged is noised, public, or computed on a validation split that was declared public; what was estimated from
noised counts of a private one is named so, ``metrics/noised/...``. A run whose tracker cannot be reached does not
start; one whose tracker goes away later goes on, says so once, and keeps everything in its folder.

Every time that is stored of a run is one and the same, the start of the day on which it began (or a millisecond after
the run before it, so that lists keep their order): the milliseconds at which metrics come in would tell how long the
steps between them took, and so which of them drew an image that is slow to read.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

from ..errors import TrackingError
from ..support.files import even_times, start_of_day, to_json

logger = logging.getLogger(__name__)

PARENT_RUN = "DPTRAIN_PARENT_RUN"  # environment variable by which a sweep tells a job the MLflow run above its own


@dataclass(frozen=True)
class Wording:
    """How messages speak of the work that is tracked.

    Attributes:
        setting: The name of the store's address, as users give it.
        without: What to do to go without MLflow, and what was lost so far.
        goes_on: What happens if the store goes away later.
    """

    setting: str = "tracking.uri="
    without: str = "set tracking.enabled=false; no step was taken"
    goes_on: str = "training continues, and results.csv in the output folder has everything"


TRAINING = Wording()


class Tracker:
    """One MLflow run. ``Tracker.start`` raises ``TrackingError``; after that nothing here does."""

    def __init__(self, client: Any, run_id: str, uri: str, work: Wording = TRAINING, at: int = 0) -> None:
        self._client, self.run_id, self.uri, self._work = client, run_id, uri, work
        self._at = at  # milliseconds; of all that is stored of the run
        self._lost = False

    @classmethod
    def start(
        cls,
        uri: str,
        experiment: str,
        run_name: str | None,
        tags: Mapping[str, str],
        run_id: str | None = None,
        work: Wording = TRAINING,
    ) -> Tracker:
        """Open a run, or go on with ``run_id``; below the run that :data:`PARENT_RUN` names, if it names one.

        Raises:
            TrackingError: The store cannot be reached or refuses.
        """
        parent = os.environ.get(PARENT_RUN)
        tags = {**tags, "mlflow.parentRunId": parent} if parent else dict(tags)
        with reaching(uri, work):
            client = client_of(uri)
            if run_id is None:
                number = _experiment_id(client, experiment)
                at = _next_time(client, number)
                run_id = client.create_run(number, start_time=at, run_name=run_name, tags=tags).info.run_id
            else:
                at = int(client.get_run(run_id).info.start_time)
                client.update_run(run_id, status="RUNNING")
        return cls(client, run_id, uri, work, at)

    @staticmethod
    def check(uri: str, experiment: str) -> None:
        """Find out whether a run could be opened, and open none.

        Raises:
            TrackingError: The store cannot be reached or refuses.
        """
        with reaching(uri):
            _experiment_id(client_of(uri), experiment)

    def parameters(self, values: Mapping[str, Any]) -> None:
        """Log parameters; MLflow keeps them as text."""
        from mlflow.entities import Param

        params = [Param(key, str(value)) for key, value in values.items()]
        self._try(lambda: self._client.log_batch(self.run_id, params=params))

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log metrics at a whole-number step."""
        from mlflow.entities import Metric

        metrics = [Metric(key, float(value), self._at, int(step)) for key, value in values.items()]
        self._try(lambda: self._client.log_batch(self.run_id, metrics=metrics))

    def file(self, file: Path, folder: str | None = None) -> None:
        """Store a file of the run as an artifact."""
        self._try(lambda: self._client.log_artifact(self.run_id, str(file), folder))

    def table(self, columns: Mapping[str, list[Any]], name: str) -> None:
        """Store a table, given by its columns, as an artifact that MLflow shows as a table.

        As MLflow's own ``log_table`` does, but for that this replaces what an earlier call stored.
        """
        table = {"columns": list(columns), "data": [list(row) for row in zip(*columns.values(), strict=True)]}
        known = json.dumps([{"path": name, "type": "table"}])
        with TemporaryDirectory() as folder:
            (Path(folder) / name).write_text(to_json(table))
            even_times(Path(folder))
            self.file(Path(folder) / name)
        self._try(lambda: self._client.set_tag(self.run_id, "mlflow.loggedArtifacts", known))

    def logged_steps(self, key: str) -> set[int]:
        """The steps at which a metric was logged, in this process or an earlier one."""
        found: set[int] = set()
        self._try(lambda: found.update(m.step for m in self._client.get_metric_history(self.run_id, key)))
        return found

    def end(self, status: str) -> None:
        """Close the run as ``FINISHED``, ``FAILED`` or ``KILLED``."""
        self._try(lambda: self._client.set_terminated(self.run_id, status, self._at))

    def _try(self, call: Any) -> None:
        if self._lost:
            return
        try:
            call()
        except Exception as error:  # training must not lose a spent budget because its tracker went away
            self._lost = True
            reason = " ".join(str(error).split())[:160]
            logger.warning(
                "MLflow at %s failed (%s: %s): %s", self.uri, type(error).__name__, reason, self._work.goes_on
            )

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.end("FINISHED")
        else:
            self.end("KILLED" if issubclass(kind, KeyboardInterrupt | SystemExit) else "FAILED")


class NoTracker(Tracker):
    """Stands in where tracking is turned off, without MLflow, which takes seconds to import."""

    def __init__(self) -> None:
        super().__init__(None, "", "")
        self._lost = True

    def parameters(self, values: Mapping[str, Any]) -> None: ...

    def metrics(self, values: Mapping[str, float], step: int) -> None: ...


def client_of(uri: str) -> Any:
    """An MLflow client of a store; MLflow's own noise is turned off."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    for noisy in ("alembic", "mlflow.store.db.utils", "urllib3.connectionpool"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri)


@contextmanager
def reaching(uri: str, work: Wording = TRAINING) -> Iterator[None]:
    """Turn every error of the store within the block into a :class:`TrackingError` that says what to do."""
    try:
        yield
    except Exception as error:  # every store has its own errors; all mean that nothing would be recorded
        reason = " ".join(str(error).split())[:160]
        raise TrackingError(
            f"{work.setting}{uri} cannot be used ({type(error).__name__}: {reason}): fix it, or {work.without}"
        ) from error


def _next_time(client: Any, experiment: str) -> int:
    """The time of a new run, in milliseconds: it tells the day, and the order of the runs."""
    last = client.search_runs([experiment], order_by=["attributes.start_time DESC"], max_results=1)
    return max([1000 * start_of_day(), *(run.info.start_time + 1 for run in last)])


def _experiment_id(client: Any, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name)
        except MlflowException:  # another process made it in the meantime
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise TrackingError(f"the experiment {name!r} was deleted: restore it, or choose another name")
    return found.experiment_id
