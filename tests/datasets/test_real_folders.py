"""Folders as people have them: what is read is what Ultralytics reads, or one line says what is wrong and the fix.

Each folder is made here, after what labelling tools and exports write.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from dptrain.datasets.labels import DROP_BAD_ROWS, STRICT
from dptrain.datasets.roots import datasets_folder
from dptrain.datasets.sources import load_data
from dptrain.detection.data import DetectionDataset
from dptrain.errors import DataError

from .stock import ordered, stock_boxes

MakeFolder = Callable[..., Path]
YAML = "train: images\nval: images\nnames: [cat, dog]\n"


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Write a data.yaml, and images and labels beside it; return the data.yaml."""

    def make(labels: dict[str, str | bytes | None], yaml: str = YAML) -> Path:
        rng = np.random.default_rng(len(labels))
        for folder in ("images", "labels"):
            (tmp_path / folder).mkdir(exist_ok=True)
        for name, text in labels.items():
            cv2.imwrite(str(tmp_path / "images" / f"{name}.png"), rng.integers(0, 255, (40, 60, 3), np.uint8))
            if text is not None:
                content = text if isinstance(text, bytes) else text.encode()
                (tmp_path / "labels" / f"{name}.txt").write_bytes(content)
        file = tmp_path / "data.yaml"
        file.write_text(yaml)
        return file

    return make


def our_boxes(file: Path, split: str = "train", labels: str = STRICT) -> dict[str, np.ndarray]:
    dataset = DetectionDataset(load_data(file, labels), split, 64)
    return {path.name: ordered(dataset.labels(number)) for number, path in enumerate(dataset.image_files)}


def agree(file: Path) -> dict[str, np.ndarray]:
    """Compare what is read with what Ultralytics reads; return it."""
    ours, theirs = our_boxes(file), stock_boxes(file)
    assert ours.keys() == theirs.keys()
    for name, rows in ours.items():
        np.testing.assert_allclose(rows, theirs[name], atol=1e-6)
    return ours


def refusal(file: Path) -> str:
    with pytest.raises(DataError) as caught:
        our_boxes(file)
    assert "\n" not in str(caught.value)
    return str(caught.value)


POSE = "0 0.5 0.5 0.2 0.2 0.45 0.45 1 0.55 0.55 1\n"


@pytest.mark.parametrize(
    ("shape", "rows"),
    [
        ("[2, 3]", POSE + "1 0.3 0.3 0.2 0.2 0 0 0 0.25 0.3 2\n"),
        ("[2, 3]", POSE + POSE.replace("0.45 1", "0.46 2")),  # one box twice, with other keypoints
        ("[2, 3]", POSE + "1 0.3 0.3 0.2 0.2\n"),  # a box without keypoints
        ("[2, 2]", "0 0.5 0.5 0.2 0.2 0.45 0.45 0.55 1.5\n"),  # a keypoint outside the image
        ("[1, 2]", "0 0.5 0.5 0.2 0.2 0.45 0.45\n"),
    ],
)
def test_of_keypoint_labels_the_box_is_read_and_no_polygon(make_folder, shape, rows):
    file = make_folder({"a": rows, "b": None}, f"{YAML}kpt_shape: {shape}\n")
    read = agree(file)
    assert np.isclose(read["a.png"], [0, 0.5, 0.5, 0.2, 0.2], atol=1e-6).all(1).any()


@pytest.mark.parametrize("shape", ["3", "[2]", "[2, 4]", "[0, 3]", "[two, 3]", "[-2, 3]", "{2: 3}"])
def test_a_keypoint_shape_that_is_none_is_refused(make_folder, shape):
    message = refusal(make_folder({"a": POSE}, f"{YAML}kpt_shape: {shape}\n"))
    assert "kpt_shape" in message and "data.yaml" in message


def test_a_row_that_does_not_fit_the_keypoint_shape_is_no_polygon(make_folder):
    message = refusal(make_folder({"a": POSE}, f"{YAML}kpt_shape: [4, 3]\n"))
    assert "a.txt:1" in message and "11 columns" in message and "5 (class x y w h) or 17" in message


def test_each_row_says_by_its_width_whether_it_is_a_box_or_a_polygon(make_folder):
    rows = ["0 0.5 0.5 0.2 0.2", "1 0.3 0.3 0.1 0.2", "0 0.1 0.1 0.4 0.2 0.3 0.6", "1 0 0 1 0 1 1 0 1"]
    mixed = make_folder({"a": "\n".join(rows)})
    read = our_boxes(mixed)["a.png"]
    assert stock_boxes(make_folder({"a": "\n".join(rows), "b": None})).keys() == {"b.png"}  # it leaves the image out
    boxes = agree(make_folder({"a": "\n".join(rows[:2])}))["a.png"]
    polygons = agree(make_folder({"a": "\n".join(rows[2:])}))["a.png"]
    np.testing.assert_allclose(read, ordered(np.concatenate([boxes, polygons])), atol=1e-6)


