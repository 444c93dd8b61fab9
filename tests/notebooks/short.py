"""Notebooks run with short settings, a file of tests each: a run takes most of a minute."""

from __future__ import annotations

import re
from pathlib import Path

from nbformat import NotebookNode

from notebooks.execute import NOTEBOOKS, execute, parameters, read

SHORT = {
    "TRAIN_SCENES": 12,
    "VAL_SCENES": 4,
    "IMAGE_SIZE": 64,
    "STEPS": 2,
    "EXPECTED_BATCH_SIZE": 4,
    "EVALUATE_EVERY": 2,
    "NOISE_MULTIPLIERS": [0.8, 1.6],
}
FIRST, SWEEP, BUDGET = NOTEBOOKS


def short_text(file: Path) -> str:
    """Run a notebook with short settings, and return what it printed."""
    notebook = read(file)
    return printed(execute(notebook, {name: SHORT[name] for name in parameters(notebook) if name in SHORT}, 300))


def printed(notebook: NotebookNode) -> str:
    parts = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            parts += [output.get("text", ""), data.get("text/plain", ""), data.get("text/markdown", "")]
    return "\n".join(parts)


def number_after(words: str, text: str) -> float:
    found = re.search(rf"{re.escape(words)}\s+([\d.]+)", text)
    assert found, f"{words!r} is not in {text}"
    return float(found[1])
