"""The script of docs/raw_to_released.md, with few photos: every stage is really done, and nothing of a patient is left.

The stages before training always run; DPTRAIN_RELEASE=1 runs the rest too, which takes half a minute.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from dptrain import unseal
from dptrain.datasets.images import read_image
from dptrain.detection import load_model
from dptrain.sealing import find_keys
from experiments import raw_to_released


@pytest.fixture(autouse=True)
def teams_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The ledger of the user's team, which the script must leave alone."""
    file = tmp_path / "team" / "budget.db"
    monkeypatch.setenv("DPTRAIN_BUDGET_URL", f"sqlite:///{file}")
    return file


def refuse_patients(root: Path, here: Path) -> None:
    """Hold the sealed photos against the raw ones: no name, no EXIF, no sticker."""
    names = [file.stem for file in (root / "raw").rglob("*.jpg")]
    assert len(names) == 11  # of 9 + 3 + 1, two are set aside
    slips = unseal(root / "slips.seal", here / "slips", keys=find_keys(root / "hospital.key"))
    photos = sorted(slips.rglob("*.jpg"))
    assert len(photos) == 11 and len(list(slips.rglob("*.txt"))) == 11
    for photo in photos:
        assert b"Exif" not in photo.read_bytes() and not any(name in str(photo) for name in names)
        assert np.ptp(read_image(photo)[-raw_to_released.STICKER + 8 :]) <= 2
    table = unseal(root / "names.csv.age", here / "names.csv", keys=find_keys(root / "officer.key")).read_text()
    assert all(name in table for name in names)
    gone = {"clean", "redacted", "names.csv", "scrub.key", "release"}
    assert not gone & {file.name for file in root.iterdir()}


def test_nothing_of_a_patient_is_in_what_is_sealed(
    tmp_path: Path, teams_ledger: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "all").mkdir()
    with raw_to_released.workplace(tmp_path / "all"):
        raw_to_released.prepare(9)
    assert (tmp_path / "all" / "budget.db").is_file() and not teams_ledger.exists()
    text = capsys.readouterr().out
    assert "broken image           1" in text and "train and val          1" in text
    refuse_patients(tmp_path / "all", tmp_path)


@pytest.mark.skipif("DPTRAIN_RELEASE" not in os.environ, reason="half a minute; DPTRAIN_RELEASE=1 runs it")
def test_the_clinic_gets_the_weights_that_the_statement_covers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "all"
    monkeypatch.setattr(sys, "argv", ["raw_to_released", "--root", str(root), "--photos", "9", "--steps", "1"])
    raw_to_released.main()
    refuse_patients(root, tmp_path)
    weights = {file.name for file in (root / "run").rglob("*.pt*")}
    assert weights == {"checkpoint.pt.age", "last.pt.age", "last_raw.pt.age"}
    assert load_model(root / "clinic" / "detector" / "last.pt").names[7] == "7"
    statement = json.loads((root / "clinic" / "detector" / "statement.json").read_text())
    assert statement["guarantee"]["epsilon"] <= 8 and statement["dataset_budget"]["name"] == "slips"
    assert "sha256 of last.pt: as stated" in (root / "clinic" / "statement.md").read_text()
    assert len(list((root / "clinic" / "found").iterdir())) == raw_to_released.SLIPS
