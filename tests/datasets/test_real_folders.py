"""Folders as people have them: what is read is what Ultralytics reads, or one line says what is wrong and the fix.

Each folder is made here, after what labelling tools and exports write.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

import dptrain
from dptrain.datasets.data_yaml import data_name
from dptrain.datasets.labels import DROP_BAD_ROWS, LABELS, STRICT
from dptrain.datasets.sources import load_data
from dptrain.detection.data import DetectionDataset
from dptrain.errors import DataError
from dptrain.run.notes import labels_read
from dptrain.support.environment import ultralytics_folder
from dptrain.toolbox.checking import check

from ..conftest import run_options
from .stock import ordered, stock_boxes

MakeFolder = Callable[..., Path]
PRIVACY = {"noise_multiplier": 1.0, "sample_rate": 0.5, "expected_batch_size": 2, "dataset_size": 6, "delta": 1e-3}
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
    with pytest.raises(DataError, match=re.escape("b.txt:2")) as caught:
        our_boxes(bad)
    assert what in str(caught.value) and caught.value.__notes__ == ["labels=drop_bad_rows leaves out bad lines"]
    dataset = DetectionDataset(load_data(bad, DROP_BAD_ROWS), "train", 64)
    for number, image in enumerate(dataset.image_files):
        np.testing.assert_array_equal(ordered(dataset.labels(number)), wanted[image.name])
    assert len(dataset.dropped) == 2 and all(what in line for line in dataset.dropped)
    assert "b.txt:2" in dataset.dropped[0] and "c.txt:1" in dataset.dropped[1]


def test_a_label_file_that_cannot_be_read_is_refused_although_bad_rows_are_left_out(make_folder):
    file = make_folder({"a": b"\xff\xfe0 0.5 0.5 0.2 0.1\n", "b": "0 0.5 0.5 0.2 0.1\n"})
    for labels in LABELS:
        with pytest.raises(DataError, match="not UTF-8") as caught:
            our_boxes(file, labels=labels)
        assert not hasattr(caught.value, "__notes__")


def test_a_relative_path_is_the_folder_that_ultralytics_reads(make_folder, tmp_path, monkeypatch):
    """From the current folder, then its datasets folder; beside the data.yaml only where it would find nothing."""
    monkeypatch.setattr("ultralytics.data.utils.DATASETS_DIR", tmp_path / "theirs")
    monkeypatch.setattr("dptrain.datasets.roots.ultralytics_folder", lambda _: tmp_path / "theirs")
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
    file.write_text(f"path: .\ntrain: images\nval: {images}\nnames: [cat]\n")
    assert load_data(file).path == tmp_path, "an absolute val is in no folder's favour"


def test_the_datasets_folder_is_that_of_ultralytics_settings(tmp_path, monkeypatch):
    from ultralytics.utils import DATASETS_DIR, USER_CONFIG_DIR, WEIGHTS_DIR

    monkeypatch.setenv("YOLO_CONFIG_DIR", str(USER_CONFIG_DIR.parent))
    assert ultralytics_folder("datasets") == DATASETS_DIR
    assert ultralytics_folder("weights") == WEIGHTS_DIR
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert ultralytics_folder("datasets") == tmp_path / "datasets"


def test_a_name_that_ultralytics_ships_is_found_as_it_finds_it_and_its_images_are_never_downloaded(
    tmp_path, monkeypatch
):
    """The data.yaml is theirs, ``path:`` starts in the datasets folder of their settings; a file that is here wins."""
    (tmp_path / "Ultralytics").mkdir()
    (tmp_path / "Ultralytics/settings.json").write_text(json.dumps({"datasets_dir": str(tmp_path / "sets")}))
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    message = refusal("coco8.yaml")
    assert str(tmp_path / "sets/coco8") in message and "downloads no data" in message
    assert f"/coco8.zip and unpack it into {tmp_path / 'sets'}" in message
    message = refusal("VOC.yaml")  # its download: is a script
    assert "yolo val data=VOC.yaml" in message and str(tmp_path / "sets/VOC") in message
    assert not list((tmp_path / "here").iterdir()) and not (tmp_path / "sets").exists()
    for split in ("train", "val"):
        folder = tmp_path / "sets/coco8/images" / split
        folder.mkdir(parents=True)
        cv2.imwrite(str(folder / f"{split}.png"), np.zeros((32, 32, 3), np.uint8))
    found = load_data("coco8.yaml")
    assert [file.name for file in (*found.train, *found.val)] == ["train.png", "val.png"]
    assert found.path == tmp_path / "sets/coco8" and len(found.names) == 80 and data_name(found.file) == "coco8"
    with pytest.raises(DataError, match=r"no such data\.yaml"):
        load_data("sub/coco8.yaml")
    Path("coco8.yaml").write_text(f"path: {tmp_path / 'sets/coco8'}\ntrain: images/train\nnames: [mine]\n")
    assert load_data("coco8.yaml").names == {0: "mine"}


BOX = "0 0.5 0.5 0.2 0.2\n"
LISTED = YAML.replace("train: images", "train: train.txt")

SAME = {
    "a byte-order mark and Windows line ends": (b"\xef\xbb\xbf0 .5 .5 .2 .2\r\n1 .3 .3 .1 .1\r\n", None),
    "line ends of an old Mac": (b"0 .5 .5 .2 .2\r1 .3 .3 .1 .1\r", None),
    "classes written as 0.0": ("0.0 .5 .5 .2 .2\n", None),
    "a list with a byte-order mark and Windows line ends": (BOX, b"\xef\xbb\xbf./images/a.png\r\n./images/b.png\r\n"),
    "a list with an empty last line": (BOX, b"./images/a.png\n\n./images/b.png\n\n"),
}


@pytest.mark.parametrize("case", SAME)
def test_text_that_tools_write_differently_reads_the_same(make_folder, case):
    rows, listed = SAME[case]
    file = make_folder({"a": rows, "b": "1 .2 .2 .1 .1"}, YAML if listed is None else LISTED)
    if listed is not None:
        (file.parent / "train.txt").write_bytes(listed)
    assert agree(file).keys() == {"a.png", "b.png"}


def test_a_data_yaml_with_a_byte_order_mark_and_windows_line_ends(make_folder):
    file = make_folder({"a": BOX})
    file.write_bytes(b"\xef\xbb\xbf" + YAML.replace("\n", "\r\n").encode())
    agree(file)


def test_links_to_images_and_labels_that_are_elsewhere(make_folder, tmp_path):
    file = make_folder({"a": "1 .3 .3 .1 .1", "b": BOX})
    for number, place in enumerate((tmp_path / "images/a.png", tmp_path / "labels/a.txt")):
        place.rename(tmp_path / f"far{number}")
        place.symlink_to(tmp_path / f"far{number}")
    assert agree(file)["a.png"][0, 0] == 1


def test_a_linked_folder_of_images_has_its_labels_beside_the_real_one(make_folder, tmp_path):
    file = make_folder({"a": BOX})
    (tmp_path / "images").rename(tmp_path / "photos")
    (tmp_path / "images").symlink_to(tmp_path / "photos")
    assert str(tmp_path / "photos/a.txt") in refusal(file)  # Ultralytics takes all for background
    assert not len(stock_boxes(file)["a.png"])


def test_images_without_labels_are_background_and_labels_without_images_nothing(make_folder):
    file = make_folder({"a": BOX, "b": None, "c": None})
    (file.parent / "labels/gone.txt").write_text(BOX)
    read = agree(file)
    assert read.keys() == {"a.png", "b.png", "c.png"} and not len(read["b.png"])
    assert labels_read([DetectionDataset(load_data(file), "train", 64)]) == [
        "2 of 3 train images without a label file: background"
    ]
    assert any("gone.txt" in finding.text for finding in check(file).findings)


REFUSED = {
    "channels: 1": (f"{YAML}channels: 1\n", ["channels: 1", "remove the line"]),
    "channels: 4": (f"{YAML}channels: 4\n", ["channels: 4", "remove the line"]),
    "channels: rgb": (f"{YAML}channels: rgb\n", ["channels: 'rgb'", "whole number"]),
    "valid for val": (YAML.replace("val", "valid"), ["valid: 'images'", "called val"]),
    "classes for names": (YAML.replace("names", "classes"), ["classes: ['cat', 'dog']", "called names"]),
    "classes beside nc": (f"{YAML.replace('names', 'classes')}nc: 2\n", ["classes", "called names"]),
    "a Windows path": (f"path: C:\\Users\\me\\my pets\n{YAML}", ["path: C:\\Users\\me\\my pets", "Windows machine"]),
    "a Windows path with slashes": (f"path: C:/my pets\n{YAML}", ["path: C:/my pets", "Windows machine"]),
    "a Windows split": (YAML.replace("images", ".\\images", 1), ["train: .\\images", "write / in place of \\"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_data_yaml_that_means_something_else_is_one_line(make_folder, case):
    text, parts = REFUSED[case]
    message = refusal(make_folder({"a": BOX}, text))
    assert all(part in message for part in ["data.yaml", *parts]), message
    assert message.count("data.yaml: ") == 1


@pytest.mark.parametrize("path", ["/content/pets", "C:\\\\pets", "C:/my pets", "../gone"])
def test_a_path_of_another_machine_is_told_where_the_images_are(make_folder, path):
    message = refusal(make_folder({"a": BOX}, f"path: {path}\n{YAML}"))
    assert message.endswith("leave it out: the splits are there beside the data.yaml")
    message = refusal(make_folder({"a": BOX}, f"path: {path}\n{YAML.replace('images', 'photos')}"))
    assert message.endswith("write the absolute path that it has here")


def test_other_keys_of_a_data_yaml_say_nothing(make_folder):
    more = "valid: gone\nclasses: [x]\nroboflow: {license: MIT}\nchannels: 3\nflip_idx: [0]\n"
    agree(make_folder({"a": BOX}, YAML + more))


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("/content/my pets/images/a.png", ["write ./images/a.png"]),
        ("C:\\Users\\me\\my pets\\images\\a.png", ["write ./images/a.png"]),
        ("C:\\\\Users\\\\me\\\\images\\\\a.png", ["write ./images/a.png"]),
        (".\\images\\a.png", ["write ./images/a.png"]),
        ("\\\\nas\\pets\\x.png", ["begin it with ./", "Windows machine"]),
        ("/content/pets/x.png", ["begin it with ./"]),
    ],
)
def test_a_list_made_on_another_machine_is_one_line_with_what_to_write(make_folder, line, parts):
    file = make_folder({"a": BOX}, LISTED)
    (file.parent / "train.txt").write_text(f"./images/a.png\n{line}\r\n")
    message = refusal(file)
    assert all(part in message for part in ["train.txt:2", f"'{line}'", *parts]), message


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ("cat 0.5 0.5 0.2 0.2", ["'cat'", "number that it has in data.yaml"]),
        ("0a 0.5 0.5 0.2 0.2", ["'0a'", "number that it has in data.yaml"]),
        ("0 0.5 0.5 0.2 0.2px", ["'0.2px'", "class x y w h"]),
        ("0,0.5,0.5,0.2,0.2", ["'0,0.5,0.5,0.2,0.2'", "spaces"]),
        ("0 0,5 0,5 0,2 0,2", ["'0,5'", "0.5"]),
        ("0 .5 .5 .2 .2 # a cat", ["'#'", "not a number"]),
        ("0 .5 .5 .2 .2 .93", ["6 columns"]),
        ("0 .5 .5 .2 .2 .4 .4 2", ["8 columns", "kpt_shape"]),
        ("0 .5 .5 .2 .2".encode("utf-16"), ["not UTF-8"]),
    ],
)
def test_a_label_line_of_another_format_is_one_line(make_folder, row, parts):
    message = refusal(make_folder({"a": BOX, "b": row}))
    assert all(part in message for part in ["b.txt", *parts]), message


@pytest.mark.parametrize("other", ["val", "test"])
def test_one_image_in_two_splits(make_folder, tmp_path, other):
    file = make_folder({"a": BOX, "b": BOX}, f"train: images\n{other}: held\nnames: [cat, dog]\n")
    (tmp_path / "held").mkdir()
    shutil.copy(tmp_path / "images/a.png", tmp_path / "held/z.png")
    (tmp_path / "held/z.txt").write_text(BOX)
    assert check(file).counts()["train and val"] == 1
    if other == "val":
        with pytest.raises(DataError, match=r"z\.png"):
            dptrain.train(data=file, **run_options(tmp_path, privacy=PRIVACY, steps=1, budget={"url": None}))
        assert not (tmp_path / "out").exists()
