"""Augmentations of one image: boxes follow their objects, and chance comes from one generator only."""

from __future__ import annotations

import numpy as np
import pytest

from dptrain.datasets.images import Letterbox
from dptrain.detection.augment import Augmentation
from dptrain.errors import ConfigError

EVERYTHING = Augmentation(
    fliplr=0.5, flipud=0.5, hsv_h=0.02, hsv_s=0.5, hsv_v=0.3, scale=0.4, translate=0.2, crop=0.4
)  # fmt: skip


def scene(height: int = 90, width: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """Black, with one white and one grey-blue square; class and box of each."""
    image = np.zeros((height, width, 3), np.uint8)
    rows = []
    for kind, (x, y, w, h) in enumerate([(12, 15, 24, 18), (62, 48, 30, 27)]):
        image[y : y + h, x : x + w] = (255, 255, 255) if kind == 0 else (250, 120, 120)
        rows.append([kind, (x + w / 2) / width, (y + h / 2) / height, w / width, h / height])
    return image, np.array(rows, np.float32)


def corners(labels: np.ndarray, imgsz: int) -> np.ndarray:
    return np.concatenate([labels[:, 1:3] - labels[:, 3:] / 2, labels[:, 1:3] + labels[:, 3:] / 2], 1) * imgsz


def plain(image: np.ndarray, labels: np.ndarray, imgsz: int) -> tuple[np.ndarray, np.ndarray]:
    place = Letterbox.fit(*image.shape[:2], imgsz)
    moved = labels.copy()
    moved[:, 1:] = place.to_canvas(labels[:, 1:])
    return place.pad(place.resize(image)), moved


def test_off_is_the_letterbox():
    image, labels = scene()
    canvas, moved = Augmentation().apply(image, labels, 96, np.random.default_rng(0))
    want, boxes = plain(image, labels, 96)
    np.testing.assert_array_equal(canvas, want)
    np.testing.assert_allclose(moved, boxes, atol=1e-6)
    assert not Augmentation().active and EVERYTHING.active


@pytest.mark.parametrize("part", ["fliplr", "flipud", "scale", "translate", "crop"])
@pytest.mark.parametrize("shape", [(90, 120), (120, 100)])
def test_boxes_stay_on_their_objects(part, shape):
    """Each box is compared with the bright pixels' own extent, which knows nothing of the code under test."""
    image, labels = scene(*shape)
    augmentation = Augmentation(**{part: 1.0 if part.startswith("flip") else 0.45})
    changed = 0
    for seed in range(40):
        canvas, moved = augmentation.apply(image, labels, 128, np.random.default_rng(seed))
        assert canvas.shape == (128, 128, 3) and moved.dtype == np.float32
        changed += not np.array_equal(canvas, plain(image, labels, 128)[0])
        for kind, bright in ((0, canvas.min(2) > 180), (1, (canvas[..., 0] > 180) & (canvas[..., 2] < 180))):
            rows = moved[moved[:, 0] == kind]
            ys, xs = np.nonzero(bright)
            if not len(rows):  # dropped: little of it may be left
                assert len(xs) < 200  # of up to 2,000
                continue
            extent = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            np.testing.assert_allclose(corners(rows, 128)[0], extent, atol=1.6)
    assert changed >= 39


def test_flips_are_exact():
    image, labels = scene()
    want, boxes = plain(image, labels, 96)
    canvas, moved = Augmentation(fliplr=1).apply(image, labels, 96, np.random.default_rng(0))
    np.testing.assert_array_equal(canvas, want[:, ::-1])
    np.testing.assert_allclose(moved[:, 1], 1 - boxes[:, 1], atol=1e-6)
    canvas, moved = Augmentation(flipud=1).apply(image, labels, 96, np.random.default_rng(0))
    np.testing.assert_array_equal(canvas, want[::-1])
    np.testing.assert_allclose(moved[:, 2], 1 - boxes[:, 2], atol=1e-6)


def test_flips_come_up_as_often_as_asked():
    image, labels = scene()
    want, _ = plain(image, labels, 32)
    flipped = [
        not np.array_equal(Augmentation(fliplr=0.3).apply(image, labels, 32, np.random.default_rng([7, i]))[0], want)
        for i in range(600)
    ]
    assert 0.22 < np.mean(flipped) < 0.38


def test_flips_are_drawn_one_by_one_and_image_by_image():
    image, labels = scene(64, 64)
    ways = [image, image[:, ::-1], image[::-1], image[::-1, ::-1]]
    seen = set()
    for index in range(99):
        canvas, _ = Augmentation(fliplr=0.5, flipud=0.5).apply(image, labels, 64, np.random.default_rng([1, index]))
        seen |= {i for i, way in enumerate(ways) if np.array_equal(canvas, way)}
    assert seen == {0, 1, 2, 3}


def test_scaling_keeps_pixels_and_boxes_together():
    """To a small part of a pixel: the centre of light of a square against the centre of its box."""
    image = np.full((128, 128, 3), 114, np.uint8)
    image[54:70, 50:74] = 255
    labels = np.array([[0, 62 / 128, 62 / 128, 24 / 128, 16 / 128]], np.float32)
    for seed in range(10):
        canvas, moved = Augmentation(scale=0.6).apply(image, labels, 128, np.random.default_rng(seed))
        light = canvas[..., 0].astype(float) - 114
        centre = (np.array([light.sum(0), light.sum(1)]) * (np.arange(128) + 0.5)).sum(1) / light.sum()
        np.testing.assert_allclose(moved[0, 1:3] * 128, centre, atol=0.12)


def test_colour_leaves_boxes_and_moves_pixels():
    image, labels = scene()
    rng = np.random.default_rng(0)
    image = np.clip(image.astype(int) + rng.integers(0, 40, image.shape), 0, 255).astype(np.uint8)
    want, boxes = plain(image, labels, 96)
    for part in ("hsv_h", "hsv_s", "hsv_v"):
        canvas, moved = Augmentation(**{part: 0.5}).apply(image, labels, 96, np.random.default_rng(3))
        np.testing.assert_allclose(moved, boxes, atol=1e-6)
        assert np.abs(canvas.astype(int) - want).max() > 10, part
    dark, _ = Augmentation(hsv_v=1.0).apply(image, labels, 96, np.random.default_rng(5))
    means = [Augmentation(hsv_v=0.9).apply(image, labels, 96, np.random.default_rng(s))[0].mean() for s in range(20)]
    assert min(means) < want.mean() < max(means) and dark.dtype == np.uint8


def test_colour_is_that_of_ultralytics(monkeypatch):
    from ultralytics.data.augment import RandomHSV

    image = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    u = np.random.default_rng(4).random(12)[7:10]
    monkeypatch.setattr(np.random, "uniform", lambda *_: 2 * u - 1)
    theirs = RandomHSV(0.3, 0.6, 0.4).apply_image({"img": image.copy()})["img"]
    augmentation = Augmentation(hsv_h=0.3, hsv_s=0.6, hsv_v=0.4)
    ours, _ = augmentation.apply(image, np.zeros((0, 5), np.float32), 32, np.random.default_rng(4))
    assert np.abs(ours.astype(int) - theirs).mean() < 1  # a grey pixel's hue may differ


def test_boxes_are_cut_and_dropped():
    image, labels = scene()
    counts = set()
    for seed in range(200):
        _, moved = EVERYTHING.apply(image, labels, 64, np.random.default_rng(seed))
        counts.add(len(moved))
        edges = corners(moved, 64)
        assert (edges > -1e-3).all() and (edges < 64 + 1e-3).all()
        assert (edges[:, 2:] - edges[:, :2] > 2).all()
    assert counts == {0, 1, 2} or counts == {1, 2}


def test_one_generator_decides_and_the_input_is_left_alone():
    image, labels = scene()
    before = image.copy(), labels.copy()
    one = EVERYTHING.apply(image, labels, 64, np.random.default_rng([3, 1]))
    np.random.seed(99)  # noqa: NPY002 - the global generator must not matter
    two = EVERYTHING.apply(image, labels, 64, np.random.default_rng([3, 1]))
    other = EVERYTHING.apply(image, labels, 64, np.random.default_rng([3, 2]))
    np.testing.assert_array_equal(one[0], two[0])
    np.testing.assert_array_equal(one[1], two[1])
    assert not np.array_equal(one[0], other[0])
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(labels, before[1])


def test_switching_a_part_on_does_not_change_another():
    image, labels = scene()
    for seed in range(8):
        a, _ = Augmentation(fliplr=0.5).apply(image, labels, 64, np.random.default_rng(seed))
        b, _ = Augmentation(fliplr=0.5, hsv_v=1e-9, crop=1e-9).apply(image, labels, 64, np.random.default_rng(seed))
        assert np.abs(a.astype(int) - b).max() <= 4  # through HSV and back


def test_no_boxes_and_tiny_images():
    empty = np.zeros((0, 5), np.float32)
    for shape in ((90, 120), (1, 1), (2, 300)):
        image = np.full((*shape, 3), 200, np.uint8)
        for seed in range(20):
            canvas, moved = EVERYTHING.apply(image, empty, 32, np.random.default_rng(seed))
            assert canvas.shape == (32, 32, 3) and moved.shape == (0, 5)


@pytest.mark.parametrize(
    ("name", "value"), [("fliplr", 1.1), ("hsv_h", -0.1), ("scale", 1.0), ("crop", 1.0), ("translate", float("nan"))]
)
def test_out_of_range_is_refused(name, value):
    with pytest.raises(ConfigError, match=rf"augment\.{name}={value}"):
        Augmentation(**{name: value})
