"""The picture of a plan: the signal by batch size and steps, with lines of equal time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..privacy.planning import PlanGrid

# Seconds at which a line of equal time may be drawn.
_TIMES = (10, 60, 600, 3600, 6 * 3600, 86400, 7 * 86400, 28 * 86400)
TIME = "#9a3412"
_FINE = 60  # points a side for those lines


def draw_plan(grid: PlanGrid, file: Path, in_words: Callable[[float], str]) -> None:
    """Draw the signal as colours, with the noise multiplier, and lines of equal time where a speed is known."""
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke

    batches = sorted({run.expected_batch_size for run in grid.runs})
    steps = sorted({run.steps for run in grid.runs})
    signal = np.full((len(batches), len(steps)), np.nan)
    figure = Figure(
        figsize=(1.6 + 1.15 * max(4, len(steps)), 1.4 + 0.72 * max(4, len(batches))), dpi=120, layout="constrained"
    )
    axes = figure.add_subplot()
    for run in grid.runs:
        signal[batches.index(run.expected_batch_size), steps.index(run.steps)] = run.signal
    image = axes.imshow(signal, origin="lower", aspect="auto", cmap="Blues", vmin=0)
    middle = 0.6 * float(np.nanmax(signal))
    for run in grid.runs:
        place = steps.index(run.steps), batches.index(run.expected_batch_size)
        axes.text(
            *place,
            f"{run.signal:.2f}\nnoise {run.noise_multiplier:.3g}",
            ha="center",
            va="center",
            fontsize=8,
            color="white" if run.signal > middle else "black",
            zorder=4,
            path_effects=[withStroke(linewidth=2.5, foreground=image.cmap(image.norm(np.asarray(run.signal))))],
            fontweight="bold" if run is grid.best else "normal",
        )
    if grid.seconds_per_image is not None and len(batches) > 1 and len(steps) > 1:
        _equal_times(axes, grid.seconds_per_image, batches, steps, in_words)
    axes.set_xticks(range(len(steps)), [f"{value:,}" for value in steps])
    axes.set_yticks(range(len(batches)), [f"{value:,}" for value in batches])
    axes.set_xlabel("steps")
    axes.set_ylabel("expected batch size")
    target = f"epsilon {grid.epsilon:g}" if grid.epsilon is not None else "what is left of the budget"
    axes.set_title(f"{grid.dataset_size:,} images, {target}, delta {grid.delta:.2g}", fontsize=10)
    figure.colorbar(image, ax=axes, label=r"signal $q\sqrt{T/2}\,/\,\sigma$")
    figure.savefig(file, metadata={"Software": None} if file.suffix.lower() == ".png" else None)


def _equal_times(
    axes: Axes, seconds: float, batches: list[int], steps: list[int], in_words: Callable[[float], str]
) -> None:
    """Fields stand side by side whatever their numbers, so the lines are drawn in places, not in numbers."""
    x, log_steps = _to_edges(steps)
    y, log_batch = _to_edges(batches)
    times = seconds * np.exp(log_batch[:, None] + log_steps[None, :])
    levels = [level for level in _TIMES if times.min() < level < times.max()]
    if not levels:
        return
    axes.contour(x, y, times, levels=levels, colors=TIME, linewidths=1.2, linestyles="dashed")
    for level in levels:  # between two fields, where no number stands
        edges = np.arange(len(steps) - 1) + 0.5
        batch = np.log(level / seconds) - np.interp(edges, x, log_steps)
        inside = (log_batch[0] < batch) & (batch < log_batch[-1])
        if inside.any():
            place = (
                edges[inside][int(inside.sum()) // 2],
                np.interp(batch[inside][int(inside.sum()) // 2], log_batch, y),
            )
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1.0, "alpha": 0.9}
            axes.text(*place, in_words(level), ha="center", va="center", fontsize=8, color=TIME, zorder=5, bbox=box)


def _to_edges(values: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Places from edge to edge of the fields, and the logarithm of the value there."""
    places, logs = np.arange(len(values)), np.log(values)
    fine = np.linspace(-0.5, len(values) - 0.5, _FINE)
    first, last = logs[1] - logs[0], logs[-1] - logs[-2]
    outer = np.concatenate([[logs[0] - first / 2], logs, [logs[-1] + last / 2]])
    return fine, np.interp(fine, [-0.5, *places, len(values) - 0.5], outer)
