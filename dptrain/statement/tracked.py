"""A run that is known by its MLflow id: its statement and weights are fetched from the artifacts."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from ..errors import ConfigError, PrivacyError, TrackingError
from .fields import get
from .files import JSON, WEIGHTS, read_statement


def is_run_id(text: str) -> bool:
    """Whether this is the id of an MLflow run, and not also a file or folder that is there."""
    return re.fullmatch(r"[0-9a-f]{32}", text) is not None and not Path(text).exists()


@contextmanager
def fetched(run_id: str, uri: str) -> Iterator[Path]:
    """Give a folder with the weights and the statement of a tracked run; it is gone after the block.

    Raises:
        TrackingError: The store cannot be reached or does not know the run.
        ConfigError: The run holds no statement.
        PrivacyError: The run logged a higher epsilon than its statement claims.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=uri)
        run = client.get_run(run_id)
        held = {file.path for file in client.list_artifacts(run_id, WEIGHTS)}
    except Exception as error:  # every store has its own errors; all mean that the run was not found
        reason = " ".join(str(error).split())[:160]
        raise TrackingError(
            f"the run {run_id} cannot be read from {uri} ({type(error).__name__}: {reason}): "
            "give its folder, or its store by --tracking-uri"
        ) from error
    if f"{WEIGHTS}/{JSON}" not in held:
        raise ConfigError(
            f"the MLflow run {run_id} holds no {WEIGHTS}/{JSON}: it did not end, or dptrain did not make it"
        )
    with TemporaryDirectory() as folder:
        try:
            weights = Path(client.download_artifacts(run_id, WEIGHTS, folder))
        except Exception as error:  # as above
            raise TrackingError(f"the artifacts of the run {run_id} cannot be fetched from {uri}: {error}") from error
        _agree_with_metrics(run.data.metrics, weights / JSON)
        yield weights


def _agree_with_metrics(metrics: dict[str, float], file: Path) -> None:
    claimed = get(read_statement(file), "guarantee.epsilon")
    logged = max(metrics.get(name, 0.0) for name in ("dp/epsilon", "dp/epsilon_claimed"))
    if isinstance(claimed, int | float) and claimed < logged * (1 - 1e-9):
        raise PrivacyError(f"{file.name}: guarantee.epsilon={claimed:.8g} is below {logged:.8g}, which the run logged")
