"""Tables of a results file: ``python -m benchmarks.table benchmarks/results/NAME.json`` prints Markdown."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from .bars import Record, repeats
from .picture import title

_HEADINGS = ("what", "bar", "min", "median", "max", "met", "cases")


def _cells(bar: dict[str, Any]) -> list[str]:
    met = {True: "yes", False: "NO", None: ""}[bar["met"]]
    numbers = [f"{bar[key]:.2f}" for key in ("least", "median", "greatest")]
    return [bar["what"], bar["bar"] or "-", *numbers, met, str(bar["cases"])]


def for_terminal(results: dict[str, Any]) -> Table:
    """Return the bars as a table for a terminal."""
    table = Table(title=title(results), title_justify="left")
    for heading in _HEADINGS:
        table.add_column(heading, justify="left" if heading in ("what", "bar") else "right")
    for bar in results["bars"]:
        table.add_row(*_cells(bar), style="red" if bar["met"] is False else None)
    return table


def markdown(results: dict[str, Any], cases: bool = False) -> str:
    """Return the bars, and with ``cases`` also the times of every case, as Markdown."""
    lines = [*_markdown(list(_HEADINGS), [_cells(bar) for bar in results["bars"]], "llrrrlr"), ""]
    missed = [f"{bar['what']}: {bar['worst']}" for bar in results["bars"] if bar["met"] is False]
    if missed:
        lines += ["Missed, with the case furthest off: " + "; ".join(missed) + ".", ""]
    commit = f", commit {results['commit']}" if results["commit"] else ""
    lines.append(f"{title(results)}{commit}, `python -m benchmarks {results['command']}`".rstrip(" `") + "`.")
    if cases:
        methods = ("fused", "ultralytics", "microbatch", "opacus")
        head = ["case", "plain, s", *methods]
        rows = [_case_cells(record, methods) for record in results["records"] if repeats_plain(record)]
        lines += ["", *_markdown(head, rows, "l" + "r" * (len(methods) + 1))]
    return "\n".join(lines) + "\n"


def repeats_plain(record: Record) -> bool:
    """Whether the case was compared with the plain step."""
    return "plain" in (record.get("result") or {}).get("seconds", {})


def _case_cells(record: Record, methods: tuple[str, ...]) -> list[str]:
    cells = [record["case"]["name"], f"{median(record['result']['seconds']['plain']):.2f}"]
    for method in methods:
        values = repeats(record, method, "plain")
        cells.append(f"{median(values):.2f} ({min(values):.2f}-{max(values):.2f})" if values else "-")
    return cells


def _markdown(head: list[str], rows: list[list[str]], sides: str) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "|".join("---:" if side == "r" else "---" for side in sides) + "|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def main() -> None:
    """Print a results file as Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--cases", action="store_true", help="also every case's times")
    options = parser.parse_args()
    print(markdown(json.loads(options.file.read_text()), options.cases), end="")


if __name__ == "__main__":
    main()
