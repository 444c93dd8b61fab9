"""Label files: what is read, checked against Ultralytics' own reader, and what is refused."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from ultralytics.data.utils import img2label_paths, verify_image_label

from dptrain.datasets.labels import label_path, plain_labels, read_labels
from dptrain.errors import DataError


@pytest.mark.parametrize(
    "image", ["/a/images/train/x.jpg", "/a/images/b/images/c/x.y.png", "/a/pictures/x.jpg", "/images/x.jpg"]
)
def test_label_path_is_ultralytics(image, tmp_path):
    assert [str(label_path(tmp_path / image[1:]))] == img2label_paths([str(tmp_path / image[1:])])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n \n",
        "0 0.5 0.5 0.2 0.1\n1.0 0.1 0.2 0.05 0.05\n",
        "\ufeff1 0.5 0.5 1 1\r\n1 0.5 0.5 1 1\r\n0 .3 .3 .1 .1",  # byte-order mark, a repeated line
        "1 0.1 0.1 0.4 0.2 0.3 0.6\n0 0 0 1 0 1 1 0 1\n",  # polygons
        "1 0.1 0.1 0.4 0.2 0.3 0.6\n1 0.1 0.1 0.4 0.1 0.4 0.6 0.1 0.6\n",  # two polygons with one box: two objects
        "0 0.5 0.5 1.01 1\n",
    ],
)
def test_what_is_read_is_what_ultralytics_reads(text, tmp_path):
    image, label = tmp_path / "x.png", tmp_path / "x.txt"
    cv2.imwrite(str(image), np.zeros((20, 20, 3), np.uint8))
    label.write_text(text, encoding="utf-8")
    theirs = verify_image_label((str(image), str(label), "", False, 2, 0, 0, False))
    ours = read_labels(label, 2)
    assert theirs[1] is not None, theirs[-1]
    assert ours is not None and ours.dtype == np.float32 and ours.shape == theirs[1].shape
    np.testing.assert_allclose(ours[np.lexsort(ours.T)], theirs[1][np.lexsort(theirs[1].T)], atol=1e-6)


def test_no_file_is_background(tmp_path):
    assert read_labels(tmp_path / "none.txt", 2) is None


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("2 .5 .5 .1 .1", ["class '2'", "0 to 1"]),
        ("-1 .5 .5 .1 .1", ["class '-1'"]),
        ("0.5 .5 .5 .1 .1", ["class '0.5'"]),
        ("cat .5 .5 .1 .1", ["'cat'", "not a number"]),
        ("0 nan .5 .1 .1", ["'nan'", "finite"]),
        ("0 .5 inf .1 .1", ["'inf'", "finite"]),
        ("0 1e999 .5 .1 .1", ["'1e999'", "finite"]),
        ("0 .5 .5 .1", ["4 columns"]),
        ("0 .5 .5 .1 .1 .9", ["6 columns"]),
        ("0 .1 .1 .2 .2 .3 .3 .4", ["8 columns"]),
        ("0 1.5 .5 .1 .1", ["x=1.5", "outside"]),
        ("0 .95 .5 .2 .1", ["1.05", "outside"]),
        ("0 .5 .03 .2 .1", ["-0.02", "outside"]),
        ("0 320 240 64 64", ["x=320", "pixels"]),
        ("0 .5 .5 0 .1", ["w=0", "no area"]),
        ("0 .5 .5 .1 -.1", ["h=-0.1", "no area"]),
        ("0 .5 .5 1e-46 .1", ["w=1e-46", "no area"]),  # nothing is left of it in single precision
        ("1e39 .5 .5 .1 .1", ["class '1e39'"]),
        ("0 .1 .1 .2 .2 .3 1.2", ["1.2", "outside"]),
    ],
)
def test_a_bad_line_is_named(line, parts, tmp_path):
    label = tmp_path / "x.txt"
    label.write_text(f"1 .2 .2 .1 .1\n\n{line}\n")
    with pytest.raises(DataError) as caught:
        read_labels(label, 2)
    message = str(caught.value)
    assert "\n" not in message and f"{label}:3" in message
    for part in parts:
        assert part in message


def test_not_text(tmp_path):
    label = tmp_path / "x.txt"
    label.write_bytes(b"\xff\xfe0\x00")
    with pytest.raises(DataError, match="not UTF-8"):
        read_labels(label, 2)
    label.unlink()
    label.mkdir()
    with pytest.raises(DataError, match="cannot read the label file"):
        read_labels(label, 2)


def test_minus_zero_is_zero_so_a_repeated_line_still_counts_once(tmp_path):
    label = tmp_path / "x.txt"
    label.write_text("0 .5 .5 .1 .1\n-0 .5 .5 .1 .1\n")
    rows = read_labels(label, 2)
    assert rows is not None and rows.shape == (1, 5) and not np.signbit(rows).any()


def test_a_link_to_labels_that_are_not_there_is_no_background(tmp_path):
    (tmp_path / "x.txt").symlink_to(tmp_path / "not-fetched")
    with pytest.raises(DataError, match="links to a file that is not there"):
        read_labels(tmp_path / "x.txt", 2)


def test_the_lines_that_are_carried_along_are_those_that_were_checked(tmp_path, monkeypatch):
    texts = iter([b"7 0.5  0.5 .2 .1\n\n", b"0 0.5 0.5 0.2 0.1 name of a patient\n"])
    monkeypatch.setattr("dptrain.datasets.labels.read_data", lambda *_: next(texts))
    assert plain_labels(tmp_path / "x.txt") == "7 0.5 0.5 .2 .1\n"


def test_labels_that_are_gone_are_named_where_they_are_carried_along(tmp_path):
    with pytest.raises(DataError, match=r"gone\.txt: cannot read the label file"):
        plain_labels(tmp_path / "gone.txt")
