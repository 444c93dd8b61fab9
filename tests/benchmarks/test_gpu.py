"""The script for a GPU: all its parts run on a CPU, and what cannot be done is said."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.machine import ROOT

OPTIONS = argparse.Namespace(device="cpu", small=True)


def test_all_parts_run_on_a_cpu_and_every_check_holds(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--small", "--output", str(file)]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr + done.stdout
    values = json.loads(file.read_text())
    assert values["ended"] and values["machine"]["torch"]
    assert {line["part"] for line in values["found"]} == set(gpu.PARTS)
    checks = [line for line in values["found"] if "check" in line]
    assert len(checks) == 10 and all(line["holds"] for line in checks)
    # Opacus itself refuses bfloat16 here; nothing else is left out.
    assert [line["what"].split()[-1] for line in values["not_done"]] == ["opacus"]
    assert list(tmp_path.iterdir()) == [file]


def test_a_part_that_takes_too_long_is_ended_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    results = gpu.Results(tmp_path / "found.json", OPTIONS)
    gpu.run_part("correctness", 0.0, results, OPTIONS)
    (told,) = json.loads((tmp_path / "found.json").read_text())["not_done"]
    assert told == {"part": "correctness", "what": "the rest", "why": "its 0 s were over"}


def test_a_part_that_dies_is_told_with_its_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    options = argparse.Namespace(device="nowhere", small=True)
    results = gpu.Results(tmp_path / "found.json", options)
    gpu.run_part("correctness", 600.0, results, options)
    (told,) = results.values["not_done"]
    assert told["why"].startswith("exit 1: ") and "nowhere" in told["why"]


def test_missing_imports_without_wheels_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_NEEDED", ("torch", "no_such_package"))
    monkeypatch.setattr(sys, "argv", ["gpu", "--output", str(tmp_path / "found.json")])
    with pytest.raises(SystemExit, match=r"^no_such_package: not installed; give a folder of wheels"):
        gpu.main()
    (tmp_path / "wheels").mkdir()
    with pytest.raises(SystemExit, match=r"no \.whl file in it"):
        gpu.install(tmp_path / "wheels", str(tmp_path))


def test_wheels_are_installed_by_pip_without_a_network_and_torch_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[list[str]] = []

    def run(command: list[str], check: bool) -> subprocess.CompletedProcess[str]:
        called.append(command)
        return subprocess.CompletedProcess(command, 0)

    for name in ("torch-2.9.0-cp311.whl", "nvidia_cublas-1-py3.whl", "small-1-py3-none-any.whl"):
        (tmp_path / name).touch()
    monkeypatch.setattr(subprocess, "run", run)
    gpu.install(tmp_path, "target")
    assert called[0][1:4] == ["-m", "pip", "install"] and {"--no-index", "--no-deps", "--find-links"} <= set(called[0])
    assert [Path(part).name for part in called[0] if part.endswith(".whl")] == ["small-1-py3-none-any.whl"]
