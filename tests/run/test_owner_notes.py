"""What a run tells of private images goes to the owner's screen and folder, and nowhere else."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

import dptrain
from dptrain.datasets.labels import DROP_BAD_ROWS
from dptrain.errors import DataError

from ..conftest import MakeDataset, run_options

PRIVACY = {"noise_multiplier": 1.0, "sample_rate": 0.5, "expected_batch_size": 2, "dataset_size": 6, "delta": 1e-3}
BAD = "1 0.5 0.5 0.271828 0\n"


@pytest.fixture
def data(make_dataset: MakeDataset) -> Path:
    file = make_dataset()
    with (file.parent / "labels/train/001.txt").open("a") as stream:
        stream.write(f"\n{BAD}")
    return file


def options(tmp_path: Path, **changes: object) -> dict[str, object]:
    more = {"privacy": PRIVACY, "steps": 2, "tracking": {"enabled": False}, "budget": {"url": None}}
    return run_options(tmp_path, **more, **changes)


def test_rows_that_are_left_out_are_told_in_the_owners_folder_alone(data: Path, tmp_path: Path, capfd) -> None:
    with pytest.raises(DataError, match=r"001\.txt:\d+: box .* has no area"):
        dptrain.train(data=data, **options(tmp_path))
    assert not (tmp_path / "out").exists()
    capfd.readouterr()
    result = dptrain.train(data=data, **options(tmp_path, labels=DROP_BAD_ROWS))
    out, err = capfd.readouterr()
    assert err == "" and "0.271828" not in out and "left out" not in out
    told = (result.output_dir / "owner" / "dataset.txt").read_text()
    assert "1 row of the train labels left out" in told and "001.txt" in told
    for file in result.output_dir.rglob("*"):
        if file.is_file() and file.parent.name != "owner":
            assert b"0.271828" not in file.read_bytes() and b"left out" not in file.read_bytes(), file


def test_the_owner_sees_it_on_a_terminal(data: Path, tmp_path: Path) -> None:
    master, slave = pty.openpty()
    sections = {f"{section}.{key}": v for section in ("privacy", "tracking", "budget")
                for key, v in options(tmp_path)[section].items()}  # type: ignore[attr-defined]  # fmt: skip
    keys = {k: v for k, v in options(tmp_path).items() if not isinstance(v, dict)} | sections
    words = [f"{key}={'null' if value is None else value}" for key, value in keys.items()]
    done = subprocess.run(
        [sys.executable, "-m", "dptrain", "train", f"data={data}", f"labels={DROP_BAD_ROWS}", *words],
        stdout=subprocess.PIPE, stderr=slave, cwd=tmp_path, timeout=300, check=False,
    )  # fmt: skip
    os.close(slave)
    seen = os.read(master, 100_000).decode()
    assert done.returncode == 0, seen
    assert "owner: labels=drop_bad_rows: 1 row of the train labels left out" in seen and "dataset.txt" in seen
    assert b"left out" not in done.stdout
