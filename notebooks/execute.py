"""Run the notebooks and keep their outputs in the files.

    python notebooks/execute.py                                    # all of them, a few minutes
    python notebooks/execute.py notebooks/1_first_private_detector.ipynb

The file then carries a hash of its code cells, so that code that was changed and not run again is found by the tests.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).resolve().parent
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
_HASH = "code_sha256"  # in the metadata of a notebook, under "dptrain"


def read(file: Path) -> NotebookNode:
    """Return a notebook, checked against its format."""
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    return notebook


def parameters(notebook: NotebookNode) -> dict[str, Any]:
    """Return the names and values that its cell tagged ``parameters`` sets."""
    tree = ast.parse(_parameters_cell(notebook).source)
    return {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }


def execute(notebook: NotebookNode, values: Mapping[str, Any] | None = None, timeout: int = 3600) -> NotebookNode:
    """Run a notebook from top to bottom in a kernel of its own, and return it with its outputs.

    Args:
        notebook: It is changed in place.
        values: Replace those of its parameters; the notebook is then not one to keep.
        timeout: Seconds that one cell may take.

    Raises:
        KeyError: A name in ``values`` is no parameter of the notebook.
        nbclient.exceptions.CellExecutionError: A cell failed.
    """
    if values:
        if unknown := values.keys() - parameters(notebook).keys():
            raise KeyError(f"{', '.join(sorted(unknown))} is no parameter of the notebook")
        text = "\n".join(f"{name} = {value!r}" for name, value in values.items())
        injected = nbformat.v4.new_code_cell(text, metadata={"tags": ["injected-parameters"]})
        notebook.cells.insert(notebook.cells.index(_parameters_cell(notebook)) + 1, injected)
    client = NotebookClient(
        notebook, timeout=timeout, kernel_name="python3", record_timing=False, coalesce_streams=True
    )
    path = os.pathsep.join(filter(None, (str(FOLDER.parent), os.environ.get("PYTHONPATH"))))  # experiments/ is there
    client.execute(cwd=str(FOLDER), env={**os.environ, "PYTHONPATH": path})
    return notebook


def code_hash(notebook: NotebookNode) -> str:
    """Return the hash of its code cells."""
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\0".join(sources).encode()).hexdigest()


def faults(notebook: NotebookNode) -> list[str]:
    """Return why a notebook is not one to keep: changed since it ran, not run from top to bottom, or with an error."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    found = []
    if notebook.metadata.get("dptrain", {}).get(_HASH) != code_hash(notebook):
        found.append("code cells were changed after they ran")
    if [cell.execution_count for cell in cells] != list(range(1, len(cells) + 1)):
        found.append("its cells did not run once each from top to bottom")
    if not any(cell.outputs for cell in cells):
        found.append("it was saved without outputs")
    if any(output.output_type == "error" for cell in cells for output in cell.outputs):
        found.append("a cell ended with an error")
    return found


def keep(notebook: NotebookNode, file: Path) -> None:
    """Write a notebook that has just run, without what differs from one machine to the next."""
    language = {"name": "python", "file_extension": ".py", "mimetype": "text/x-python"}
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": kernel, "language_info": language, "dptrain": {_HASH: code_hash(notebook)}}
    )
    nbformat.write(notebook, file)


def _parameters_cell(notebook: NotebookNode) -> NotebookNode:
    return next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))


def main() -> None:
    parser = argparse.ArgumentParser(description="run the notebooks and keep their outputs in the files")
    parser.add_argument("files", nargs="*", type=Path, default=NOTEBOOKS, help="default: all of them")
    for file in parser.parse_args().files:
        began = time.perf_counter()
        notebook = execute(read(file))
        keep(notebook, file)
        print(f"{file.name}: {time.perf_counter() - began:.0f} s, {file.stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
