"""What of a run's folder goes to MLflow."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ..privacy.plan import PrivacyPlan
from ..settings.schema import TrainConfig
from ..statement import STATEMENT_FILES, claim_of
from ..statement.results import TABLES, draw_curve, read_rows
from ..support.files import even_times, flatten, write_text
from .tracking import Tracker

_CURVE = "epsilon_vs_map.png"


def open_tracker(
    config: TrainConfig,
    plan: PrivacyPlan,
    output: Path,
    data_name: str,
    secure: bool,
    tuning: Mapping[str, Any] | None = None,
) -> Tracker:
    """Open the MLflow run of the run in ``output``, or go on with it; a new one gets all settings as parameters."""
    tracking = config.tracking
    tags = {
        "dptrain.model": Path(config.model).name,
        "dptrain.dataset": data_name,
        "dptrain.unit": plan.unit,
        "dptrain.accountant": "RDP (dp-accounting)",
        "dptrain.sampler": "Poisson" if plan.bands == 1 else "cyclic Poisson",
        "dptrain.valid": str(secure).lower(),
        "dptrain.validation": str(config.validation),
    }
    note = output / "mlflow_run"
    known = note.read_text().strip() if note.exists() else None
    tracker = Tracker.start(tracking.uri, tracking.experiment, tracking.run_name, tags, known)
    write_text(note, tracker.run_id)
    if known is None:
        kept = ("tracking.", "budget.", "seal.", "validation_privacy.budget")
        flat = {k: v for k, v in flatten(asdict(config)).items() if not k.startswith(kept)}
        claim = claim_of(plan, plan.steps, tuning)
        tracker.parameters({**flat, "privacy.epsilon": claim.epsilon, "privacy.epsilon_pld": claim.epsilon_pld})
    return tracker


def draw(config: TrainConfig, output: Path, data_name: str) -> None:
    """Draw what the run in ``output`` has evaluated so far."""
    if (output / "results.csv").exists():
        title = f"{Path(config.model).stem} on {data_name}"
        draw_curve(read_rows(output / "results.csv"), output / _CURVE, title)


def publish(output: Path, tracker: Tracker) -> dict[str, float]:
    """Hand the files of the run in ``output`` to the tracker; return the metrics of the last evaluation."""
    even_times(output)  # the tracker's copies keep them
    metrics: dict[str, float] = {}
    names = [*STATEMENT_FILES, "config.yaml"]
    if (output / "results.csv").exists():
        rows = read_rows(output / "results.csv")
        metrics = {key: value for key, value in rows[-1].items() if key.startswith("metrics/")}
        names += [_CURVE, *TABLES]
    for name in names:
        if (output / name).exists():  # no per_class.csv of a private val split
            tracker.file(output / name)
    for file in sorted((output / "weights").iterdir()):  # the statement travels with the weights
        tracker.file(file, "weights")
    return metrics


def config_text(config: TrainConfig) -> str:
    """Return ``config.yaml``, without passwords."""
    text = OmegaConf.to_yaml(OmegaConf.structured(config))
    return re.sub(r"(?<=://)[^/@\s]+@", "", text)  # a password in a tracking URI
