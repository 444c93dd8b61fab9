"""docs/pitfalls.md and docs/guarantee.md name code and tests that are there; and two pitfalls of a whole run."""

from __future__ import annotations

import importlib
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import dptrain
import dptrain.run.job
from dptrain import DataError, PrivacyPlan
from dptrain.detection.evaluate import KEYS, Metrics
from dptrain.statement.results import read_rows

from ..conftest import MakeDataset, run_options

ROOT = Path(__file__).parents[2]
PAGES = ("docs/pitfalls.md", "docs/guarantee.md", "SECURITY.md")


@cache
def named_in(place: str) -> set[str]:
    """The names of the tests in a file of tests/, or of all of them."""
    files = (ROOT / "tests").rglob("test_*.py") if place == "tests" else [ROOT / place]
    return {name for file in files for name in re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE)}


def rows(page: str) -> list[list[str]]:
    lines = [line for line in (ROOT / page).read_text().splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if not set(line) <= set("|- ")]


@pytest.mark.parametrize("page", PAGES)
def test_every_test_and_file_that_a_page_names_exists(page: str) -> None:
    quoted = re.findall(r"`([^`\n]+)`", (ROOT / page).read_text())
    for name in quoted:
        if re.fullmatch(r"test_\w+", name):
            assert name in named_in("tests"), f"{page}: no such test: {name}"
        elif name.startswith("tests/"):
            assert (ROOT / name).exists(), f"{page}: no such file: {name}"


def test_every_pitfall_has_a_severity_a_refusal_and_a_test() -> None:
    header = ["pitfall", "severity", "what dptrain does", "test"]
    table = rows("docs/pitfalls.md")
    pitfalls = [row for row in table if row != header]
    assert table[0] == header and len(pitfalls) > 30
    for pitfall, severity, does, test in pitfalls:
        assert severity in ("void", "weak", "leak"), pitfall
        assert len(does) > 10 and re.search(r"`test_\w+`", test), pitfall


def test_every_assumption_of_the_guarantee_names_code_that_exists() -> None:
    header, *steps = rows("docs/guarantee.md")
    assert header == ["", "assumption", "code", "test"]
    assert len(steps) > 10
    for number, _, code, test in steps:
        names = re.findall(r"`([^`]+)`", code)
        assert names and re.search(r"`test", test), number
        for name in names:
            resolve(name)


def resolve(dotted: str) -> Any:
    """Return the object of ``dptrain`` that ``training.PrivateTrainer.run`` names."""
    parts = dotted.split(".")
    module, found = "dptrain", importlib.import_module("dptrain")
    while parts and find_spec(f"{module}.{parts[0]}"):
        module = f"{module}.{parts.pop(0)}"
        found = importlib.import_module(module)
        if not hasattr(found, "__path__"):
            break
    for part in parts:
        found = getattr(found, part)
    return found


def test_what_validation_shows_decides_nothing(
    make_dataset: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No early stop, no best.pt, no rate that follows a metric: scores that rise or fall end in the same weights."""
    data, ends = make_dataset(), []
    for name, scores in (("rising", [0.1, 0.5, 0.9]), ("falling", [0.9, 0.5, 0.1])):
        left = iter(scores)
        monkeypatch.setattr(dptrain.run.job, "evaluate", lambda *_, **__: Metrics(dict.fromkeys(KEYS, next(left)), {}))  # noqa: B023
        torch.manual_seed(0)
        result = dptrain.train(
            data=data,
            **run_options(
                tmp_path,
                plan=PrivacyPlan(0.9, 2, 1.0, 1.0, 1e-3, 5),
                evaluate_every=1,
                seed=1,
                budget={"url": None},
                tracking={"enabled": False},
                output_dir=str(tmp_path / name),
            ),
        )
        assert [row["step"] for row in read_rows(result.output_dir / "results.csv")] == [0, 1, 2]
        assert {f.name for f in result.weights.parent.glob("*.pt")} == {"last.pt", "last_raw.pt"}
        ends.append(torch.load(result.weights, weights_only=False)["model"].state_dict())
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())


def test_a_run_from_a_start_that_saw_its_images_does_not_begin(make_dataset: MakeDataset, tmp_path: Path) -> None:
    data = make_dataset()
    with pytest.raises(DataError, match=r"000\.png: is a training image and one of public_images"):
        dptrain.train(
            data=data,
            **run_options(
                tmp_path, plan=PrivacyPlan(0.9, 2, 1.0, 1.0, 1e-3, 5), public_images=str(tmp_path / "images")
            ),
        )
    assert not (tmp_path / "out").exists()
