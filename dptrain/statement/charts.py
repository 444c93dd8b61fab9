"""The pictures of the statement's page, as SVG that stands on its own."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dp_accounting.rdp import compute_epsilon

from ..support.words import round_up
from .results import MAP50, PRIVATE_AXIS, PUBLIC_AXIS, drawn_keys, read_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, BLUE, ORANGE, GREY = "#1f2933", "#1d4ed8", "#b45309", "#9aa5b1"


def charts(statement: Mapping[str, Any], results: Path | None) -> list[tuple[str, str]]:
    """Return (what it shows, SVG) for the pictures that the statement and the run's table have the numbers for."""
    found: list[tuple[str, str]] = []
    if not statement["mechanism"]["steps"]:
        return found
    if statement["accounting"]["epsilon_over_steps"]:
        found.append((_over_steps_caption(statement), _svg(lambda axes: _over_steps(axes, statement))))
    found.append(
        (
            "The RDP curve: the bound on the Rényi divergence at every order, and the epsilon that each order gives at "
            "this delta. The lowest is the headline.",
            _svg(lambda axes: _over_orders(axes, statement)),
        )
    )
    rows = read_rows(results) if results is not None and results.is_file() else []
    if rows:
        found.append(
            (
                f"Accuracy {PUBLIC_AXIS if drawn_keys(rows)[0] == MAP50 else PRIVATE_AXIS}, by the epsilon of the "
                "steps up to each evaluation.",
                _svg(lambda axes: _accuracy(axes, rows)),
            )
        )
    return found


def _over_steps_caption(statement: Mapping[str, Any]) -> str:
    of = "Epsilon of the outputs of the first steps and no others, their number decided beforehand; by RDP."
    if statement["guarantee"]["epsilon_pld"] is not None:
        return f"{of} The end of the line is the headline; the dot is the tighter PLD reading."
    return f"{of} The end of the line, that of the plan, is the headline, although the run ended where the dots are."


def _over_steps(axes: Axes, statement: Mapping[str, Any]) -> None:
    points = sorted((int(step), value) for step, value in statement["accounting"]["epsilon_over_steps"].items())
    axes.plot([step for step, _ in points], [value for _, value in points], color=BLUE)
    mechanism, guarantee = statement["mechanism"], statement["guarantee"]
    end, pld = mechanism["planned_steps"], guarantee["epsilon_pld"]
    _mark(axes, end, guarantee["epsilon"], f"RDP {round_up(guarantee['epsilon'], 3)}", (-4, 5), BLUE, "bottom")
    if pld is not None:
        axes.plot([end], [pld], "o", color=ORANGE, markersize=4)
        _mark(axes, end, pld, f"PLD {round_up(pld, 3)}", (-4, -6), ORANGE)
    else:
        axes.axvline(mechanism["steps"], color=GREY, linestyle=":")
    axes.set_xlim(0)
    axes.set_ylim(0, 1.12 * guarantee["epsilon"])
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("steps")
    axes.set_ylabel("epsilon")


def _over_orders(axes: Axes, statement: Mapping[str, Any]) -> None:
    delta = statement["guarantee"]["delta"]
    curve = {float(order): bound for order, bound in statement["accounting"]["rdp_curve"].items() if bound > 0}
    converted = {order: float(compute_epsilon([order], [bound], delta)[0]) for order, bound in curve.items()}
    shown = {order: value for order, value in converted.items() if math.isfinite(value) and value > 0}
    axes.loglog(list(curve), list(curve.values()), color=GREY, label="Rényi divergence bound")
    if shown:
        best = min(shown, key=lambda order: shown[order])
        label = f"epsilon at delta {delta:.2g}: {round_up(shown[best], 3)} at order {best:g}"
        axes.loglog(list(shown), list(shown.values()), color=BLUE, label=label)
        axes.plot([best], [shown[best]], "o", color=BLUE, markersize=4)
        axes.set_ylim(min(curve.values()) * 0.5, max(shown.values()) * 2)
    axes.set_xlabel("order")
    axes.legend(frameon=False, fontsize=8, loc="lower right")


def _accuracy(axes: Axes, rows: list[dict[str, float]]) -> None:
    spent = [row["dp/epsilon"] for row in rows]
    for key, label, color in zip(drawn_keys(rows), ("mAP50", "mAP50-95"), (BLUE, ORANGE), strict=True):
        axes.plot(spent, [row[key] for row in rows], "o-", color=color, markersize=3, label=label)
    axes.set_xlim(0)
    axes.set_ylim(0, 1)
    axes.set_xlabel("epsilon of the steps up to it (RDP)")
    axes.legend(frameon=False, fontsize=8)


def _mark(
    axes: Axes,
    x: float,
    y: float,
    text: str,
    offset: tuple[int, int],
    color: str,
    at: str = "top",
) -> None:
    look: dict[str, Any] = {"ha": "right", "va": at, "color": color, "fontsize": 8, "annotation_clip": False}
    axes.annotate(text, (x, y), offset, textcoords="offset points", **look)


def _svg(draw: Callable[[Axes], None]) -> str:
    """Return a picture without the date or the random names that would make two of the same differ."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style = {
        "svg.hashsalt": "dptrain", "svg.fonttype": "path", "font.size": 9, "text.color": INK, "axes.labelcolor": INK,
        "xtick.color": INK, "ytick.color": INK, "axes.edgecolor": GREY, "axes.linewidth": 0.8, "lines.linewidth": 1.6,
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
    }  # fmt: skip
    with rc_context(style):
        figure = Figure(figsize=(4.3, 2.7), layout="constrained")
        draw(figure.add_subplot())
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return stream.getvalue()
