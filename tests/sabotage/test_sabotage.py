"""The list of bugs fits the code, and a few of them are planted here; ``make sabotage`` plants all."""

from __future__ import annotations

import importlib.util
import re

import pytest

from .bugs import BUGS, QUICK
from .edits import Bug, Edit, Stale
from .trial import ROOT, judge


@pytest.mark.parametrize("name", BUGS)
def test_every_bug_fits_the_code_and_names_tests_that_are_there(name: str) -> None:
    bug = BUGS[name]
    for edit in bug.edits:
        assert edit.code() != edit.function().__code__
    assert bug.caught_by
    for test in bug.caught_by:
        file, _, function = test.partition("::")
        assert re.search(rf"^def {function}\b", (ROOT / file).read_text(), re.MULTILINE), test


@pytest.mark.parametrize("name", QUICK)
def test_a_planted_bug_is_caught(name: str) -> None:
    """Without the bug its tests pass: they are part of this suite."""
    verdict = judge(BUGS[name], {})
    assert verdict.sound, verdict.word


def test_a_change_that_nobody_notices_is_told() -> None:
    test = "tests/privacy/test_clipping.py::test_sensitivity"
    same = Edit("dptrain.privacy.clip_rules:FlatClip.sensitivity", (("2.0 * self.clip_norm", "self.clip_norm * 2.0"),))
    unnoticed = Bug("another order", "The factors are swapped.", (same,), (test,))
    assert judge(unnoticed, {}).word == "NOT caught by test_sensitivity"
    assert judge(unnoticed, {test: "why"}).word == "without the bug, test_sensitivity does not pass: why"


def test_a_bug_that_no_longer_fits_is_stale() -> None:
    with pytest.raises(Stale, match="0 times"):
        Edit("dptrain.privacy.clip_rules:FlatClip.sensitivity", (("no such text", ""),)).code()
    with pytest.raises(Stale, match="not there any more"):
        Edit("dptrain.privacy.clip_rules:FlatClip.gone", ()).code()


def test_the_page_lists_every_bug() -> None:
    path = ROOT / "docs" / "generated.py"
    spec = importlib.util.spec_from_file_location("generated", path)
    assert spec is not None and spec.loader is not None
    generated = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generated)
    page = generated.on_page_markdown((ROOT / "docs" / "sabotage.md").read_text(), None)
    assert [name for name in BUGS if f"| {name} |" not in page] == []
