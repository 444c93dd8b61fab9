"""The spending of a dataset over its runs, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO

from .reading import DatasetReading, Movement


def draw_spending(movements: Sequence[Movement], reading: DatasetReading, file: Path | IO[bytes]) -> None:
    """Draw epsilon after each run as steps, the limit as a line, and the runs that still hold a reservation hollow."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7.2, 4.2), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    numbers = list(range(reading.runs - len(movements) + 1, reading.runs + 1))
    epsilon = [movement.epsilon for movement in movements]
    first = numbers[0] - 1
    if first == 0:
        axes.step([0, *numbers], [0.0, *epsilon], where="post", color="tab:blue", linewidth=1.2)
    else:
        axes.step(numbers, epsilon, where="post", color="tab:blue", linewidth=1.2)
    for is_open, fill, label in ((False, "tab:blue", "settled"), (True, "white", "reserved, not settled")):
        points = [(n, m.epsilon) for n, m in zip(numbers, movements, strict=True) if (m.status == "open") is is_open]
        if points and len(movements) <= 200:
            across, up = zip(*points, strict=True)
            axes.scatter(across, up, s=28, c=fill, edgecolors="tab:blue", zorder=3, label=label)
    if reading.limit is not None:
        axes.axhline(reading.limit, color="tab:red", linewidth=1.2, linestyle="--", label=f"budget {reading.limit:g}")
    axes.set_xlabel("runs, in the order of their reservations")
    axes.set_ylabel(f"epsilon spent so far (RDP, delta = {reading.delta:.2g})")
    axes.set_xlim(first - 0.2 if first else 0, numbers[-1] + 0.5)
    axes.set_ylim(0, 1.08 * max([*epsilon, reading.limit or 0.0]) or 1.0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(f"privacy budget of {reading.name}, one {reading.unit} a unit")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    if not isinstance(file, Path):
        figure.savefig(file, format="svg", metadata={"Date": None})
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Software": None} if file.suffix.lower() == ".png" else None)
