"""What a rehearsal leaves: a table, a picture, and the best recipe as an experiment to train with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml
from rich.table import Table

from ..settings.schema import TrainConfig
from ..support.files import write_text
from ..support.words import shown
from .rehearsal import Rehearsed
from .tracking import Tracker

EXPERIMENT = "experiment/rehearsed.yaml"


def table_of(rows: Sequence[Rehearsed]) -> Table:
    """Return the rehearsals, a line each; the share is of the same steps without noise."""
    plain = next((row.mAP50 for row in rows if row.cell.epsilon is None), 0.0)
    table = Table("images", "epsilon", "steps x batch", "noise", "rate", "mAP50", "of no noise", "mAP50-95")
    for column in table.columns:
        column.justify = "right"
    for row in rows:
        epsilon = "no noise" if row.cell.epsilon is None else f"{row.cell.epsilon:g}"
        share = f"{row.mAP50 / plain:.0%}" if plain and row.cell.epsilon is not None else ""
        table.add_row(
            f"{row.cell.size:,}", epsilon, f"{row.steps} x {row.batch}", f"{row.noise_multiplier:.3g}", f"{row.lr:.2g}",
            f"{row.mAP50:.3f}", share, f"{row.mAP:.3f}",
        )  # fmt: skip
    return table


def best_of(rows: Sequence[Rehearsed], size: int, epsilon: float) -> Rehearsed | None:
    """Return the rehearsal of a size and an epsilon that did best; None if there was none."""
    tried = [row for row in rows if (row.cell.size, row.cell.epsilon) == (size, epsilon)]
    return max(tried, key=lambda row: row.mAP, default=None)


def write_experiment(best: Rehearsed, file: Path) -> Path:
    """Write the recipe for ``dptrain train --config-dir FOLDER experiment=rehearsed``."""
    values = {
        "steps": best.steps,
        "trainable": best.trainable,
        "head": best.head,
        "optimizer": {"lr": best.lr},
        "ema": {"decay": best.ema},
        "privacy": {
            "epsilon": best.cell.epsilon, "dataset_size": best.cell.size, "expected_batch_size": best.batch,
        },
    }  # fmt: skip
    text = f"# mAP50 {best.mAP50:.3f} on public images that stood in for the private ones.\n"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, f"# @package _global_\n{text}{yaml.safe_dump(values, sort_keys=False)}")
    return file


def draw(rows: Sequence[Rehearsed], file: Path) -> None:
    """Draw mAP50 over the number of images, a line for each epsilon, the best rate of each."""
    from matplotlib.figure import Figure

    private = [row for row in rows if row.cell.epsilon is not None]
    figure = Figure(figsize=(6.4, 4.0), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for epsilon in sorted({row.cell.epsilon or 0.0 for row in private}, reverse=True):
        sizes = sorted({row.cell.size for row in private if row.cell.epsilon == epsilon})
        found = [best_of(private, size, epsilon) for size in sizes]
        axes.plot(sizes, [row.mAP50 for row in found if row], marker="o", label=f"epsilon {epsilon:g}")
    for row in rows:
        if row.cell.epsilon is None:
            axes.axhline(row.mAP50, color="grey", linestyle="--", label="same steps, no noise")
    axes.set(xscale="log", ylim=(0, 1), xlabel="declared number of images", ylabel="mAP50 on the stand-in")
    axes.grid(alpha=0.3)
    axes.legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)


def log(rows: Sequence[Rehearsed], config: TrainConfig) -> None:
    """Log every rehearsal as an MLflow run, to be compared there."""
    if not config.tracking.enabled:
        return
    for row in rows:
        name = f"rehearsal of {row.cell.size} at {'no noise' if row.cell.epsilon is None else shown(row.cell.epsilon)}"
        tags = {"dptrain.rehearsal": "true"}
        with Tracker.start(config.tracking.uri, config.tracking.experiment, name, tags) as tracker:
            tracker.parameters(
                {
                    "privacy.dataset_size": row.cell.size, "privacy.epsilon": row.cell.epsilon, "steps": row.steps,
                    "privacy.expected_batch_size": row.batch, "privacy.noise_multiplier": row.noise_multiplier,
                    "optimizer.lr": row.lr, "trainable": row.trainable,
                }
            )  # fmt: skip
            tracker.metrics({"metrics/mAP50B": row.mAP50, "metrics/mAP50-95B": row.mAP}, row.steps)
