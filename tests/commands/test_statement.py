"""``dptrain statement``: prints, writes where it is told, and leaves the run's own files alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dptrain.commands.main import main

from ..statement.runs import PLAN, edit, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("statement") / "run")


def test_it_prints_markdown_or_what_is_asked(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["statement", str(run)]) == 0
    assert capsys.readouterr().out.startswith("# Privacy statement")
    assert main(["statement", str(run), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["guarantee"]["epsilon"] == PLAN.epsilon()


def test_it_writes_by_suffix_and_all_three(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    assert main(["statement", str(run / "weights" / "last.pt"), "-o", str(tmp_path / "a.html")]) == 0
    assert (tmp_path / "a.html").read_text().startswith("<!DOCTYPE html>")
    assert main(["statement", str(run), "--format", "all", "-o", str(tmp_path / "three")]) == 0
    assert {file.name for file in (tmp_path / "three").iterdir()} == {
        "statement.json",
        "statement.md",
        "statement.html",
    }
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def test_the_old_name_of_the_command_is_answered(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run)]) == 2
    assert capsys.readouterr().err.strip().endswith("dptrain report is now dptrain statement")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("{run} -o {run}/statement.html", "own file"),
        ("{run} -o {run}/weights/statement.json", "own file"),
        ("{run} -o {run}/weights/last.pt", "own file"),
        ("{run} --format json -o {tmp}/x.html", "does not fit"),
        ("{run} -o {tmp}", "is a folder"),
        ("{tmp}/nothing", "is not there"),
        ("{tmp}", "statement.json is missing"),
        ("{run}/settings.json", "neither a weights file"),
        ("0123456789abcdef0123456789abcdef --tracking-uri sqlite:///{tmp}/m.db", "cannot be read"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(
    run: Path, tmp_path: Path, arguments: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["statement", *arguments.format(run=run, tmp=tmp_path).split()]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and words in captured.err.splitlines()[-1]


def test_a_tracked_run_is_fetched_and_held_against_what_it_logged(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri)
    tracked = client.create_run(client.create_experiment("x")).info.run_id
    client.log_artifacts(tracked, str(run / "weights"), "weights")
    client.log_metric(tracked, "dp/epsilon", PLAN.epsilon())
    arguments = ["statement", tracked, "--tracking-uri", uri, "--format", "json"]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["guarantee"]["epsilon"] == PLAN.epsilon()
    client.log_metric(tracked, "dp/epsilon_claimed", 99.0, step=1)
    assert main(arguments) == 2
    assert "is below 99" in capsys.readouterr().err


def test_an_edited_statement_prints_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forged = make_run(tmp_path / "forged")
    edit(forged / "statement.json", "guarantee/epsilon", 0.1)
    assert main(["statement", str(forged)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "guarantee.epsilon=0.1 is below" in captured.err
