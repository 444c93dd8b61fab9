"""Who is told of a run at its public times."""

from __future__ import annotations

from collections.abc import Mapping

from ..detection.evaluate import Metrics
from .prepare import Prepared


class Watcher:
    """Is told of a run between its steps, at steps that the plan fixes; what it gets is noised, or public.

    What it raises ends the run; the steps taken stay charged.
    """

    def began(self, run: Prepared) -> None:
        """Before the first step of a run, or of one that is resumed."""

    def evaluated(self, run: Prepared, step: int, row: Mapping[str, float], metrics: Metrics | None) -> bool:
        """After weights were written and evaluated; True stops the run, whose statement and weights are then written.

        Args:
            run: What it trains with; its model has the last iterate.
            step: Number of steps taken.
            row: What the table of the run has for it.
            metrics: On the public val split; None where nothing is evaluated.
        """
        return False

    def ended(self, run: Prepared) -> None:
        """After the last step, when all files are written."""
