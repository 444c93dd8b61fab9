"""The picture of an audit: the claim and the bound, and how far apart the canaries' scores are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..support.words import shown, shown_below

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .result import AuditResult

CLAIM, FOUND, BROKEN, OUT = "#9ca3af", "#2563eb", "#b91c1c", "#f59e0b"
_BINS = 60
_OUTSIDE = 0.002  # share of scores at either end that the picture leaves out


def draw_audit(result: AuditResult, file: Path) -> None:
    """Draw the claimed epsilon above the lower bound, and the scores of canaries that were in and out."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.8), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    color = BROKEN if result.violation else FOUND
    _bars(left, result, color)
    _scores(right, result)
    verdict = "VIOLATION" if result.violation else "no violation found"
    title = f"{verdict}: {result.threat} audit, {result.model} on {result.data}"
    figure.suptitle(title, fontsize=11, color=BROKEN if result.violation else "black")
    figure.savefig(file, metadata={"Software": None})


def _bars(axes: Axes, result: AuditResult, color: str) -> None:
    claim, bound = result.claimed_epsilon, result.epsilon_lower_bound
    words = (f"{shown(claim)}", f"at least {shown_below(bound)}")
    axes.bar((0, 1), (claim, bound), color=(CLAIM, color), width=0.6)
    for place, (height, text) in enumerate(zip((claim, bound), words, strict=True)):
        axes.annotate(text, (place, height), (0, 3), textcoords="offset points", ha="center", fontsize=9)
    axes.axhline(claim, color=CLAIM, linewidth=1, linestyle="dashed", zorder=0)
    axes.set_xticks((0, 1), ("claimed", f"found, confidence {result.confidence:g}"))
    axes.set_ylim(0, 1.15 * max(claim, bound))
    axes.set_ylabel(f"epsilon at delta {result.plan.delta:.2g}")
    notes = [f"{result.correct} of {result.guesses} guesses right"]
    if result.measured is not None:
        notes += [f"noise {result.measured.noise:.2f}, share {result.measured.share:.2f} of the plan's"]
    axes.set_xlabel("\n".join(notes), fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def _scores(axes: Axes, result: AuditResult) -> None:
    scores, included = result.scores, result.included
    low, high = np.quantile(scores, (_OUTSIDE, 1.0 - _OUTSIDE))
    bins = np.linspace(low, high, min(_BINS, max(8, len(scores) // 8))).tolist()
    for chosen, color, label in ((included, FOUND, "in"), (~included, OUT, "out")):
        label = f"{chosen.sum():,} canaries {label}"
        axes.hist(scores[chosen], bins, color=color, alpha=0.55, label=label)
    ranked = np.sort(scores)
    below, above = result.guesses // 2, (result.guesses + 1) // 2
    for edge in (*ranked[below - 1 : below], ranked[-above]) if below else (ranked[-above],):
        axes.axvline(edge, color="black", linewidth=0.8, linestyle="dotted")
    kind = "log-likelihood ratio" if result.threat == "white-box" else "how much training lowered its loss"
    axes.set_xlabel(f"score of a canary: {kind}\n(guessed: what lies outside the dotted lines)", fontsize=9)
    axes.set_ylabel("canaries")
    axes.set_ylim(top=1.2 * axes.get_ylim()[1])  # room for the legend
    axes.legend(frameon=False, fontsize=9, ncols=2, loc="upper center")
    axes.spines[["top", "right"]].set_visible(False)
