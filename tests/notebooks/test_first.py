"""The first notebook: a private training beside the public start."""

from __future__ import annotations

import re

from .short import FIRST, short_text


def test_the_first_notebook_trains_states_and_compares() -> None:
    text = short_text(FIRST)
    assert "done: epsilon" in text and "-differential privacy for one image" in text
    assert re.search(r"public start +0\.\d+ .*\nprivate, epsilon [\d.]+ +0\.\d+", text)
