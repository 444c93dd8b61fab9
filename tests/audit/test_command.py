"""``dptrain audit``: what it writes, what it says, and how it ends."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from dptrain.commands.main import main
from dptrain.privacy import noise
from dptrain.statement import check_statement
from dptrain.statement.audit import read_audit

from ..statement.runs import make_run

QUICK = "audit --canaries 300 --steps 5 --epsilon 4".split()


def test_an_audit_writes_what_the_privacy_statement_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "here"
    assert main([*QUICK, "-o", str(folder)]) == 0
    text = capsys.readouterr().out
    for word in ("claim      epsilon 4.000", "white-box", "of 40 right, 300 canaries", "confidence 0.95", str(folder)):
        assert word in text
    assert "VIOLATION" not in text
    found = read_audit(folder)
    assert found is not None and found["verdict"] == "no violation found" and found["measured"]["noise"] > 0.9
    assert found["epsilon_lower_bound"] <= found["claimed_epsilon"] <= 4
    assert (folder / "audit.png").stat().st_size > 10_000
    assert main([*QUICK, "-o", str(folder)]) == 2
    assert "audit.json already exists" in capsys.readouterr().err


def test_a_violation_ends_with_status_4_and_says_so_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = noise.privatize

    def halved(value: Mapping[str, Tensor], *, noise_multiplier: float, **rest: Any) -> dict[str, Tensor]:
        return real(value, noise_multiplier=noise_multiplier / 2, **rest)

    monkeypatch.setattr(noise, "privatize", halved)
    assert main([*QUICK, "-o", str(tmp_path / "a")]) == 4
    assert re.search(r"VIOLATION  (.*; )?the noise is 0\.", capsys.readouterr().out)
    assert main([*QUICK, "-o", str(tmp_path / "b"), "--json"]) == 4
    printed = json.loads(capsys.readouterr().out)
    assert printed["verdict"] == "violation"
    assert any("the noise is 0." in fault for fault in printed["faults"])  # epsilon's own fault may stand before it
    found = read_audit(tmp_path / "b")
    assert found is not None and found["verdict"] == "violation"


def test_the_plan_of_a_run_is_audited_and_its_report_has_the_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run")
    assert main(["audit", "--run", str(run), "--canaries", "200"]) == 0
    assert "20 steps, sample rate 0.05, noise multiplier 1" in capsys.readouterr().out
    found = check_statement(run).statement
    assert found["audit"]["plan"]["clip_norm"] == 1.5 and found["valid"]
    assert found["audit"]["claimed_epsilon"] == pytest.approx(found["guarantee"]["epsilon"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--data private.yaml --model yolo26n.yaml", "--public"),
        ("--public", "public"),
        ("--canaries 3", "canaries=3"),
        ("--sample-rate nan", "sample_rate=nan"),
        ("--epsilon -1", "epsilon=-1"),
        ("--guesses 1,x", "1,x"),
        ("--guesses 9000", "guesses=9000"),
        ("--confidence 95", "confidence=95"),
        ("--epsilon 8 --noise-multiplier 1", "cannot be combined"),
        ("--run nowhere", "nowhere"),
        ("--run nowhere --epsilon 8", "--epsilon"),
        ("--threat grey-box", "grey-box"),
        ("--model nothing.pt", "nothing.pt"),
        ("--device gpu", "--device=gpu"),
        ("-o taken", "taken"),
    ],
)
def test_what_is_refused_says_one_line_and_leaves_nothing(
    arguments: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("a file")
    assert main(["audit", *arguments.split()]) == 2
    captured = capsys.readouterr()
    assert expected in captured.err and len(captured.err.splitlines()) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["taken"]
