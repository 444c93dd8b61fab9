"""The table and the picture of the benchmark."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
KEYS = ("mAP50", "mAP50-95")


def spread(rows: Sequence[Row], key: str) -> tuple[float, float | None]:
    """Mean and sample standard deviation; of one run there is no deviation."""
    values = [row[key] for row in rows]
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


def of_kind(rows: Sequence[Row], kind: str, epsilon: float | None = None) -> list[Row]:
    """The runs of a kind; of plain runs those at the rate that did best."""
    found = [row for row in rows if row["kind"] == kind and row["epsilon_asked"] == epsilon]
    if kind != "plain" or not found:
        return found
    best = max((row for row in found if row["repeat"] == 0), key=lambda row: row["mAP50-95"])["rate"]
    return [row for row in found if row["rate"] == best]


def table(results: Mapping[str, Any]) -> str:
    """The Markdown file: the table, and what one has to know to read it."""
    return "\n".join([*lines(results), "", *remarks(results), ""])


def lines(results: Mapping[str, Any]) -> list[str]:
    """The table as Markdown: a line for each set's start, plain run and epsilon."""
    head = ["set", "training", "runs", "mAP50", "share", "mAP50-95", "share", "time, s", "memory, MB"]
    text = ["| " + " | ".join(head) + " |", "|---|---" + "|---:" * (len(head) - 2) + "|"]
    for name, part in results["sets"].items():
        rows = part["runs"]
        plain = of_kind(rows, "plain")
        tried = len({row["rate"] for row in rows if row["kind"] == "plain"})
        best = f"without privacy, best of {tried} rates ({plain[0]['rate']:g})" if plain else ""
        stock = of_kind(rows, "stock")
        kinds = [("public start", of_kind(rows, "start")), ("stock Ultralytics", stock), (best, plain)]
        asked = sorted({row["epsilon_asked"] for row in rows if row["kind"] == "private"})
        kinds += [(f"private, epsilon {epsilon:g}", of_kind(rows, "private", epsilon)) for epsilon in asked]
        for what, found in kinds:
            if found:
                text.append(_line(name, what, found, stock or plain))
    return text


def _line(name: str, what: str, rows: Sequence[Row], whole: Sequence[Row]) -> str:
    """A line of the table; the shares are of ``whole``, the training without privacy that people would do."""
    cells = [name, what, str(len(rows))]
    for key in KEYS:
        mean, deviation = spread(rows, key)
        cells.append(f"{mean:.3f}" + (f" ± {deviation:.3f}" if deviation is not None else ""))
        of = spread(whole, key)[0] if whole else 0
        cells.append(f"{mean / of:.1%}" if of and rows is not whole else "")
    seconds, memory = (statistics.mean(row[key] for row in rows) for key in ("seconds", "peak_memory_mb"))
    comparable = _processors(rows) == _processors(whole or rows)
    return "| " + " | ".join([*cells, f"{seconds:.0f}" if comparable else "another machine", f"{memory:.0f}"]) + " |"


def _processors(rows: Sequence[Row]) -> set[str]:
    return {row["machine"]["cpu"] for row in rows}


def remarks(results: Mapping[str, Any]) -> list[str]:
    """What one has to know to read the table, a line for each set."""
    text = []
    for name, part in results["sets"].items():
        machines = [(row["threads"], row["machine"]) for row in part["runs"]]
        made = sorted({f"{threads} of {machine['cores']} cores of {machine['cpu']}" for threads, machine in machines})
        of_all = part["epsilon_of_all"]
        together = f"; the private runs in the table cost epsilon {of_all:g} together" if of_all is not None else ""
        text.append(
            f"- {name}: {part['what']}; delta {part['delta']:.2g}{together}. Recipe: {part['tuned']}. "
            "Runs of other settings, made before, are not counted. "
            f"A run had {' or '.join(made)}; machine, versions and commit of each are in its JSON."
        )
    return text


def draw(results: Mapping[str, Any], path: Path) -> None:
    """mAP by epsilon for each set: every run a point, a line through the means; plain and its spread; the start."""
    from matplotlib.figure import Figure

    shown = {name: part for name, part in results["sets"].items() if of_private(part["runs"])}
    if not shown:
        return
    columns = min(3, len(shown))
    rows_of_axes = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(5.2 * columns, 4 * rows_of_axes), layout="constrained")
    places = figure.subplots(rows_of_axes, columns, squeeze=False).flat
    for empty in places[len(shown) :]:
        empty.set_axis_off()
    labels: dict[str, Any] = {}
    for axes, (name, part) in zip(places, shown.items(), strict=False):
        rows, private = part["runs"], of_private(part["runs"])
        asked = sorted({row["epsilon_asked"] for row in private})
        for key, colour in zip(KEYS, ("tab:blue", "tab:orange"), strict=True):
            means = [spread(of_kind(rows, "private", epsilon), key)[0] for epsilon in asked]
            axes.plot(asked, means, "-", color=colour, label=f"private, {key}")
            axes.plot([r["epsilon_asked"] for r in private], [r[key] for r in private], "o", color=colour, markersize=4)
            if plain := of_kind(rows, "plain"):
                mean, deviation = spread(plain, key)
                axes.axhline(mean, color=colour, linestyle="--", label=f"without privacy, {key}")
                if deviation:
                    axes.axhspan(mean - deviation, mean + deviation, color=colour, alpha=0.15)
            if stock := of_kind(rows, "stock"):
                axes.axhline(stock[0][key], color=colour, linestyle="-.", label=f"stock Ultralytics, {key}")
            if start := of_kind(rows, "start"):
                axes.axhline(start[0][key], color=colour, linestyle=":", label=f"public start, {key}")
        axes.set_xscale("log", base=2)
        axes.set_xlim(0.85 * min([1.0, *asked]), 1.18 * max([8.0, *asked]))
        axes.set_xticks(asked, [f"{epsilon:g}" for epsilon in asked])
        axes.set(xlabel=f"epsilon of one run (delta {part['delta']:.2g}, RDP)", ylabel="on val", ylim=(0, 1))
        axes.set_title(textwrap.fill(f"{name}: {part['what']}", 52), fontsize=10)
        axes.grid(alpha=0.3)
        labels |= {text: handle for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=6, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)


def of_private(rows: Sequence[Row]) -> list[Row]:
    """The private runs."""
    return [row for row in rows if row["kind"] == "private"]
