"""Generators of public scenes: they open no photo, their boxes fit, and Fashion-MNIST's photos are used once."""

from __future__ import annotations

import gzip
import types
from pathlib import Path

import cv2
import numpy as np
import pytest

from experiments.cells import scenes as cells
from experiments.cells import shifted
from experiments.fashion import drawings, kinds, photos, scenes
from experiments.painting import SIZE

GENERATORS = pytest.mark.parametrize("generator", [scenes, kinds, cells, shifted], ids=lambda g: g.__name__)


@GENERATORS
def test_public_scenes_open_no_file(generator: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a public scene read a file")

    for target in ("gzip.open", "cv2.imread", "numpy.load", "numpy.fromfile", "builtins.open", "pathlib.Path.open"):
        monkeypatch.setattr(target, refuse)
    for i in range(3):
        generator.scene(np.random.default_rng(i))


@GENERATORS
def test_boxes_lie_inside_and_are_of_known_classes(generator: types.ModuleType) -> None:
    labels: set[int] = set()
    for i in range(12):
        image, boxes = generator.scene(np.random.default_rng([1, i]))
        assert image.dtype == np.uint8 and image.shape[2] == 3
        assert boxes.shape[1] == 5 and (boxes[:, 3:] > 0).all()
        low, high = boxes[:, 1:3] - boxes[:, 3:] / 2, boxes[:, 1:3] + boxes[:, 3:] / 2
        assert low.min() > -1e-9 and high.max() < 1 + 1e-9
        labels |= set(boxes[:, 0].astype(int))
    assert labels <= set(generator.NAMES) and len(labels) >= 3


@GENERATORS
def test_the_seed_decides_the_scene(generator: types.ModuleType) -> None:
    first, again, other = (generator.scene(np.random.default_rng(s)) for s in (3, 3, 4))
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


def test_cells_are_named_as_in_bccd_and_a_box_holds_its_cell() -> None:
    assert cells.NAMES == {0: "RBC", 1: "WBC", 2: "Platelets"}
    for label, draw in ((0, cells.red_cell), (2, cells.platelet)):
        smear = cells.Smear(np.random.default_rng(label))
        draw(smear, 150.0, 120.0)
        dark = smear.absorbed.sum(axis=2) > 0.15
        rows, columns = np.nonzero(dark)
        _, x, y, w, h = np.array(smear.rows[0]) * [1, cells.WIDTH, cells.HEIGHT, cells.WIDTH, cells.HEIGHT]
        assert columns.min() >= x - w / 2 - 2 and columns.max() <= x + w / 2 + 2
        assert rows.min() >= y - h / 2 - 2 and rows.max() <= y + h / 2 + 2
        assert dark.sum() > 0.3 * w * h


def test_drawn_garments_are_of_every_class_and_fill_their_frame() -> None:
    rng = np.random.default_rng(0)
    garments = [drawings.drawn_garment(rng) for _ in range(80)]
    assert {label for _, label in garments} == set(drawings.NAMES)
    for grey, _ in garments:
        assert grey.shape == (28, 28) and grey.min() >= 0 and grey.max() <= 1
        rows, columns = np.nonzero(grey)
        assert max(np.ptp(rows), np.ptp(columns)) >= 25 and min(np.ptp(rows), np.ptp(columns)) >= 3


def test_every_photo_is_in_at_most_one_scene() -> None:
    groups = photos.split_photos(1000, 400, np.random.default_rng(0))
    used = np.concatenate(groups)
    assert len(groups) == 400 and len(used) == len(set(used.tolist()))
    assert {len(group) for group in groups} == {1, 2, 3}
    few = photos.split_photos(10, 400, np.random.default_rng(0))  # scenes that the photos do not fill are left out
    assert len(few) < 10 and len(np.concatenate(few)) <= 10


def test_boxes_of_a_photo_scene_are_tight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "background", lambda rng: np.full((SIZE, SIZE, 3), 128.0))
    monkeypatch.setattr(scenes, "finish", lambda canvas, rng: canvas)
    monkeypatch.setattr(scenes, "_cloth_colour", lambda value, rng: np.full((*value.shape[:2], 3), 250.0))
    for i in range(20):
        rng = np.random.default_rng(i)
        image, boxes = scenes.paint([drawings.drawn_garment(rng)], rng)
        rows, columns = np.nonzero(np.abs(image.mean(axis=2) - 128) > 30)
        _, x, y, w, h = boxes[0] * [1, *[SIZE] * 4]
        assert np.abs(np.array([x - w / 2, y - h / 2]) - [columns.min(), rows.min()]).max() <= 2
        assert np.abs(np.array([x + w / 2, y + h / 2]) - [columns.max() + 1, rows.max() + 1]).max() <= 2


