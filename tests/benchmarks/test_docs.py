"""The code of docs/speed.md runs as it stands there, from the first block to the last."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).resolve().parents[2] / "docs" / "speed.md"


def test_the_code_on_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 3
    torch.manual_seed(0)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert "[16, 3, 3, 3]" in capsys.readouterr().out
    gradient = names["gradient"]
    assert isinstance(gradient, dict)
    assert "positions.weight" in gradient
