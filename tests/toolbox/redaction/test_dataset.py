"""Datasets: what was labelled before is labelled after, and can be trained on."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from dptrain.commands.main import main
from dptrain.datasets.sources import load_data
from dptrain.detection.data import DetectionDataset
from dptrain.errors import ConfigError
from dptrain.toolbox.redaction import redact

from .scenes import greyness, textured

REGION = "0,0,20,20"
BOX = "1 0.5 0.5 0.2 0.3\n"


def make_dataset(root: Path, place: str = "images/{split}", text: str = "") -> Path:
    """Two splits of three pictures of 64 pixels; the last of each is background, without a label file."""
    for split in ("train", "val"):
        folder = root / place.format(split=split)
        labels = Path(str(folder).replace("images", "labels"))
        for new in (folder, labels):
            new.mkdir(parents=True)
        for number in range(3):
            cv2.imwrite(str(folder / f"{number}.jpg"), textured(64, 64, number + 10 * (split == "val")))
            if number < 2:
                (labels / f"{number}.txt").write_text(f"{number}{BOX[1:]}")
    entries = text or "".join(f"{split}: {place.format(split=split)}\n" for split in ("train", "val"))
    (root / "data.yaml").write_text(f"{entries}names: [cat, dog]\n")
    return root / "data.yaml"


def boxes_of(data: Path, split: str) -> list[list[list[float]]]:
    found = DetectionDataset(load_data(data), split, 64)
    return [found[index]["bboxes"].tolist() for index in range(len(found))]


@pytest.mark.parametrize("as_folder", [True, False])
@pytest.mark.parametrize("place", ["images/{split}", "{split}/images"])
def test_a_redacted_dataset_can_be_trained_on(place: str, as_folder: bool, tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "raw", place)
    before = {file: file.read_bytes() for file in data.parent.rglob("*") if file.is_file()}
    report = redact(data.parent if as_folder else data, tmp_path / "safe", regions=[REGION])
    safe = tmp_path / "safe"
    assert report.data == str(safe / "data.yaml")
    assert report.summary()["label files"] == 4 and report.summary()["skipped"] == 0
    for split in ("train", "val"):
        assert boxes_of(safe / "data.yaml", split) == boxes_of(data, split)
        for image in load_data(safe / "data.yaml").files(split):
            assert image.is_relative_to(safe.resolve())
            assert greyness(cv2.imread(str(image)), np.array([1, 1, 16, 16])) > 0.9
    assert load_data(safe / "data.yaml").names == {0: "cat", 1: "dog"}
    assert {file: file.read_bytes() for file in data.parent.rglob("*") if file.is_file()} == before
    entry = json.loads((tmp_path / "safe.redaction/report.json").read_text())["files"][0]
    assert Path(entry["label_file"]).read_text().endswith(BOX[1:])


def test_a_dataset_called_by_a_dot_keeps_its_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a folder in front, ``images`` is easily not seen in ``images/train/0.jpg``."""
    make_dataset(tmp_path / "raw")
    with contextlib.chdir(tmp_path / "raw"):
        assert main(["redact", ".", "-o", "../safe", "--region", REGION]) == 0
        assert "4 label files, ../safe/data.yaml" in capsys.readouterr().out
        assert main(["redact", ".", "--in-place", "--region", REGION]) == 0
        assert main(["redact", "data.yaml", "--in-place", "--region", REGION, "--overwrite"]) == 0
    assert boxes_of(tmp_path / "safe/data.yaml", "train") == boxes_of(tmp_path / "raw/data.yaml", "train")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["raw", "raw.redaction", "safe", "safe.redaction"]


def test_splits_that_share_a_folder_stay_apart(tmp_path: Path) -> None:
    """Lists say which image is in which split; a picture of neither must not become one of train."""
    data = make_dataset(tmp_path / "raw", text="train: t.txt\nval: v.txt\n")
    (data.parent / "t.txt").write_text("./images/train/0.jpg\n./images/val/0.jpg\n")
    (data.parent / "v.txt").write_text("./images/train/1.jpg\n")
    for source in (data.parent, data):
        redact(source, tmp_path / "safe", regions=[REGION], overwrite=True)
        safe = load_data(tmp_path / "safe/data.yaml")
        assert [image.parent.name + image.stem for image in safe.train] == ["train0", "val0"]
        assert [image.parent.name + image.stem for image in safe.val] == ["train1"]


def test_labels_that_are_none_keep_their_picture_back(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "raw")
    (data.parent / "labels/train/0.txt").write_text("patient: Anna\n")
    (data.parent / "images/train/1.jpg").write_bytes(b"\xff\xd8 no picture")
    report = redact(data, tmp_path / "safe", regions=[REGION])
    assert [Path(entry.source).name for entry in report.failed] == ["0.jpg", "1.jpg"]
    assert "'patient:' is not a number" in report.failed[0].reason
    written = sorted(file.relative_to(tmp_path / "safe").as_posix() for file in (tmp_path / "safe").rglob("*.*"))
    assert written == [
        "data.yaml", "images/train/2.jpg", *(f"images/val/{n}.jpg" for n in range(3)), "labels/val/0.txt",
        "labels/val/1.txt",
    ]  # fmt: skip


def test_a_text_beside_a_photo_is_no_label_file(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    cv2.imwrite(str(tmp_path / "photos/a.jpg"), textured(64, 64))
    (tmp_path / "photos/a.txt").write_text("Anna at the lake\n")
    report = redact(tmp_path / "photos", tmp_path / "safe", regions=[REGION])
    assert report.summary()["skipped"] == 1 and not report.failed and report.data is None
    assert [file.name for file in (tmp_path / "safe").iterdir()] == ["a.jpg"]


def test_labels_that_stay_behind_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_dataset(tmp_path / "raw")
    images = str(data.parent / "images")
    assert main(["redact", images, "-o", str(tmp_path / "safe"), "--region", REGION]) == 0
    assert f"labels of 4 images are outside {images}" in capsys.readouterr().err


def test_nothing_of_a_dataset_is_overwritten(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "raw")
    for blocked, place in (("labels/val/1.txt", "a"), ("data.yaml", "b")):
        (tmp_path / place / blocked).parent.mkdir(parents=True)
        (tmp_path / place / blocked).write_text("mine")
        with pytest.raises(ConfigError, match=f"{blocked} already exists"):
            redact(data, tmp_path / place, regions=[REGION])
        assert [file.read_text() for file in (tmp_path / place).rglob("*.*")] == ["mine"]
    with pytest.raises(ConfigError, match="which is read"):
        redact(data, tmp_path / "raw/images/train/safe", regions=[REGION])
    with pytest.raises(ConfigError, match="is an original"):
        redact(data, tmp_path / "raw", regions=[REGION], overwrite=True)
