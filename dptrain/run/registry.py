"""A run's released weights as a version of a registered MLflow model, with the privacy statement as its card."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..statement import check_statement, to_markdown
from ..statement.files import JSON, SEALED, WEIGHTS
from ..statement.results import read_rows
from .tracking import Wording, client_of, reaching

_RELEASED = "last.pt"
_SCRIPT = Path(__file__).parent.parent / "detection" / "served.py"
_NEEDS = ("mlflow", "numpy", "opencv-python", "pandas", "torch", "ultralytics")
_WORK = Wording("--tracking-uri ", "give another --tracking-uri; nothing was registered", "")


@dataclass(frozen=True)
class Registered:
    """A version of a registered model.

    Attributes:
        name, version: Of the model in the registry; ``models:/NAME/VERSION`` is its address.
        epsilon: What its statement claims, recomputed.
        valid: Whether the statement holds; one of a run with a seed is void.
    """

    name: str
    version: int
    epsilon: float
    valid: bool


def register_run(run: str | Path, name: str, uri: str, run_id: str | None = None) -> Registered:
    """Register the released weights (the EMA) of a run in an MLflow store.

    Guarantee: nothing is stored but what the run has released: weights, statement, and the metrics of its last
    evaluation. The epsilon of the tags is recomputed, and a statement that claims less than the run did is refused.

    Args:
        run: The folder of a run, or one of weights with their statement.
        name: Of the registered model; one that exists gets a further version.
        uri: The MLflow store.
        run_id: Of the run in that store, where the folder does not say.

    Raises:
        ConfigError: There are no weights that can be served (sealed ones are not), or no statement.
        PrivacyError: The statement does not hold.
        TrackingError: The store cannot be reached or refuses; no version was made.
    """
    checked = check_statement(run)
    weights = _released(checked.folder)
    statement = checked.statement
    claim = statement["guarantee"]
    tags = {
        "dptrain.epsilon": claim["epsilon"],
        "dptrain.delta": claim["delta"],
        "dptrain.unit": claim["unit"],
        "dptrain.valid": str(statement["valid"]).lower(),
        "dptrain.accountant": "RDP (dp-accounting)",
    }
    if checked.results is not None:
        last = read_rows(checked.results)[-1]
        tags |= {key: value for key, value in last.items() if key.startswith("metrics/")}
    texts = {key: str(value) for key, value in tags.items()}
    with reaching(uri, _WORK), _store(uri) as mlflow:
        client = client_of(uri)
        source = _source(client, run_id or _noted(checked.folder))
        model = mlflow.initialize_logged_model(name=name, tags=texts, **source)
        info = mlflow.pyfunc.log_model(
            model_id=model.model_id,
            name=name,
            python_model=str(_SCRIPT),
            artifacts={"weights": str(weights), "statement": str(weights.parent / JSON)},
            signature=_signature(),
            pip_requirements=[f"{package}=={version(package).partition('+')[0]}" for package in _NEEDS],
        )
        made = mlflow.register_model(info.model_uri, name, tags=texts)
        client.update_model_version(name, made.version, description=to_markdown(statement))
    return Registered(name, int(made.version), float(claim["epsilon"]), bool(statement["valid"]))


def _released(folder: Path) -> Path:
    for file in (folder / WEIGHTS / _RELEASED, folder / _RELEASED):
        if file.is_file():
            return file
        if (sealed := file.with_name(_RELEASED + SEALED)).is_file():
            raise ConfigError(f"{sealed} is sealed, and a server needs open weights: open it with dptrain unseal")
    raise ConfigError(f"{folder} holds no {_RELEASED}: give the folder of a run that has ended")


def _noted(folder: Path) -> str | None:
    note = folder / "mlflow_run"
    return note.read_text(encoding="utf-8").strip() if note.is_file() else None


def _source(client: Any, run_id: str | None) -> dict[str, str]:
    """The run in this store, and its experiment; nothing where the store does not know it."""
    if run_id is None:
        return {}
    try:
        return {"source_run_id": run_id, "experiment_id": client.get_run(run_id).info.experiment_id}
    except Exception:  # each store has its own errors; one that cannot be reached says so at the next call
        return {}


@contextmanager
def _store(uri: str) -> Iterator[Any]:
    """MLflow, silent, with its global store set for the block: logging a model knows no other way."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    before = os.environ.get("MLFLOW_TRACKING_URI")  # MLflow sets it too, and commands that follow would take it over
    mlflow.set_tracking_uri(uri)
    try:
        with redirect_stderr(StringIO()):  # it speaks of type hints and examples, which the signature stands for
            yield mlflow
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]


def _signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    corners = [ColSpec("double", name) for name in ("x1", "y1", "x2", "y2")]
    return ModelSignature(
        inputs=Schema([ColSpec("string", "image")]),
        outputs=Schema(
            [ColSpec("long", "image"), ColSpec("string", "class"), ColSpec("double", "confidence"), *corners]
        ),
        params=ParamSchema([ParamSpec("confidence", "double", 0.25), ParamSpec("iou", "double", 0.7)]),
    )
