"""The private set of the demo: a scene is one unit, its boxes are tight, and it can be made again."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from experiments.digits import scenes
from experiments.digits.glyphs import Glyph, font_glyph, handwritten_glyphs


def test_every_handwritten_glyph_is_in_at_most_one_scene_and_train_and_val_share_none() -> None:
    train, val = scenes.split_handwriting()
    used = [glyph.source for group in train + val for glyph in group]
    assert len(used) == len(set(used))
    assert set(used) <= set(range(1797))
    assert len(train) == scenes.TRAIN_SCENES and len(val) >= 200
    assert {len(group) for group in train + val} == {1, 2, 3}


def test_no_two_glyphs_with_the_same_ink_are_split_between_train_and_val() -> None:
    train, val = scenes.split_handwriting()
    seen = {glyph.ink.tobytes() for group in train for glyph in group}
    assert not [glyph.source for group in val for glyph in group if glyph.ink.tobytes() in seen]


def test_every_class_is_in_val() -> None:
    _, val = scenes.split_handwriting()
    counts = np.bincount([glyph.label for group in val for glyph in group], minlength=10)
    assert counts.min() >= 25


def test_boxes_are_tight_around_the_ink(monkeypatch: pytest.MonkeyPatch) -> None:
    """On blank paper the pixels that differ are the ink; the box may be off by a pixel of soft edge."""
    monkeypatch.setattr(scenes, "background", lambda rng: np.full((scenes.SIZE, scenes.SIZE, 3), 200.0))
    for glyph in handwritten_glyphs()[:20]:
        rng = np.random.default_rng(glyph.source)
        image, boxes = scenes.paint([glyph], rng)
        ink = np.abs(image.astype(float).mean(axis=2) - 200) > 30
        rows, columns = np.nonzero(cv2.morphologyEx(ink.astype(np.uint8), cv2.MORPH_OPEN, np.ones((2, 2))))
        _, x, y, w, h = boxes[0] * np.array([1, *[scenes.SIZE] * 4])
        edges = np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
        seen = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert np.abs(edges - seen).max() <= 2.5


def test_boxes_of_a_scene_do_not_touch_and_lie_inside() -> None:
    for i in range(50):
        _, boxes = scenes.scene(np.random.default_rng(i))
        low, high = boxes[:, 1:3] - boxes[:, 3:] / 2, boxes[:, 1:3] + boxes[:, 3:] / 2
        assert low.min() >= 0 and high.max() <= 1
        for a in range(len(boxes)):
            for b in range(a):
                assert (np.minimum(high[a], high[b]) <= np.maximum(low[a], low[b])).any()


def test_the_same_seed_paints_the_same_scene_and_another_does_not() -> None:
    first, again, other = (scenes.scene(np.random.default_rng(s))[0] for s in (3, 3, 4))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_public_scenes_never_open_the_handwriting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse() -> list[Glyph]:
        raise AssertionError("the public set read handwriting")

    monkeypatch.setattr("experiments.digits.scenes.handwritten_glyphs", refuse)
    monkeypatch.setattr("sklearn.datasets.load_digits", refuse)
    scenes.write_public(tmp_path, train_scenes=2, val_scenes=2)
    assert len(list((tmp_path / "images").rglob("*.png"))) == 4


def test_font_glyphs_cover_the_classes_and_fill_their_frame() -> None:
    rng = np.random.default_rng(0)
    glyphs = [font_glyph(rng) for _ in range(120)]
    assert {g.label for g in glyphs} == set(range(10))
    for glyph in glyphs:
        assert glyph.ink.shape == (8, 8) and glyph.ink.min() >= 0 and glyph.ink.max() <= 1
        assert (glyph.ink.max(axis=1) > 0).sum() >= 6 or (glyph.ink.max(axis=0) > 0).sum() >= 6


def test_the_written_set_is_in_ultralytics_layout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    train, val = scenes.split_handwriting()
    monkeypatch.setattr(scenes, "split_handwriting", lambda seed=0: (train[:5], val[:3]))
    path = scenes.write_private(tmp_path)
    assert path.name == "data.yaml" and "names:" in path.read_text()
    for split, groups in (("train", train[:5]), ("val", val[:3])):
        files = sorted((tmp_path / "images" / split).glob("*.png"))
        assert len(files) == len(groups)
        for file, group in zip(files, groups, strict=True):
            label = tmp_path / "labels" / split / f"{file.stem}.txt"
            assert [int(line.split()[0]) for line in label.read_text().splitlines()] == [g.label for g in group]
            assert cv2.imread(str(file)).shape == (scenes.SIZE, scenes.SIZE, 3)
