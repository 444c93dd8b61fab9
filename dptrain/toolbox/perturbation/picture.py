"""The curves: mAP and detections over the levels of each perturbation."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

from .kinds import KINDS

if TYPE_CHECKING:
    from .result import PerturbationResult

_MAP, _COUNT = "#1d4ed8", "#9a3412"


def draw(result: PerturbationResult, stream: IO[bytes]) -> None:
    """Draw a panel a kind as PNG; the levels stand side by side, mildest first."""
    from matplotlib.figure import Figure

    kinds = [kind for name, kind in KINDS.items() if any(row.kind == name for row in result.rows)]
    figure = Figure(figsize=(3.6 * len(kinds), 3.4), dpi=110, layout="constrained")
    most = max(max(row.detections for row in result.rows) * 1.1, 1e-9)
    for place, kind in enumerate(kinds):
        axes = figure.add_subplot(1, len(kinds), place + 1)
        rows = result.curve(kind.name)
        places = range(len(rows))
        for name, style in (("mAP50", "-"), ("mAP50-95", "--")):
            axes.plot(
                places,
                [row.metrics[f"metrics/{name}B"] for row in rows],
                style,
                marker="o",
                ms=4,
                color=_MAP,
                label=name,
            )
        axes.set_ylim(0, 1.02)
        axes.set_xticks(places, ["clean", *(f"{row.level:g}" for row in rows[1:])])
        axes.set_title(kind.name, fontsize=11)
        axes.set_xlabel(kind.unit, fontsize=8)
        axes.grid(alpha=0.3)
        counts = axes.twinx()
        counts.plot(places, [row.detections for row in rows], ":", marker="s", ms=3, color=_COUNT, label="detections")
        counts.set_ylim(0, most)
        counts.tick_params(colors=_COUNT)
        if place == 0:
            axes.set_ylabel("mAP", color=_MAP)
            lines = [*axes.get_lines(), *counts.get_lines()]
            axes.legend(lines, [str(line.get_label()) for line in lines], fontsize=8, loc="lower left")
        if place == len(kinds) - 1:
            counts.set_ylabel("detections an image", color=_COUNT)
    figure.savefig(stream, format="png", metadata={"Software": None})
