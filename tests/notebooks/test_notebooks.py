"""The notebooks run with short settings, and the files hold the outputs of the code that is in them."""

from __future__ import annotations

import copy
import re
from functools import cache
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

from notebooks.execute import NOTEBOOKS, execute, faults, parameters, read

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
each_notebook = pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)


@cache
def short_text(file: Path) -> str:
    """Run a notebook with short settings once, and return what it printed."""
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


def test_there_are_three_notebooks() -> None:
    assert [file.stem[0] for file in NOTEBOOKS] == ["1", "2", "3"]


def test_the_first_notebook_trains_states_and_compares() -> None:
    text = short_text(FIRST)
    assert "done: epsilon" in text and "-differential privacy for one image" in text
    assert re.search(r"public start +0\.\d+ .*\nprivate, epsilon [\d.]+ +0\.\d+", text)


def test_the_sweep_costs_the_same_by_the_accountant_in_mlflow_and_in_the_ledger() -> None:
    text = short_text(SWEEP)
    composed = number_after("all runs, composed by RDP", text)
    assert composed == number_after("what the sweep logged to MLflow", text) == number_after("\n  scenes", text)
    alone = number_after("the run with the least noise alone", text)
    assert alone < composed < number_after("sum of their epsilons", text)


def test_the_budget_is_spent_passed_by_no_run_and_tampering_is_found() -> None:
    text = short_text(BUDGET)
    assert "BudgetError: " in text and "would fit" in text and "runs/third/weights/last.pt" in text
    assert "sound; head" in text and "NOT SOUND" in text and "exit status 3" in text
    assert re.search(r"by itself:\s+sound\nagainst the head:\s+the head \S+ is not in the record", text)
    alone, looked_at = number_after("one run   ", text), number_after("ten runs, looked at", text)
    assert alone < number_after("only the winner", text) < looked_at


@each_notebook
def test_the_kept_outputs_are_those_of_the_code(file: Path) -> None:
    assert not faults(read(file)), f"run it again: python notebooks/execute.py notebooks/{file.name}"


@each_notebook
def test_the_kept_outputs_are_small_and_hold_no_noise_and_no_path_of_a_machine(file: Path) -> None:
    assert file.stat().st_size < 300_000
    notebook = read(file)
    text = printed(notebook)
    for unwanted in ("\x1b[", "WARNING", "Traceback", "alembic", "absl"):
        assert unwanted not in text
    assert not re.search(r"(?<![\w.])/(home|root|tmp|var|work|Users|opt)\b", text)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [output for output in outputs if output.get("name") == "stderr"]


def test_what_is_not_fit_to_be_kept_is_found() -> None:
    sound = read(FIRST)

    def changed(**values: object) -> list[str]:
        notebook = copy.deepcopy(sound)
        cell = next(cell for cell in notebook.cells if cell.cell_type == "code" and cell.outputs)
        cell.update(values)
        return faults(notebook)

    error = nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])
    assert "changed after" in changed(source="1 + 1")[0]
    assert "top to bottom" in changed(execution_count=99)[0]
    assert "with an error" in changed(outputs=[error])[0]
    empty = copy.deepcopy(sound)
    for cell in empty.cells:
        if cell.cell_type == "code":
            cell.update(outputs=[], execution_count=None)
    assert len(faults(empty)) == 2


def test_a_misspelt_parameter_is_refused() -> None:
    with pytest.raises(KeyError, match="STEP is no parameter"):
        execute(read(FIRST), {"STEP": 2})
