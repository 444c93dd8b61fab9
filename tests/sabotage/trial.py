"""One bug, its tests in a process of their own, and the verdict."""

from __future__ import annotations

import io
import json
import logging
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from .edits import Bug

ROOT = Path(__file__).parents[2]
# A planted bug that does not even run was not caught: it shows that the bug is badly written.
CRASHES = {"NameError", "UnboundLocalError", "AttributeError", "TypeError", "ImportError", "SyntaxError"}

# Every trial is a fresh process, forked from one that has imported what is slow to import and done nothing else.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(
    ["dptrain.run.job", "opacus.grad_sample", "hypothesis", "scipy.stats", "mlflow.tracking"]
)

LONGEST = 600  # seconds; a bug that hangs its tests is not caught either

Outcomes = dict[str, dict[str, list[str]]]


class Notes:
    """A pytest plugin that notes the outcomes and the errors of every test, by its name without parameters.

    ``errors`` are their types, ``words`` the first line of each.
    """

    def __init__(self) -> None:
        self.seen: Outcomes = {}

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """One failure is enough: the other parameters of that test have nothing to add."""
        if "failed" in self.seen.get(item.nodeid.partition("[")[0], {"outcomes": []})["outcomes"]:
            pytest.skip("it has failed already")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[Any]) -> Iterator[None]:
        report: pytest.TestReport = yield  # type: ignore[misc]
        if report.when == "call" or report.outcome != "passed":
            notes = self.seen.setdefault(item.nodeid.partition("[")[0], {"outcomes": [], "errors": [], "words": []})
            notes["outcomes"].append(report.outcome)
            if call.excinfo is not None and report.outcome == "failed":
                notes["errors"].append(call.excinfo.typename)
                notes["words"].append(call.excinfo.exconly().partition("\n")[0])
        return report  # type: ignore[return-value]


def _run(tests: list[str], bug: Bug | None, report: Path) -> None:
    os.chdir(ROOT)
    logging.getLogger().handlers.clear()  # Opacus puts one there when it is imported, which prints the time
    notes, screen = Notes(), io.StringIO()
    with redirect_stdout(screen), redirect_stderr(screen), bug.planted() if bug else nullcontext():
        pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=short", *tests], plugins=[notes])
    report.write_text(json.dumps({"seen": notes.seen, "screen": screen.getvalue()}))
    os._exit(0)  # a bug may leave processes behind, and nothing here waits for them


def outcomes(tests: Iterable[str], bug: Bug | None = None) -> Outcomes:
    """Run tests with a bug planted, or none; return the outcomes and the errors of every test, by its name."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # several threads would not survive the fork
    os.environ.setdefault("YOLO_OFFLINE", "true")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        process = _PROCESSES.Process(target=_run, args=(list(tests), bug, report))
        process.start()
        process.join(LONGEST)
        process.kill()
        told = json.loads(report.read_text()) if report.exists() else {"seen": {}, "screen": "it died, or hung"}
    if not told["seen"]:
        raise RuntimeError(f"no test was run: {told['screen'][-2000:]}")
    found: Outcomes = told["seen"]
    return found


@dataclass(frozen=True)
class Verdict:
    """What became of a bug.

    Attributes:
        bug: The bug.
        sound: Whether it went as it must: all its tests failed, or all passed where it is harmless.
        word: ``caught``, ``NOT caught ...``, ``passes`` or what else there is to say.
        seconds: How long its tests took.
    """

    bug: Bug
    sound: bool
    word: str
    seconds: float


def broken(tests: Iterable[str]) -> dict[str, str]:
    """Return those of the tests that do not pass as things are, and why."""
    wanted = sorted(set(tests))
    found = outcomes(wanted)
    nothing: dict[str, list[str]] = {"outcomes": ["not run"], "words": []}
    noted = {test: found.get(test, nothing) for test in wanted}
    return {
        test: (notes["words"] or notes["outcomes"])[0]
        for test, notes in noted.items()
        if set(notes["outcomes"]) != {"passed"}
    }


def judge(bug: Bug, broken: Mapping[str, str]) -> Verdict:
    """Plant a bug and see which of its tests notice; ``broken`` are those that do not pass without it, and why."""
    red = [test for test in bug.caught_by if test in broken]
    if red:
        return Verdict(bug, False, f"without the bug, {_short(red[0])} does not pass: {broken[red[0]]}", 0.0)
    began = time.monotonic()
    found = outcomes(bug.caught_by, bug)
    seconds = time.monotonic() - began
    failed = {test: notes["errors"] for test, notes in found.items() if "failed" in notes["outcomes"]}
    silent = [test for test in bug.caught_by if test not in failed]
    if bug.harmless:
        words = [f"{_short(test)} fails ({', '.join(errors)})" for test, errors in failed.items()]
        return Verdict(bug, not failed, "; ".join(words) or "passes", seconds)
    if silent:
        return Verdict(bug, False, f"NOT caught by {', '.join(map(_short, silent))}", seconds)
    crashed = {error for errors in failed.values() for error in errors} & CRASHES
    if crashed:
        return Verdict(bug, False, f"does not run ({', '.join(sorted(crashed))})", seconds)
    return Verdict(bug, True, "caught", seconds)


def _short(test: str) -> str:
    return test.rpartition("::")[2]
