"""What the statement of a run says beside its guarantee: settings, validation, and what an earlier run has spent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .detection.from_settings import loss_settings
from .files import read_json
from .rounding import round_up
from .schema import TrainConfig
from .sealing.weights import is_weights


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
        "images_averaged": config.privacy.rows_per_unit if unit == "group" else 1,
    }


def validation_words(evaluates: bool, chose: bool) -> str:
    """Say what the validation split was to the run; ``chose`` where a tuning picked it by its metrics."""
    if not evaluates:
        return "not evaluated in the run"
    if chose:
        return "treated as public (validation=public): metrics released without noise; they chose the run"
    return (
        "treated as public (validation=public): metrics released without noise; the run itself neither stops nor "
        "selects by them"
    )


def of_an_earlier_run(start: Path) -> Iterator[str]:
    """What must be said of start weights that come from a private run."""
    earlier = start.parent / "statement.json"  # it travels with the weights
    if is_weights(start) and earlier.is_file():
        try:
            spent = float(read_json(earlier)["guarantee"]["epsilon"])
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            spent = None
        amount = "unknown epsilon" if spent is None else f"epsilon {round_up(spent)}"
        yield (
            f"The start weights come from a private run ({amount}). If it used any of the same images, "
            "the two guarantees compose and this statement covers the second only."
        )
