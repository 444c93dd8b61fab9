"""The real photos of the experiments: found, or said in one line how to get; the raccoons written from a clone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dptrain.detection.data import load_data
from experiments import photos

_BOX = "<object><bndbox><xmin>10</xmin><ymin>20</ymin><xmax>30</xmax><ymax>60</ymax></bndbox></object>"


@pytest.mark.parametrize("name", ["bccd", "dental", "raccoons"])
def test_a_set_that_is_not_there_says_in_one_line_how_to_get_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"DPTRAIN_{name.upper()}", str(tmp_path / "data.yaml"))
    with pytest.raises(photos.Missing) as caught:
        photos.photos(name)
    message = str(caught.value)
    assert f"$DPTRAIN_{name.upper()}" in message and "\n" not in message


def test_raccoons_are_written_once_each_with_their_boxes(tmp_path: Path) -> None:
    for folder in ("images", "annotations"):
        (tmp_path / folder).mkdir()
    for number, shade in ((1, 10), (5, 20), (6, 30), (10, 30)):  # 10 is a copy of 6, in the other split
        Image.fromarray(np.full((80, 40, 3), shade, np.uint8)).save(tmp_path / "images" / f"raccoon-{number}.jpg")
        (tmp_path / "annotations" / f"raccoon-{number}.xml").write_text(
            f"<annotation><size><width>40</width><height>80</height></size>{_BOX}</annotation>", encoding="utf-8"
        )
    (tmp_path / "annotations" / "raccoon-7.xml").write_text("<annotation/>", encoding="utf-8")  # without its image
    data = load_data(photos.write_raccoons(tmp_path))
    root = tmp_path / "yolo"
    found = {split: {file.stem for file in (root / "images" / split).iterdir()} for split in ("train", "val")}
    assert found == {"train": {"raccoon-1", "raccoon-6"}, "val": {"raccoon-5"}}
    assert (root / "labels" / "train" / "raccoon-1.txt").read_text() == "0 0.500000 0.500000 0.500000 0.500000\n"
    assert data.num_classes == 1
