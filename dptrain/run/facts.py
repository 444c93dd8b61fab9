"""What the statement of a run says beside its guarantee: settings, validation, and what an earlier run has spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import ConfigError, DptrainError
from ..sealing.weights import is_weights, weights_hash
from ..settings.schema import TrainConfig
from ..statement import check_statement
from ..statement.files import JSON, read_statement
from ..statement.start_runs import StartRun, each_once
from .build import loss_settings


def training_facts(config: TrainConfig, unit: str) -> dict[str, Any]:
    """Return the settings that change no epsilon, for whoever wants to make the run again."""
    return {
        "image_size": config.imgsz,
        "norm": config.norm,
        "head": config.head,
        "loss": asdict(loss_settings(config)),
        "engine": config.engine,
        "optimizer": config.optimizer.name,
        "learning_rate": config.optimizer.lr,
        "schedule": config.schedule.name,
        "ema_decay": config.ema.decay,
        "exact_noise": config.noise.exact,
        "augmentation": {
            name: value for name, value in asdict(config.augment).items() if value and name != "multiplicity"
        }
        or None,
        "augmentations_averaged": config.augment.multiplicity,
        "images_averaged": config.privacy.images_per_group if unit != "image" else 1,
    }


PRIVATELY = "private (validation=private): noised counts released, at the cost of its own that is stated below"


def validation_words(evaluates: bool, chose: bool, scaled: bool = False, private: bool = False) -> str:
    """Say what the validation split was to the run.

    Args:
        evaluates: Whether the run measured mAP on it.
        chose: A tuning picked the run by its metrics.
        scaled: The layers' scales were measured on images of it.
        private: Noised counts of it were released, or are going to be.
    """
    if private:
        return PRIVATELY
    if not evaluates:
        return "not evaluated in the run"
    words = "treated as public (validation=public): metrics released without noise; "
    words += "they chose the run" if chose else "the run itself neither stops nor selects by them"
    if scaled:
        words += "; its images and labels gave clipping one number a layer, and no weight was trained on them"
    return words


def runs_behind(start: Path, named: Sequence[str]) -> tuple[StartRun, ...]:
    """Return the private runs that a start was made from, each once: those behind their own starts are among them.

    They are the ``named`` ones (``start_runs``), and the one whose statement lies beside the start and covers it. Each
    statement is held against its run, as ``dptrain statement`` does.

    Raises:
        ConfigError: A statement is missing or does not hold, or one lies beside a start that it does not cover.
    """
    if not is_weights(start):
        if named:
            raise ConfigError(
                f"start_runs={list(named)} and model={start}: no run made a random start; leave start_runs out"
            )
        return ()
    folders = [Path(name).expanduser() for name in named]
    if (start.parent / JSON).is_file():
        weights = read_statement(start.parent / JSON).get("weights")
        if isinstance(weights, dict) and weights_hash(start) in weights.values():
            folders.append(start.parent)
        elif not named:
            raise ConfigError(
                f"model={start} is beside the statement of a private run that does not cover it: name the runs it "
                f"was made from, start_runs=[{start.parent}], or move it elsewhere if no private run did"
            )
    found: list[StartRun] = []
    for folder in folders:
        try:
            checked = check_statement(folder)
            sha256 = str(read_statement(checked.folder / JSON)["sha256"])
        except DptrainError as error:
            raise ConfigError(
                f"model={start} was made from {folder}, whose statement does not hold ({error}): what the two cost "
                "together is not known"
            ) from error
        section = checked.statement["start_runs"]
        found += [StartRun.model_validate(run) for run in (section or {"runs": []})["runs"]]
        found.append(StartRun.of(checked.statement, sha256))
    return each_once(found)