BAD_ROWS = {
    "0 0.5 0.5 0.2 0": "has no area",
    "0 0.5 0.5 0.2": "4 columns",
    "cat 0.5 0.5 0.2 0.2": "'cat' is not a number",
    "0 nan 0.5 0.2 0.2": "not a finite number",
    "7 0.5 0.5 0.2 0.2": "class '7'",
    "0 0.95 0.5 0.2 0.2": "outside the image",
    "0 320 240 20 20": "outside the image",
}


@pytest.mark.parametrize(("row", "what"), BAD_ROWS.items())
def test_a_bad_row_is_left_out_by_a_rule_for_its_file_alone(make_folder, row, what):
    good = {"a": "0 0.5 0.5 0.2 0.1\n1 0.3 0.3 0.1 0.1\n", "b": "1 0.2 0.2 0.1 0.1\n", "c": None}
    wanted = agree(make_folder(good))
    bad = make_folder({**good, "b": f"{good['b']}{row}\n", "c": f"{row}\n"})
    assert what in refusal(bad) and "b.txt:2" in refusal(bad)
    dataset = DetectionDataset(load_data(bad, DROP_BAD_ROWS), "train", 64)
    for number, image in enumerate(dataset.image_files):
        np.testing.assert_array_equal(ordered(dataset.labels(number)), wanted[image.name])
    assert len(dataset.dropped) == 2 and all(what in line for line in dataset.dropped)
    assert "b.txt:2" in dataset.dropped[0] and "c.txt:1" in dataset.dropped[1]


def test_a_label_file_that_cannot_be_read_is_refused_although_bad_rows_are_left_out(make_folder):
    file = make_folder({"a": b"\xff\xfe0 0.5 0.5 0.2 0.1\n", "b": "0 0.5 0.5 0.2 0.1\n"})
    with pytest.raises(DataError, match="not UTF-8"):
        our_boxes(file, labels=DROP_BAD_ROWS)


def test_a_relative_path_is_the_folder_that_ultralytics_reads(make_folder, tmp_path, monkeypatch):
    """From the current folder, then its datasets folder; beside the data.yaml only where it would find nothing."""
    monkeypatch.setattr("ultralytics.data.utils.DATASETS_DIR", tmp_path / "theirs")
    monkeypatch.setattr("dptrain.datasets.roots.datasets_folder", lambda: tmp_path / "theirs")
    yaml = f"path: pets\n{YAML}"
    file = make_folder({"a": "0 0.5 0.5 0.2 0.2\n"}, yaml)
    places = {"here": tmp_path / "here/pets", "theirs": tmp_path / "theirs/pets", "beside": tmp_path / "pets"}
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for folder in ("images", "labels"):
        (tmp_path / folder).rename(tmp_path / f"{folder}.away")
    message = refusal(file)
    assert str(places["theirs"]) in message and str(places["beside"]) in message and "path: pets" in message

    def put(place: Path) -> None:
        for folder in ("images", "labels"):
            shutil.copytree(tmp_path / f"{folder}.away", place / folder)

    for place in ("here", "beside"):
        places[place].mkdir()
    message = refusal(file)
    assert str(places["here"]) in message and str(places["beside"]) in message and "no split" in message
    places["here"].rmdir()
    put(places["beside"])
    assert load_data(file).path == places["beside"]  # Ultralytics finds nothing
    places["here"].mkdir()
    assert load_data(file).path == places["beside"]
    put(places["theirs"])
    places["here"].rmdir()
    message = refusal(file)
    assert str(places["theirs"]) in message and str(places["beside"]) in message and "absolute" in message
    shutil.rmtree(places["beside"])
    agree(file)
    assert load_data(file).path == places["theirs"]
    put(places["here"])
    agree(file)
    assert load_data(file).path == places["here"]
    put(places["beside"])
    assert str(places["here"]) in refusal(file) and str(places["beside"]) in refusal(file)
    file.write_text(yaml.replace("pets", str(places["beside"])))
    agree(file)
    assert load_data(file).path == places["beside"]


def test_a_path_does_not_matter_to_splits_that_are_absolute(make_folder, tmp_path, monkeypatch):
    images = tmp_path / "images"
    file = make_folder({"a": "0 0.5 0.5 0.2 0.2\n"}, f"path: .\ntrain: {images}\nval: {images}\nnames: [cat]\n")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    agree(file)


def test_the_datasets_folder_is_that_of_ultralytics_settings(tmp_path, monkeypatch):
    from ultralytics.utils import DATASETS_DIR, USER_CONFIG_DIR

    monkeypatch.setenv("YOLO_CONFIG_DIR", str(USER_CONFIG_DIR.parent))
    assert datasets_folder() == DATASETS_DIR
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert datasets_folder() == tmp_path / "datasets"
