"""Files that change while a run goes on: what is trained on is what was checked and charged, or the run stops."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import dptrain
from dptrain import BudgetError, BudgetLedger, DataError, PrivacyPlan
from dptrain.datasets.contents import files_held
from dptrain.detection.data import DetectionDataset, StepLoader, load_data
from dptrain.privacy.sampling import Draw
from dptrain.run import job as run_module
from dptrain.run.charge import RunCharge

from ..conftest import MakeDataset, run_options

PLAN = PrivacyPlan(1.0, 4, 1.0, 1.0, 1e-3, 6)  # every image in every step


def _other(file: Path) -> bytes:
    """Another picture of the same size, in pixels and in bytes."""
    return bytes(cv2.imencode(".bmp", 255 - cv2.imread(str(file)))[1])


def _in_place(file: Path) -> None:
    """With size, inode and times as they were; only the time of the last change of the inode is another one."""
    status, content = file.stat(), _other(file)
    assert len(content) == status.st_size
    with file.open("r+b") as stream:
        stream.write(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def _by_rename(file: Path) -> None:
    new = file.with_suffix(".new")
    new.write_bytes(_other(file))
    new.replace(file)


def _by_link(file: Path) -> None:
    new = file.parent.parent / "elsewhere.bmp"
    new.write_bytes(_other(file))
    file.unlink()
    file.symlink_to(new)


def _by_folder(file: Path) -> None:
    """The whole folder is another one; every file but this is the same."""
    old = file.parent.with_name("old")
    file.parent.rename(old)
    shutil.copytree(old, file.parent)
    _in_place(file)


def _stray_byte(file: Path) -> None:
    """The same pixels; that is not known before they are decoded, and the charge is by the file that was there."""
    file.write_bytes(file.read_bytes() + b"\0")


def _gone(file: Path) -> None:
    file.unlink()


REPLACED = [_in_place, _by_rename, _by_link, _by_folder, _stray_byte, _gone]


def _as_bmp(data: Path) -> Path:
    """The dataset with images of one size in bytes."""
    for file in data.parent.rglob("*.png"):
        cv2.imwrite(str(file.with_suffix(".bmp")), cv2.imread(str(file)))
        file.unlink()
    return data


def _drawn(dataset: DetectionDataset, workers: int = 0) -> int:
    steps = StepLoader(dataset, 2, workers).steps(iter([Draw(np.arange(len(dataset)), 7)]))
    return sum(len(batch["img"]) for batch in next(steps))  # type: ignore[index]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("replace", REPLACED)
def test_a_replaced_file_is_never_trained_on(
    replace: Callable[[Path], None], workers: int, make_dataset: MakeDataset
) -> None:
    dataset = DetectionDataset(load_data(_as_bmp(make_dataset())), "train", 64)
    assert _drawn(dataset, workers) == 6
    replace(dataset.image_files[3])
    with pytest.raises(
        DataError, match=r"003\.bmp: (changed|was removed) after it was checked; restore the file and resume"
    ) as caught:
        _drawn(dataset, workers)
    assert "\n" not in str(caught.value)


def test_what_leaves_the_bytes_as_they_were_stops_nothing(make_dataset: MakeDataset, tmp_path: Path) -> None:
    """A backup by hard links, other permissions, a restored copy."""
    dataset = DetectionDataset(load_data(_as_bmp(make_dataset())), "train", 64)
    one, two, three, four = dataset.image_files[:4]
    os.link(one, tmp_path / "backup")
    two.chmod(0o600)
    os.utime(three)
    four.rename(tmp_path / "aside")
    shutil.copy(tmp_path / "aside", four)
    assert _drawn(dataset) == 6


def test_a_cache_beside_an_image_is_never_read(make_dataset: MakeDataset) -> None:
    """Ultralytics reads the .npy file in the image's place."""
    dataset = DetectionDataset(load_data(make_dataset()), "train", 64)
    before = dataset.sample(2)["img"]
    np.save(dataset.image_files[2].with_suffix(".npy"), 255 - dataset.read(2))
    assert (dataset.sample(2)["img"] == before).all()


