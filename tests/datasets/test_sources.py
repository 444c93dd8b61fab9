"""Which files a data.yaml stands for, and what is said when it cannot be read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from dptrain.datasets.sources import load_data
from dptrain.errors import DataError


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        load_data(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_folders_are_listed_in_order(make_dataset, monkeypatch, tmp_path_factory):
    file = make_dataset()
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    data = load_data(file)
    assert [path.name for path in data.train] == [f"{i:03}.png" for i in range(6)]
    assert len(data.val) == 3 and data.test == ()
    assert data.names == {0: "green", 1: "blue"} and data.num_classes == 2


def test_the_forms_ultralytics_takes_list_the_same_files(make_dataset, monkeypatch):
    file = make_dataset()
    root = file.parent
    want = load_data(file).train
    (root / "train.txt").write_text("".join(f"./images/train/{i:03}.png\n" for i in reversed(range(6))), "utf-8-sig")
    (root / "absolute.txt").write_text("".join(f"{path}\n\n" for path in want))
    (root / "here.txt").write_text("".join(f"images/train/{path.name}\n" for path in want))
    (root / "sub").mkdir()
    monkeypatch.chdir(root)
    forms = [
        f"path: {root}\ntrain: images/train\nval: images/val\nnames: {{0: green, 1: blue}}\nnc: 2\n",
        "path: .\ntrain: [train.txt]\nvalidation: images/val\nnames: [green, blue]\n",
        "train: absolute.txt\nval: images/val\nnc: '2'\n",
        "train: here.txt\nval: [images/val]\nnames: {'1': blue, '0': green}\n",
        "train: ../images/train\nval: ../images/val\nnames: [green, blue]\n",  # as Roboflow exports it
    ]
    for text in forms:
        file.write_text(text)
        data = load_data(file.relative_to(root))
        assert data.train == want and len(data.val) == 3, text
    (root / "sub" / "data.yaml").write_text("path: ..\ntrain: images/train\nval: images/val\nnames: [green, blue]\n")
    assert load_data(root / "sub" / "data.yaml").train == want
    (root / "images" / "train" / "deeper").mkdir()
    shutil.move(want[0], root / "images" / "train" / "deeper" / "x.PNG")
    assert len(load_data(file).train) == 6


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("train: images/train\nval: images/val", ["names", "nc"]),
        ("train: images/train\nnames: [a", ["data.yaml:", "YAML"]),
        ("just words", ["str"]),
        ("train: images/train\nval: images/val\nnames: [a, b]\nnc: 3", ["nc: 3", "2 classes"]),
        ("train: images/train\nval: images/val\nnames: [a]\nnc: many", ["nc: 'many'"]),
        ("train: images/train\nval: images/val\nnames: {0: a, 2: b}", ["0 to 1", "[0, 2]"]),
        ("train: images/train\nval: images/val\nnames: [a, a]", ["class 1", "'a'"]),
        ("train: images/train\nval: images/val\nnames: [a, ]\npath: 3", ["path: 3"]),
        ("train: images/train\nval: images/val\nnames: []", ["names: []"]),
        ("train: images/train\nval: images/val\nnames: {}", ["names: {}"]),
        ("train: images/train\nval: images/val\nnames: [a, {b: c}]", ["class 1"]),
        ("train: images/trains\nval: images/val\nnames: [a, b]", ["train: images/trains", "does not exist"]),
        ("train: images/train\nval: images/vals\nnames: [a, b]", ["val: images/vals", "does not exist"]),
        ("path: gone\ntrain: images/train\nval: images/val\nnames: [a, b]", ["path: gone", "is not a folder"]),
        ("val: images/val\nnames: [a, b]", ["'train'", "not declared"]),
        ("train:\nval: images/val\nnames: [a, b]", ["'train'", "not declared"]),
        ("train: 7\nval: images/val\nnames: [a, b]", ["train: 7"]),
        ("train: labels/train\nval: images/val\nnames: [a, b]", ["train", "no images in labels/train", ".png"]),
        ("train: [images/train, images]\nval: images/val\nnames: [a, b]", ["listed twice", "000.png"]),
        ("train: bad.txt\nval: images/val\nnames: [a, b]", ["bad.txt:2", "'./images/train/none.png'"]),
        ("train: odd.txt\nval: images/val\nnames: [a, b]", ["odd.txt:1", "'notes.doc'"]),
        ("train: images/train\ntrain: images/val\nnames: [a, b]", ["data.yaml:2", "'train' is given twice"]),
        ("train: images/train\nnames: {0: a, 0: b}", ["0 is given twice"]),
        ("train: images/train\nnames: {'0.0': a, '1.5': b}", ["0 to 1", "1.5"]),
        ("train: images/train\nnames: [yes, no]", ["class 0", "True", "quotes"]),
        ('train: images/train\nnames: ["a\\nb"]', ["class 0", "own name"]),
        ("train: images/train\nnc: 1000000000", ["nc: 1000000000", "100000 classes"]),
        (f"train: images/train\nnc: 0x{'f' * 5000}", ["nc: a number"]),
        ("train: images/train\nnames: &a [*a, *a]", ["class 0"]),
        ("train: images/train\nnames: [a]\nday: 2001-99-99", ["cannot make"]),
        ("train: images/train\nnames: [a]\nday: !!timestamp x", ["cannot make (AttributeError)"]),
        (f"train: images/train\nnames: [a]\nx: {'[' * 1500}", ["cannot make"]),
        ("train: ''\nnames: [a]", ["train: ''"]),
        ('train: "a\\0b"\nnames: [a]', ["cannot be looked up"]),
        (f"train: {'x' * 300}\nnames: [a]", ["cannot be looked up", "too long"]),
        (f"path: {'x' * 300}\ntrain: images\nnames: [a]", ["path: xxx", "too long"]),
        ("path: ~nobody-of-this-name\ntrain: images\nnames: [a]", ["~nobody-of-this-name", "cannot be looked up"]),
    ],
)
def test_a_bad_data_yaml_is_one_line(make_dataset, text, parts):
    file = make_dataset()
    (file.parent / "bad.txt").write_text("./images/train/000.png\n./images/train/none.png\n")
    (file.parent / "odd.txt").write_text("notes.doc\n")
    file.write_text(text)
    message = refusal(file)
    assert "data.yaml" in message or ".txt" in message
    for part in parts:
        assert part in message


def test_no_such_file_or_a_folder(tmp_path):
    assert "no such data.yaml" in refusal(tmp_path / "none.yaml")
    assert "is a folder" in refusal(tmp_path)
    (tmp_path / "pets.zip").write_bytes(b"PK\x03\x04\xff")
    assert "is a ZIP archive; unpack it" in refusal(tmp_path / "pets.zip")
    (tmp_path / "data.yaml").write_bytes(b"\xff\xfe\x00names")
    assert "cannot be read as text" in refusal(tmp_path / "data.yaml")


def test_test_split_and_undeclared_val_only_matter_to_those_who_ask(make_dataset):
    file = make_dataset()
    file.write_text("train: images/train\ntest: gone\nnames: [green, blue]\n")
    data = load_data(file)
    with pytest.raises(DataError, match="test: gone does not exist"):
        data.files("test")
    with pytest.raises(DataError, match="'val' is not declared"):
        data.files("val")
    with pytest.raises(DataError, match="is not one of train, val, test"):
        data.files("trian")


def test_many_yaml_aliases_that_stand_for_gigabytes_are_not_written_out(make_dataset):
    file = make_dataset()
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    file.write_text("\n".join([*rows, "train: images/train", "names: *a11"]))
    assert len(refusal(file)) < 3000


def test_links_that_lead_round_and_round_end_and_are_named(make_dataset):
    file = make_dataset()
    for name in ("one", "two"):
        (file.parent / "images" / "train" / name).symlink_to(".")
    assert "is a link to" in refusal(file)


def test_a_folder_that_cannot_be_listed_is_an_error_and_not_fewer_images(make_dataset, monkeypatch):
    file = make_dataset()
    inner = file.parent / "images" / "train" / "locked"
    inner.mkdir()
    listed = os.scandir

    def scandir(path):
        if Path(path) == inner:
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    message = refusal(file)
    assert str(inner) in message and "Permission denied" in message


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "data.yaml")
    assert "not an ordinary file" in refusal(tmp_path / "data.yaml")
