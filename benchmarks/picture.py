"""A picture of the measurements: time and memory over the plain step, by method and model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .bars import Record, memory_ratios, repeats

_COLOURS = {"fused": "C0", "ultralytics": "C2", "microbatch": "C1", "opacus": "C3"}


def draw(results: dict[str, Any], file: Path) -> None:
    """Draw the cases that were compared with the plain step; without any, draw nothing."""
    from matplotlib.figure import Figure

    records = [record for record in results["records"] if record.get("result")]
    panels = [panel for panel in (_times(records), _memories(records)) if panel[1]]
    if not panels:
        return
    widest = max(len(cases) for _, cases in panels)
    figure = Figure(figsize=(max(7.0, 2.5 + 0.9 * widest), 3.6 * len(panels)), layout="constrained")
    figure.suptitle(title(results), fontsize=9)
    for place, (heading, cases) in enumerate(panels):
        axes = figure.add_subplot(len(panels), 1, place + 1)
        methods = [method for method in _COLOURS if any(method in heights for heights in cases.values())]
        width = 0.8 / len(methods)
        for number, method in enumerate(methods):
            at = [i + width * number for i, heights in enumerate(cases.values()) if method in heights]
            bars = [heights[method] for heights in cases.values() if method in heights]
            middle = [m for m, _, _ in bars]
            errors = [[m - low for m, low, _ in bars], [high - m for m, _, high in bars]]
            axes.bar(at, middle, width, yerr=errors, label=method, color=_COLOURS[method], error_kw={"linewidth": 0.8})
        axes.axhline(1.0, color="black", linewidth=0.8)
        places = [i + 0.4 - width / 2 for i in range(len(cases))]
        axes.set_xticks(places, [name.replace(" ", "\n", 1) for name in cases], fontsize=7)
        axes.set_ylabel(heading)
        axes.legend(fontsize=8)
    figure.savefig(file, dpi=130)


def title(results: dict[str, Any]) -> str:
    """Name the machine in one line."""
    machine = results["machine"]
    where = machine["gpu"] or f"{machine['processor']}, {machine['threads']} threads"
    return f"{where}, torch {machine['torch']}, {results['date'][:10]}"


Heights = dict[str, dict[str, tuple[float, float, float]]]  # case -> method -> (median, least, greatest)


def _times(records: list[Record]) -> tuple[str, Heights]:
    from statistics import median

    cases: Heights = {}
    for record in records:
        for method in _COLOURS:
            values = repeats(record, method, "plain")
            if values:
                cases.setdefault(record["case"]["name"], {})[method] = (median(values), min(values), max(values))
    return "time / plain step", cases


def _memories(records: list[Record]) -> tuple[str, Heights]:
    cases: Heights = {}
    for method in _COLOURS:
        for name, value in memory_ratios(records, method):
            cases.setdefault(name, {})[method] = (value, value, value)
    return "peak memory / plain step", cases
