"""What an evaluation on perturbed images found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CLEAN = "clean"


@dataclass(frozen=True)
class Row:
    """One level of one perturbation; ``kind`` is ``clean`` for the pictures as they are.

    Attributes:
        kind, level: What was done to the pictures.
        metrics: Ultralytics' means by name, in [0, 1]. **Not noised.**
        detections: Boxes above a confidence of 0.25, an image.
    """

    kind: str
    level: float
    metrics: dict[str, float]
    detections: float


@dataclass(frozen=True)
class PerturbationResult:
    """The outcome of :func:`evaluate_perturbed`.

    Attributes:
        rows: The clean one, then by kind and level.
        images: How many pictures each row was measured on.
        input_noise: What the noise levels are worth as local differential privacy, by level, for a picture of the
            first one's size.
        settings: What was asked for.
        folder: Where ``perturbation.json`` and ``perturbation.png`` were written; None where nowhere.
    """

    rows: list[Row]
    images: int
    input_noise: list[dict[str, Any]]
    settings: dict[str, Any]
    folder: Path | None = None

    def curve(self, kind: str) -> list[Row]:
        """The rows of a kind, from clean to the worst."""
        return [row for row in self.rows if row.kind in (CLEAN, kind)]

    def as_dict(self) -> dict[str, Any]:
        """Return the result as JSON holds it."""
        names = ("settings", "images", "rows", "input_noise")
        return {name: value for name, value in asdict(self).items() if name in names}
