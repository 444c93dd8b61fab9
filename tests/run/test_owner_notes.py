"""What a run tells of private images goes to the owner's screen and folder, and nowhere else."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
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


def test_copies_of_one_photo_are_told_with_the_key_that_makes_them_one_unit(
    make_dataset: MakeDataset, tmp_path: Path, capfd
) -> None:
    file = make_dataset()
    for folder in ("images", "labels"):
        for number, path in enumerate(sorted((file.parent / folder / "train").iterdir())):
            path.rename(path.with_name(f"photo{number // 2}_jpg.rf.{number:032x}{path.suffix}"))
    result = dptrain.train(data=file, **options(tmp_path))
    assert ".rf." not in "".join(capfd.readouterr())
    told = (result.output_dir / "owner" / "dataset.txt").read_text()
    assert "6 images are copies of one photo" in told and "3 groups" in told
    regex = re.search("privacy.groups.regex='(.+)'", told)
    assert regex is not None
    grouped = {**PRIVACY, "unit": "group", "groups": {"regex": regex[1]}, "images_per_group": 2}
    again = dptrain.train(data=file, **{**options(tmp_path, output_dir=str(tmp_path / "grouped")), "privacy": grouped})
    assert again.plan.unit == "group" and not (again.output_dir / "owner" / "dataset.txt").exists()


def test_pictures_that_look_alike_are_told_where_names_say_nothing(make_dataset: MakeDataset, tmp_path: Path) -> None:
    file = make_dataset()
    rng = np.random.default_rng(5)
    photo = cv2.resize(rng.integers(0, 255, (6, 8, 3), np.uint8), (64, 48))
    for number in (1, 4):
        cv2.imwrite(
            str(file.parent / f"images/train/00{number}.png"), photo + rng.integers(0, 2, photo.shape, np.uint8)
        )
    result = dptrain.train(data=file, **options(tmp_path))
    told = (result.output_dir / "owner" / "dataset.txt").read_text()
    assert "2 images look nearly the same" in told and "001.png and 004.png" in told and "privacy.unit=group" in told


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
