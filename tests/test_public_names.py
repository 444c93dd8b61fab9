"""The names of ``dptrain`` itself: said once, in the stub, and loaded at their first use."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import dptrain

ROOT = Path(__file__).resolve().parents[1]
STUB = ast.parse((ROOT / "dptrain" / "__init__.pyi").read_text())


def test_every_name_of_the_stub_is_exported_to_type_checkers_and_is_what_its_module_has() -> None:
    lines = [line for line in STUB.body if isinstance(line, ast.ImportFrom)]
    assert sorted(name.name for line in lines for name in line.names) == dptrain.__all__ == dir(dptrain)
    for line in lines:
        (name,) = line.names
        assert line.level == 1 and name.asname == name.name, "`X as X` is what exports a name from a stub"
        home = import_module(f"dptrain.{line.module}" if line.module else "dptrain")
        assert getattr(dptrain, name.name) is getattr(home, name.name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'dptrain' has no attribute 'trian'"):
        dptrain.trian  # noqa: B018


def test_the_import_alone_loads_no_torch() -> None:
    script = (
        "import dptrain, sys; dir(dptrain); print([m for m in ('torch', 'ultralytics', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "page", sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")]), ids=lambda page: page.name
)
def test_the_documentation_imports_public_names_only(page: Path) -> None:
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        assert not re.search(r"(from|import) dptrain\.", block), block
        assert set(re.findall(r"\bdptrain\.([A-Za-z]\w*)", block)) <= {*dptrain.__all__}, block