def test_a_split_looked_at_twice_in_one_run_is_the_same_both_times(make_dataset: MakeDataset) -> None:
    """A tuning charges for the files once, and every one of its runs opens them anew."""
    data = load_data(_as_bmp(make_dataset()))
    with files_held():
        DetectionDataset(data, "train", 64)
        _in_place(data.train[1])
        with pytest.raises(DataError, match=r"001\.bmp: changed after it was checked"):
            DetectionDataset(data, "train", 64)
    DetectionDataset(data, "train", 64)  # another run


def _options(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    budget = {"url": f"sqlite:///{tmp_path / 'budget.db'}"}
    return run_options(tmp_path, plan=PLAN, tracking={"enabled": False}, budget=budget, **changes)


def _relabel(file: Path) -> None:
    (file.parents[2] / "labels" / "train" / f"{file.stem}.txt").write_text("1 .5 .5 .25 .25\n")


def _unlabel(file: Path) -> None:
    (file.parents[2] / "labels" / "train" / f"{file.stem}.txt").unlink()


@pytest.mark.parametrize("replace", [_in_place, _relabel, _unlabel])
def test_what_the_ledger_hashes_is_what_is_trained_on(
    replace: Callable[[Path], None], make_dataset: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that changes between the check and the charge."""
    data, prepare = _as_bmp(make_dataset()), RunCharge.prepare

    def late(self: RunCharge) -> None:
        replace(tmp_path / "images" / "train" / "004.bmp")
        prepare(self)

    monkeypatch.setattr(RunCharge, "prepare", late)
    with pytest.raises(DataError, match=r"004\.(bmp|txt): (changed|was removed) after it was checked"):
        dptrain.train(data=data, **_options(tmp_path))
    assert not (tmp_path / "out").exists()


def test_a_run_whose_files_change_stops_charged_and_is_resumed_when_they_are_back(
    make_dataset: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = _as_bmp(make_dataset())
    file = tmp_path / "images" / "train" / "004.bmp"
    kept, update = file.read_bytes(), run_module.Progress.update

    def at_two(self: Any, step: int) -> None:
        update(self, step)
        if step == 2:
            _in_place(file)

    with (
        monkeypatch.context() as patch,
        pytest.raises(DataError, match=r"004\.bmp: changed after it was checked") as caught,
    ):
        patch.setattr(run_module.Progress, "update", at_two)
        dptrain.train(data=data, **_options(tmp_path))
    assert "2 of 4 steps are taken and kept" in "".join(caught.value.__notes__)
    ledger = BudgetLedger(f"sqlite:///{tmp_path / 'budget.db'}")
    assert ledger.show()[0].epsilon_charged == pytest.approx(PLAN.epsilon(steps=2))
    with pytest.raises(BudgetError, match="1 image added, 1 image removed"):
        dptrain.train(data=data, **_options(tmp_path, resume=True))
    file.write_bytes(kept)
    dptrain.train(data=data, **_options(tmp_path, resume=True))
    assert ledger.show()[0].epsilon == pytest.approx(PLAN.epsilon())


def test_a_training_image_that_takes_the_place_of_a_validation_image_is_not_evaluated(
    make_dataset: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its metrics would be released without noise; the splits were compared before the first step."""
    data = _as_bmp(make_dataset())
    train, val = (tmp_path / "images" / split / "001.bmp" for split in ("train", "val"))
    update = run_module.Progress.update

    def at_two(self: Any, step: int) -> None:
        update(self, step)
        if step == 2:
            shutil.copy(train, val)

    monkeypatch.setattr(run_module.Progress, "update", at_two)
    with pytest.raises(DataError, match=r"val/001\.bmp: changed after it was checked"):
        dptrain.train(data=data, **_options(tmp_path, evaluate_every=3))
