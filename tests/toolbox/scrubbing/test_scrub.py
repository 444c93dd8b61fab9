"""A whole dataset: new names, labels carried along, nothing half-written, and a second look finds nothing."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from dptrain import ConfigError, DataError, scrub
from dptrain.commands.main import main
from dptrain.toolbox.scrubbing import EPOCH, check

from .pictures import SECRET, dicom, jpeg, photo, telling_jpeg, telling_png, telling_tiff, telling_webp, write


@pytest.fixture
def ward(tmp_path: Path) -> Path:
    """A dataset with a patient's name in a folder, and files that are no images."""
    root = tmp_path / "ward"
    makers = {"a.jpg": telling_jpeg, "b.png": telling_png, "c.webp": telling_webp, "d.tif": telling_tiff}
    for split in ("train", "val"):
        for number, (name, make) in enumerate(makers.items()):
            picture = photo(seed=number + 10 * (split == "val"))
            write(root / "images" / split / "Nightingale" / name, make(picture))
            label = root / "labels" / split / "Nightingale" / f"{Path(name).stem}.txt"
            write(label, b"0 0.5 0.5 0.2  0.2\n\n1 0.1 0.1 0.1 0.1\n" if number != 2 else b"")
    (root / "labels" / "val" / "Nightingale" / "d.txt").unlink()
    write(root / "notes.txt", SECRET)
    write(root / ".hidden.jpg", SECRET)
    write(root / "data.yaml", b"train: images/train\nval: images/val\nnames: [cell, clot]\n")
    return root


