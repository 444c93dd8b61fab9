"""COCO and VOC files: sound boxes, or a line that names the file, whatever is in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dptrain.datasets.labels import DROP_BAD_ROWS, STRICT, TOLERANCE
from dptrain.datasets.sources import load_data

from .harness import answer, cases, damaged, edited

SHARE = 0.1
COCO = {
    "info": {"year": 2026},
    "images": [{"id": number, "file_name": f"{number}.png", "width": 60, "height": 40} for number in (1, 2)],
    "annotations": [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 1,
            "bbox": [1, 2, 30.5, 4],
            "iscrowd": 0,
            "segmentation": [[1, 2, 3, 4]],
        },
        {"id": 2, "image_id": 2, "category_id": 7, "bbox": [10, 20, 3, 4]},
    ],
    "categories": [{"id": 1, "name": "cat"}, {"id": 7, "name": "dog"}],
}
VOC = (
    "<annotation><size><width>60</width><height>40</height><depth>3</depth></size>\n"
    "<object><name>cat</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax>"
    "<ymax>33.5</ymax></bndbox></object>\n<object><name>dog</name><bndbox><xmin>3</xmin><ymin>4</ymin>"
    "<xmax>9</xmax><ymax>8</ymax></bndbox></object></annotation>"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("annotations")
    for number in (1, 2):
        cv2.imwrite(str(made / f"{number}.png"), np.full((40, 60, 3), number, np.uint8))
    (made / "coco.yaml").write_text("train: a.json\n")
    (made / "voc").mkdir()
    cv2.imwrite(str(made / "voc" / "1.png"), np.full((40, 60, 3), 3, np.uint8))
    (made / "voc.yaml").write_text("train: voc\nlabels: voc\nnames: [cat, dog]\n")
    return made


def check(data: Path, file: Path, policy: str) -> None:
    """Read all boxes of a split: each is sound, and whatever is refused names the file."""
    read, refused = answer(lambda: load_data(data, policy), file)
    if read is None:
        assert refused is not None
        return
    for image in read.train:
        dropped: list[str] | None = None if policy == STRICT else []
        rows, _ = answer(lambda image=image, dropped=dropped: read.labels_of("train", image, dropped), file)  # type: ignore[misc]
        if rows is None:
            continue
        assert rows.dtype == np.float32 and rows.shape[1] == 5 and np.isfinite(rows).all()
        assert set(rows[:, 0].tolist()) <= set(read.names)
        assert (rows[:, 3:] > 0).all()
        low, high = rows[:, 1:3] - rows[:, 3:] / 2, rows[:, 1:3] + rows[:, 3:] / 2
        assert (low > -TOLERANCE - 1e-4).all() and (high < 1 + TOLERANCE + 1e-4).all()


POLICIES = st.sampled_from([STRICT, DROP_BAD_ROWS])


@cases(SHARE * 0.5, 150)
@given(data=edited(COCO), policy=POLICIES)
def test_an_edited_coco_file(folder: Path, data: Any, policy: str) -> None:
    (folder / "a.json").write_bytes(json.dumps(data).encode("utf-8", "surrogatepass"))
    check(folder / "coco.yaml", folder / "a.json", policy)


@cases(SHARE * 0.2, 80)
@given(content=damaged(json.dumps(COCO).encode()), policy=POLICIES)
def test_a_damaged_coco_file(folder: Path, content: bytes, policy: str) -> None:
    (folder / "a.json").write_bytes(content)
    check(folder / "coco.yaml", folder / "a.json", policy)


TEXTS = st.one_of(
    st.text(max_size=6),
    st.sampled_from(["&lt;", "&#10;", "&#0;", "<a/>", "]]>", "nan", "1e400", "-1", "0", "9" * 400, "&x;", "<!-- -->"]),
)


@cases(SHARE * 0.2, 150)
@example(at=3, text="a&#10;b", policy=STRICT)
@given(at=st.integers(0, 12), text=TEXTS, policy=POLICIES)
def test_a_voc_file_with_another_text(folder: Path, at: int, text: str, policy: str) -> None:
    parts = VOC.split(">")
    parts[at] = text + parts[at][parts[at].find("<") :]
    (folder / "voc" / "1.xml").write_bytes(">".join(parts).encode("utf-8", "surrogatepass"))
    check(folder / "voc.yaml", folder / "voc" / "1.xml", policy)


@cases(SHARE * 0.1, 100)
@given(content=damaged(VOC.encode()), policy=POLICIES)
def test_a_damaged_voc_file(folder: Path, content: bytes, policy: str) -> None:
    (folder / "voc" / "1.xml").write_bytes(content)
    check(folder / "voc.yaml", folder / "voc" / "1.xml", policy)