def fake_photos(folder: Path, train: int, test: int) -> Path:
    """Files in Fashion-MNIST's IDX format; photo i is filled with grey 100 + i % 100, its class is i % 10."""
    folder.mkdir()
    for part, count in (("train", train), ("t10k", test)):
        photos = np.zeros((count, 28, 28), np.uint8)
        photos[:, 4:24, 6:22] = (100 + np.arange(count) % 100)[:, None, None]
        header = {"images-idx3": bytes(16), "labels-idx1": bytes(8)}
        content = {"images-idx3": photos, "labels-idx1": (np.arange(count) % 10).astype(np.uint8)}
        for kind, head in header.items():
            with gzip.open(folder / f"{part}-{kind}-ubyte.gz", "wb") as stream:
                stream.write(head + content[kind].tobytes())
    return folder


def test_photos_are_found_read_and_written_as_scenes(tmp_path: Path) -> None:
    assert photos.find_photos(tmp_path) is None
    folder = fake_photos(tmp_path / "photos", train=40, test=20)
    assert photos.find_photos(folder) == folder
    grey, labels = photos.read_photos(folder, "train")
    assert grey.shape == (40, 28, 28) and grey[7].max() == 107 and labels[7] == 7
    data = photos.write_private(tmp_path / "set", folder, train_scenes=10, val_scenes=5)
    assert "T-shirt" in data.read_text() and len(list((tmp_path / "set" / "images").rglob("*.png"))) == 15
    assert cv2.imread(str(tmp_path / "set" / "images" / "val" / "0004.png")).shape == (SIZE, SIZE, 3)
    with pytest.raises(ValueError, match="make only"):
        photos.write_private(tmp_path / "more", folder, train_scenes=100, val_scenes=5)


def test_public_photos_are_in_no_private_scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fake_photos(tmp_path / "photos", train=100, test=20)  # each of its own grey
    used: list[int] = []

    def taken() -> list[int]:
        found = used.copy()
        used.clear()
        return found

    paint = photos.paint

    def told(garments: list[scenes.Photo], rng: np.random.Generator) -> object:
        used.extend(round(grey.max() * 255) for grey, _ in garments)
        return paint(garments, rng)

    monkeypatch.setattr(photos, "paint", told)
    for name, value in {"TRAIN_SCENES": 25, "PUBLISHED": 5}.items():
        monkeypatch.setattr(photos, name, value)
    photos.write_private(tmp_path / "private", folder, train_scenes=25, val_scenes=0)
    private = taken()
    photos.write_spare(tmp_path / "spare", folder, train_scenes=12, val_scenes=4)
    spare = taken()
    assert len(spare) == len(set(spare)) > 16 and not set(spare) & set(private)
    assert len(list((tmp_path / "spare" / "images" / "val").iterdir())) == 4

    photos.write_published(tmp_path / "published", folder, 4, train_scenes=20, val_scenes=0)
    train = taken()
    photos.write_published(tmp_path / "held_out", folder, 4, train_scenes=0, val_scenes=20)
    val = taken()
    assert len(set(train)) == 4 and len(train) > 25 and len(set(val)) == 5  # each in many scenes
    assert not set(train) & set(val) and not {*train, *val} & {*private, *spare}


def test_kinds_are_the_classes_put_together(tmp_path: Path) -> None:
    of = {scenes.NAMES[i]: kinds.NAMES[kind] for i, kind in enumerate(kinds.KIND_OF)}
    assert of["Coat"] == of["Shirt"] == "top" and of["Sandal"] == of["Ankle boot"] == "shoe" and of["Dress"] == "dress"
    folder = fake_photos(tmp_path / "photos", train=40, test=20)
    fine, coarse = tmp_path / "fine", tmp_path / "coarse"
    for root in (fine, coarse):
        photos.write_private(root, folder, train_scenes=10, val_scenes=5)
    data = kinds.relabel(coarse, "five kinds")
    assert "trousers" in data.read_text() and "Pullover" not in data.read_text()
    files = sorted((fine / "labels").rglob("*.txt"))
    assert len(files) == 15
    for file in files:
        before, after = (np.loadtxt(root / file.relative_to(fine), ndmin=2) for root in (fine, coarse))
        assert np.array_equal(kinds.KIND_OF[before[:, 0].astype(int)], after[:, 0])
        assert np.array_equal(before[:, 1:], after[:, 1:])


def test_a_garment_that_finds_little_room_is_drawn_small() -> None:
    """The third garment of this scene has room for less than the 28 pixels that garments usually have."""
    _, boxes = scenes.scene(np.random.default_rng([0, 1, 3522]))
    assert len(boxes) == 3 and (boxes[:, 3:].max(axis=1) * scenes.SIZE).min() < 28
