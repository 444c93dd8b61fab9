"""The files of the notebooks hold the outputs of the code that is in them."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import nbformat
import pytest

from notebooks.execute import NOTEBOOKS, execute, faults, read

from .short import FIRST, printed

each_notebook = pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)


def test_there_are_three_notebooks() -> None:
    assert [file.stem[0] for file in NOTEBOOKS] == ["1", "2", "3"]


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
