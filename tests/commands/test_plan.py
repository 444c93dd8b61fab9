"""``dptrain plan``: a table, JSON and a picture, from numbers alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dptrain.commands.main import main

GRID = "plan --dataset-size 10000 --epsilon 8 --batch-sizes 256,1024 --steps 100,200".split()


def test_the_table_the_json_and_the_picture_hold_the_same_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*GRID, "--json"]) == 0
    grid = json.loads(capsys.readouterr().out)
    assert [(run["expected_batch_size"], run["steps"]) for run in grid["runs"]] == [
        (256, 100), (256, 200), (1024, 100), (1024, 200),
    ]  # fmt: skip
    assert not list(tmp_path.iterdir())
    assert main([*GRID, "--seconds-per-image", "0.01", "-o", "plan.png"]) == 0
    text = capsys.readouterr().out
    for run in grid["runs"]:
        assert f"{run['noise_multiplier']:.4g}" in text
    assert "time" in text and "4.27 min" in text
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_speed_no_time_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(GRID) == 0
    assert "time" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--dataset-size 10 --epsilon 8 --steps a", "a is not a list of whole numbers"),
        ("--dataset-size 10", "no target"),
        ("--epsilon 8", "--dataset-size"),
        ("--dataset-size 10 --epsilon 8 -o plan.txt", "plan.txt is not a picture"),
        ("--dataset-size 10 --epsilon 8 --measure", "--measure needs --model"),
        ("--dataset-size 10 --epsilon 8 --model yolo26n.yaml", "add --measure"),
        ("--dataset-size 10 --epsilon 8 --measure --model yolo26n.yaml --seconds-per-image 1", "cannot be combined"),
        ("--dataset-size 10 --epsilon 8 --measure --model yolo26n.yaml --imgsz 50", "--imgsz=50"),
        ("--dataset-size 10 --budget clinic --url sqlite:///no.db", "no.db"),
        (
            "--dataset-size 10 --epsilon 1e-9 --delta 1e-9 -o plan.png --steps 100000 --batch-sizes 10",
            "nothing to draw",
        ),
    ],
)
def test_a_wrong_option_is_told_in_one_line(
    arguments: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", *arguments.split()]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert words in lines[-1]
    assert len([line for line in lines if "error" in line]) == 1
    assert not list(tmp_path.iterdir())
