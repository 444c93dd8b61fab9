"""Accuracy over epsilon, one point a job: ``epsilon_vs_map.png``, and an HTML page that needs no network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...support.words import shown
from .table import METRICS, Row, SweepTable

_CURVES = ("metrics/mAP50B", "metrics/mAP50-95B")
_WIDE = 8.0  # from this ratio of the largest to the smallest epsilon on, the axis is logarithmic
PICTURES = ("epsilon_vs_map.png", "epsilon_vs_map.html")


def draw(table: SweepTable, folder: Path, title: str) -> list[Path]:
    """Draw both pictures; nothing where no job was evaluated. Returns the files."""
    rows = _drawable(table)
    if not rows:
        return []
    files = [folder / name for name in PICTURES]
    _png(rows, table, files[0], title)
    _html(rows, table, files[1], title)
    return files


def _drawable(table: SweepTable) -> list[Row]:
    rows = [row for row in table.rows if row.cost is not None and row.metrics and math.isfinite(row.cost.epsilon())]
    return sorted(rows, key=_epsilon)


def _epsilon(row: Row) -> float:
    return row.cost.epsilon() if row.cost else 0.0


def _is_wide(rows: Sequence[Row]) -> bool:
    return _epsilon(rows[-1]) > _WIDE * _epsilon(rows[0]) > 0


def _axis_title(table: SweepTable) -> str:
    assert table.cost is not None
    each = "each run's own delta" if table.cost.deltas_differ else f"delta = {table.cost.delta:.2g}"
    return f"epsilon of one run (RDP, {each})"


def _subtitle(table: SweepTable) -> str:
    assert table.cost is not None
    void = "" if table.cost.secure else "; VOID: a seed was set"
    return f"publishing all of it costs epsilon {shown(table.cost.epsilon)} at delta {table.cost.delta:.2g}{void}"


def _labels(rows: Sequence[Row]) -> str:
    """What the labels of the points are, where they are bare values."""
    swept = {key for row in rows for key in row.swept}
    return f"at each point: {swept.pop()}" if len(swept) == 1 else ""


def _png(rows: Sequence[Row], table: SweepTable, file: Path, title: str) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    figure = Figure(figsize=(7.2, 4.6), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    epsilons = [_epsilon(row) for row in rows]
    for key in _CURVES:
        values = [row.metrics[key] for row in rows]
        (line,) = axes.plot(epsilons, values, marker="o", markersize=4, label=METRICS[key])
        unfinished = [(e, v) for e, v, row in zip(epsilons, values, rows, strict=True) if row.state != "finished"]
        if unfinished:  # hollow: the job stopped on the way
            axes.plot(
                *zip(*unfinished, strict=True), "o", markersize=4, color=line.get_color(), markerfacecolor="white"
            )
    for epsilon, row in zip(epsilons, rows, strict=True):
        axes.annotate(
            row.point.replace(" ", "\n"),
            (epsilon, row.metrics[_CURVES[0]]),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    axes.text(0.01, 0.02, _labels(rows), transform=axes.transAxes, fontsize=8, color="0.4")
    axes.margins(x=0.08)
    if _is_wide(rows):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(left=0)
    axes.set_xlabel(_axis_title(table))
    axes.set_ylabel("on the public validation split")
    axes.set_ylim(0, 1.08)
    axes.set_title(f"{title}\n{_subtitle(table)}", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(file, metadata={"Software": None})


def _scale(rows: Sequence[Row]) -> dict[str, Any]:
    if not _is_wide(rows):
        return {"type": "linear", "rangemode": "tozero"}
    powers = range(math.floor(math.log10(_epsilon(rows[0]))), math.ceil(math.log10(_epsilon(rows[-1]))) + 1)
    ticks = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    return {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


def _html(rows: Sequence[Row], table: SweepTable, file: Path, title: str) -> None:
    import plotly.graph_objects as go

    figure = go.Figure()
    hover = [
        "<br>".join(
            [
                f"job {row.number}, {row.state}",
                *(f"{key} = {value}" for key, value in row.swept.items()),
                f"epsilon {shown(_epsilon(row))}",
                *(f"{METRICS[key]} {value:.3f}" for key, value in row.metrics.items()),
            ]
        )
        for row in rows
    ]
    for key in _CURVES:
        figure.add_scatter(
            x=[_epsilon(row) for row in rows],
            y=[row.metrics[key] for row in rows],
            mode="lines+markers+text" if key == _CURVES[0] else "lines+markers",
            name=METRICS[key],
            text=[row.point for row in rows],
            textposition="top center",
            hovertext=hover,
            hoverinfo="text",
            marker={"symbol": ["circle" if row.state == "finished" else "circle-open" for row in rows], "size": 9},
        )
    figure.update_layout(
        title={"text": f"{title}<br><sub>{_subtitle(table)}</sub>"},
        xaxis={"title": {"text": _axis_title(table)}, **_scale(rows)},
        yaxis={"title": {"text": "on the public validation split"}, "range": [0, 1.08]},
        annotations=[
            {"text": _labels(rows), "xref": "paper", "yref": "paper", "x": 0.01, "y": 0.01, "showarrow": False}
        ],
        legend={"orientation": "h", "y": 1.02, "x": 1, "xanchor": "right", "yanchor": "bottom"},
        template="plotly_white",
    )
    buttons = [["toImage", "zoom2d", "pan2d", "resetScale2d"]]  # by name: none that would send the figure elsewhere
    figure.write_html(
        file, include_plotlyjs=True, full_html=True, config={"modeBarButtons": buttons, "displaylogo": False}
    )
