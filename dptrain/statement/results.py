"""The table of a run, ``results.csv``, and its picture: accuracy over the cost of the steps up to each evaluation.

Its metrics have Ultralytics' names, ``metrics/mAP50(B)``, which MLflow does not take; elsewhere they have no brackets.
Those of a private val split are ``metrics/noised/mAP50(B)`` and so on.

``dp/epsilon`` is the cost of the outputs up to a step, decided on beforehand, for whoever sees no later ones;
``dp/epsilon_claimed`` is what the run claims, wherever it ends.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import ConfigError
from ..support.files import MOST_TEXT, read_file, write_atomically, write_text
from ..support.words import shown

TABLES = ("results.csv", "per_class.csv")
MAP50, MAP = "metrics/mAP50B", "metrics/mAP50-95B"
NOISED = "metrics/noised/"  # before the names of what was estimated from noised counts
_COSTS = ("dp/epsilon", "dp/epsilon_claimed", "dp/delta")
PUBLIC_AXIS, PRIVATE_AXIS = "on the public validation split", "on the private validation split, noised"


def drawn_keys(rows: Sequence[Mapping[str, float]]) -> tuple[str, str]:
    """Return the names of mAP50 and mAP50-95 in a table: those of noised estimates, where it has these."""
    if rows and f"{NOISED}mAP50B" in rows[0]:
        return f"{NOISED}mAP50B", f"{NOISED}mAP50-95B"
    return MAP50, MAP


def stock_name(key: str) -> str:
    """Return what Ultralytics calls a column: ``metrics/mAP50(B)`` for ``metrics/mAP50B``."""
    return re.sub(r"^(metrics/.*)B$", r"\1(B)", key)


def append_rows(file: Path, rows: Sequence[Mapping[str, float | int | str]]) -> None:
    """Append the rows of one evaluation to a CSV file, with a header when the file is new.

    Rows of a step that is there already are left out: a run that was cut right after them evaluates that step again.
    """
    known = {line.get("step") for line in _lines(file)} if file.exists() else set()
    rows = [row for row in rows if str(row["step"]) not in known]
    if not rows:
        return
    before = file.read_bytes().decode() if file.exists() else ""
    added = io.StringIO()
    named = [{stock_name(key): value for key, value in row.items()} for row in rows]
    writer = csv.DictWriter(added, named[0])
    if not before:
        writer.writeheader()
    writer.writerows(named)
    write_text(file, before + added.getvalue())  # the whole table: half a row would be taken for a number


def read_rows(file: Path) -> list[dict[str, float]]:
    """Read the table back, every value as a number.

    Raises:
        ConfigError: It is not a table as a run writes it.
    """
    try:
        rows = [{key.replace("(B)", "B"): float(value) for key, value in row.items()} for row in _lines(file)]
    except (TypeError, ValueError) as error:
        reason = error if isinstance(error, ValueError) else "a row is of another length"
        raise ConfigError(f"{file} is not the table of a run ({reason}): put it back") from error
    drawn = (*_COSTS, *drawn_keys(rows))
    for row in rows:
        if not all(math.isfinite(row.get(key, math.nan)) for key in drawn):
            raise ConfigError(f"{file} is not the table of a run (a number is missing): put it back")
    return rows


def _lines(file: Path) -> list[dict[str, str]]:
    try:
        return list(csv.DictReader(io.StringIO(read_file(file, MOST_TEXT).decode(), newline="")))
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(f"{file} cannot be read as a table ({error}): put it back") from error


def draw_curve(rows: Sequence[Mapping[str, float]], file: Path, title: str) -> None:
    """Draw mAP over the epsilon of the steps up to each evaluation (RDP); a run that ended early names its claim."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    epsilon = [row["dp/epsilon"] for row in rows]
    keys = drawn_keys(rows)
    for key, label in zip(keys, ("mAP50", "mAP50-95"), strict=True):
        axes.plot(epsilon, [row[key] for row in rows], marker="o", markersize=3, label=label)
    axes.set_xlabel(f"epsilon of the steps up to it (RDP, delta = {rows[-1]['dp/delta']:.2g})")
    axes.set_ylabel(PUBLIC_AXIS if keys[0] == MAP50 else PRIVATE_AXIS)
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1)
    claimed = rows[-1]["dp/epsilon_claimed"]
    if claimed > rows[-1]["dp/epsilon"]:
        title += f"\nnot all planned steps: the claim is epsilon {shown(claimed)}"
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    write_atomically(file, lambda stream: figure.savefig(stream, format="png", metadata={"Software": None}))