def everything(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


@pytest.mark.parametrize("source", ["", "data.yaml"])
def test_a_dataset_becomes_one_that_tells_nothing_and_trains_the_same(ward: Path, source: str, tmp_path: Path) -> None:
    from dptrain.datasets.images import read_image
    from dptrain.datasets.labels import label_path, read_labels

    before = {file: file.read_bytes() for file in everything(ward)}
    report = scrub(ward / source, tmp_path / "out", key=tmp_path / "key", mapping=tmp_path / "mapping.csv")
    assert {file: file.read_bytes() for file in everything(ward)} == before
    files = everything(tmp_path / "out")
    images = [file for file in files if file.suffix not in (".txt", ".yaml")]
    assert (len(images), report.labels, report.leaking, report.withheld) == (8, 7, 8, 0)
    for file in files:
        assert b"ightingale" not in str(file.relative_to(tmp_path / "out")).encode() + file.read_bytes()
        assert file.stat().st_mtime == EPOCH
    with (tmp_path / "mapping.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as table:
        known = {row["pseudonym"]: row["original"] for row in csv.DictReader(table)}
    for image in images:
        old = ward / known[image.relative_to(tmp_path / "out").with_suffix("").as_posix()]
        assert np.array_equal(read_image(image, strict=True), read_image(old))
        boxes, old_boxes = read_labels(label_path(image), 2), read_labels(label_path(old), 2)
        assert (boxes is None) == (old_boxes is None)
        assert boxes is None or old_boxes is None or np.array_equal(boxes, old_boxes)
    if not source:
        assert [Path(name).name for name in report.left_out] == ["data.yaml", "notes.txt"]
        found = check(tmp_path / "out")
        assert found.leaking == 0 and found.left_out == ()
    else:
        from dptrain.datasets.sources import load_data

        data = load_data(tmp_path / "out" / "data.yaml")
        assert (len(data.train), len(data.val), data.names) == (4, 4, {0: "cell", 1: "clot"})
        assert check(tmp_path / "out" / "data.yaml").leaking == 0


def test_the_same_key_makes_the_same_names_and_another_one_others(ward: Path, tmp_path: Path) -> None:
    for name, key in (("one", "key"), ("two", "key"), ("three", "other"), ("four", None)):
        scrub(ward, tmp_path / name, key=None if key is None else tmp_path / key)
    names = [{file.name for file in everything(tmp_path / out)} for out in ("one", "two", "three", "four")]
    assert names[0] == names[1] and not names[0] & names[2] and not names[0] & names[3]
    assert (tmp_path / "key").stat().st_mode & 0o077 == 0


def test_a_dataset_called_by_a_dot_keeps_its_labels(
    ward: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a folder in front, ``images`` is easily not seen in ``images/train/a.jpg``."""
    monkeypatch.chdir(ward)
    assert scrub(".", tmp_path / "dot").labels == scrub(ward, tmp_path / "whole").labels == 7
    assert scrub("images/train/Nightingale/a.jpg", tmp_path / "one").labels == 1


def test_names_stay_when_asked_for(ward: Path, tmp_path: Path) -> None:
    scrub(ward, tmp_path / "out", keep_names=True)
    assert (tmp_path / "out/images/train/Nightingale/a.jpg").is_file()
    assert (tmp_path / "out/labels/train/Nightingale/a.txt").is_file()
    assert check(tmp_path / "out", names=False).leaking == 0 < check(tmp_path / "out").leaking


def test_a_damaged_file_leaves_nothing_behind(ward: Path, tmp_path: Path) -> None:
    bad = write(ward / "images/val/Nightingale/e.jpg", telling_jpeg()[:3000])
    with pytest.raises(DataError, match=r"e\.jpg: .*missing|e\.jpg: .*cut off"):
        scrub(ward, tmp_path / "out", mapping=tmp_path / "mapping.csv")
    bad.write_bytes(b"GIF89a")
    with pytest.raises(DataError, match="convert it to PNG"):
        scrub(ward, tmp_path / "out")
    bad.write_bytes(telling_jpeg())
    write(ward / "labels/val/Nightingale/e.txt", b"0 0.5 0.5 0.2 0.2 # Florence")
    with pytest.raises(DataError, match=r"e\.txt:1"):
        scrub(ward, tmp_path / "out")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["ward"]


def test_places_that_would_mix_old_and_new_are_refused(ward: Path, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    write(tmp_path / "used" / "x", b"")
    out = tmp_path / "out"
    for options, words in (
        ({"output": tmp_path / "used"}, "already exists"),
        ({"output": ward / "out"}, "is inside"),
        ({"output": out, "mapping": out / "m.csv"}, "apart"),
        ({"output": out, "key": out / "key"}, "apart"),
        ({"output": out, "mapping": tmp_path / "used" / "x"}, "already exists"),
        ({"output": out, "key": tmp_path / "used" / "x"}, "not a key"),
        ({"output": out, "dicom": "jpg"}, "dicom=jpg"),
        ({"output": out, "window": (40, 0)}, "width"),
    ):
        with pytest.raises(ConfigError, match=words):
            scrub(ward, **options)
    assert not out.exists()
    with pytest.raises(ConfigError, match="is not there"):
        scrub(tmp_path / "nothing", out)


def test_dicom_becomes_training_images_with_the_patient_in_the_mapping_only(tmp_path: Path) -> None:
    root = tmp_path / "ct"
    for seed, patient in enumerate(("7", "7", "8")):
        write(root / "images" / f"slice{seed}", dicom(seed=seed, patient=patient))  # archives give no suffix
        write(root / "labels" / f"slice{seed}.txt", b"0 0.5 0.5 0.5 0.5\n")
    report = scrub(root, tmp_path / "out", dicom="png", mapping=tmp_path / "mapping.csv")
    images = [file for file in everything(tmp_path / "out") if file.suffix == ".png"]
    assert len(images) == len(everything(tmp_path / "out")) - 3 == report.labels == 3
    assert cv2.imread(str(images[0]), cv2.IMREAD_UNCHANGED).shape == (24, 32)
    patients = [line.rsplit(",", 1)[1] for line in (tmp_path / "mapping.csv").read_text().splitlines()[1:]]
    assert len(patients) == 3 and len(set(patients)) == 2
    scrub(root, tmp_path / "both", dicom="both")
    assert {file.suffix for file in everything(tmp_path / "both")} == {".dcm", ".png", ".txt"}
    assert check(tmp_path / "both").leaking == 0


def test_an_image_with_writing_is_withheld_unless_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "us/images/x.dcm", dicom(Modality="US", BurnedInAnnotation="YES"))
    write(tmp_path / "us/labels/x.txt", b"0 0.5 0.5 0.5 0.5\n")
    assert main(["scrub", str(tmp_path / "us"), "-o", str(tmp_path / "out")]) == 3
    assert "withheld" in capsys.readouterr().out and not everything(tmp_path / "out")
    assert main(["scrub", str(tmp_path / "us"), "-o", str(tmp_path / "all"), "--keep-burned-in"]) == 0
    assert len(everything(tmp_path / "all")) == 2


def test_check_says_what_would_leak_and_writes_nothing(ward: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in everything(ward)}
    assert main(["scrub", str(ward), "--check"]) == 3
    text = capsys.readouterr().out
    for word in ("GPS position", "thumbnail", "XMP", "IPTC", "file name", "folder name", "8 of 8 images"):
        assert word in text
    assert SECRET.decode() not in text.replace("train/Nightingale", "").replace("val/Nightingale", "")
    assert {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in everything(ward)} == before
    assert main(["scrub", str(ward), "--check", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["leaking"] == 8


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("scrub {ward}", "-o FOLDER"),
        ("scrub {ward} -o {tmp}/o --check", "-o FOLDER"),
        ("scrub {ward} -o {tmp}/o --window 40", "CENTER,WIDTH"),
        ("scrub {tmp}/no -o {tmp}/o", "is not there"),
        ("scrub {ward}/images/train/Nightingale/a.jpg -o {tmp}/o.jpg", "is a file's name"),
        ("scrub {ward} -o {ward}/out", "-o {ward}/out is inside"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(
    ward: Path, tmp_path: Path, arguments: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments.format(ward=ward, tmp=tmp_path).split()) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1 and words.format(ward=ward) in captured.err
    assert not (tmp_path / "o").exists() and not (tmp_path / "o.jpg").exists()


def test_one_file_and_a_clean_one(tmp_path: Path) -> None:
    file = write(tmp_path / "Florence.jpg", jpeg(photo()))
    assert check(file).files[0].found == ("file name", "file time")
    report = scrub(file, tmp_path / "out")
    assert report.leaking == 0 and len(everything(tmp_path / "out")) == 1
    assert check(everything(tmp_path / "out")[0]).leaking == 0
