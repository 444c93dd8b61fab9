"""The private names of Hydra that dptrain uses are in the versions that it asks for; others were not tried."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

from dptrain.run.sweep.hydra_flags import hydra_flags

TREE = Path(__file__).parents[3]


def test_hydra_is_a_version_whose_private_names_were_tried() -> None:
    found = version("hydra-core")
    assert re.fullmatch(r"1\.3\.([2-9]|\d\d+).*", found), (
        f"hydra-core {found} is installed: look through dptrain/run/sweep/hydra_flags.py, then widen this and pyproject"
    )
    assert '"hydra-core>=1.3.2,<1.4"' in (TREE / "pyproject.toml").read_text()
    _, flags = hydra_flags()
    assert flags["-m"] is flags["--multirun"] and flags["-m"].nargs == 0 and flags["--config-dir"].nargs is None


def test_nothing_else_uses_private_names_of_hydra_or_of_dp_accounting() -> None:
    private = re.compile(r"hydra\._internal|\._orders\b|\._rdp\b|dp_accounting[\w.]*\._")
    places = [
        file.relative_to(TREE).as_posix()
        for file in (TREE / "dptrain").rglob("*.py")
        if private.search(file.read_text())
    ]
    assert places == ["dptrain/run/sweep/hydra_flags.py"]
