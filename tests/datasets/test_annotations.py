"""COCO and VOC: the boxes are those of Ultralytics' converters, or one line says what is wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from ultralytics.data.converter import convert_coco

import dptrain
from dptrain import BudgetError, BudgetLedger, ConfigError, DataError
from dptrain.datasets.contents import files_held
from dptrain.datasets.labels import DROP_BAD_ROWS, read_labels
from dptrain.datasets.sources import DataConfig, load_data
from dptrain.detection.data import DetectionDataset
from dptrain.toolbox.checking import check
from dptrain.toolbox.seal import _members

from ..conftest import run_options

NAMES = ["cat", "dog"]
SIZE = (60, 40)  # width, height


def picture(file: Path, seed: int) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(file), np.random.default_rng(seed).integers(0, 255, (SIZE[1], SIZE[0], 3), np.uint8))
    return file


def coco(count: int = 3, **changes: Any) -> dict[str, Any]:
    """Image i has i boxes; identifiers begin at 10, and the categories have a gap."""
    rng = np.random.default_rng(1)
    images = [{"id": 10 + i, "file_name": f"{i}.png", "width": SIZE[0], "height": SIZE[1]} for i in range(count)]
    annotations = []
    for i in range(count):
        for _ in range(i):
            w, h = rng.uniform(3, 20, 2).round(2).tolist()
            box = [*(rng.uniform(0, 20, 2).round(2).tolist()), w, h]
            number = len(annotations)
            annotations.append({"id": number, "image_id": 10 + i, "category_id": (1, 3)[number % 2], "bbox": box})
    categories = [{"id": 3, "name": "dog"}, {"id": 1, "name": "cat"}]
    return {"images": images, "annotations": annotations, "categories": categories} | changes


@pytest.fixture
def make_coco(tmp_path: Path) -> Callable[..., Path]:
    def make(data: Any = None, yaml: str = "") -> Path:
        data = coco() if data is None else data
        listed = data["images"] if isinstance(data, dict) else []
        for split, seed in (("train", 0), ("val", 100)):
            for number, item in enumerate(listed if isinstance(listed, list) else []):
                if isinstance(item, dict) and isinstance(item.get("file_name"), str):
                    picture(tmp_path / split / item["file_name"], seed + number)
            text = data if isinstance(data, str) else json.dumps(data)
            (tmp_path / "annotations").mkdir(exist_ok=True)
            (tmp_path / "annotations" / f"instances_{split}.json").write_text(text)
        file = tmp_path / "data.yaml"
        file.write_text(f"train: annotations/instances_train.json\nval: annotations/instances_val.json\n{yaml}")
        return file

    return make


def voc(*objects: tuple[str, float, float, float, float], more: str = "", size: tuple[int, int] = SIZE) -> str:
    text = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox>"
        f"</object>"
        for name, a, b, c, d in objects
    )
    width, height = size
    return (
        f"<annotation><size><width>{width}</width><height>{height}</height><depth>3</depth></size>{text}{more}"
        "</annotation>"
    )


@pytest.fixture
def make_voc(tmp_path: Path) -> Callable[..., Path]:
    def make(texts: dict[str, str | None], yaml: str = "train: VOC\nval: VOC\nnames: [cat, dog]\n") -> Path:
        for number, (name, text) in enumerate(texts.items()):
            picture(tmp_path / "VOC" / "JPEGImages" / f"{name}.png", number)
            if text is not None:
                (tmp_path / "VOC" / "Annotations").mkdir(exist_ok=True)
                (tmp_path / "VOC" / "Annotations" / f"{name}.xml").write_text(text)
        file = tmp_path / "data.yaml"
        file.write_text(yaml)
        return file

    return make


def boxes(data: DataConfig, split: str = "train") -> dict[str, np.ndarray]:
    dataset = DetectionDataset(data, split, 64)
    return {file.name: dataset.labels(number) for number, file in enumerate(dataset.image_files)}


def refusal(file: Path, labels: str = "strict") -> str:
    with pytest.raises(DataError) as caught:
        DetectionDataset(load_data(file, labels), "train", 64)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_boxes_of_coco_are_those_of_ultralytics_converter_to_the_last_bit(
    make_coco: Callable[..., Path], tmp_path: Path
) -> None:
    data = coco(6)
    data["categories"] = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    for item in data["annotations"]:
        item["category_id"] = min(item["category_id"], 2)
    data["annotations"] += [
        {"id": 90, "image_id": 12, "category_id": 1, "bbox": [1, 2, 30.5, 20.25], "iscrowd": 1},
        {**data["annotations"][0], "id": 91},  # the same box twice
    ]
    file = make_coco(data)
    ours = boxes(load_data(file))
    convert_coco(str(tmp_path / "annotations"), str(tmp_path / "converted"), cls91to80=False)
    for name, found in ours.items():
        theirs = read_labels((tmp_path / "converted" / "labels" / "train" / name).with_suffix(".txt"), 2)
        assert found.tobytes() == (np.zeros((0, 5), np.float32) if theirs is None else theirs).tobytes()
    assert [len(found) for found in ours.values()] == [0, 1, 2, 3, 4, 5]


def test_classes_are_found_by_name_whatever_their_numbers(make_coco: Callable[..., Path]) -> None:
    data = load_data(make_coco())
    assert data.names == {0: "cat", 1: "dog"}  # by the order of the identifiers, 1 and 3
    assert boxes(data)["2.png"][:, 0].tolist() == [1, 0]
    assert load_data(make_coco(yaml="nc: 2\n")).names == data.names
    with pytest.raises(DataError, match="nc: 3 but names has 2 classes"):
        load_data(make_coco(yaml="nc: 3\n"))
    named = load_data(make_coco(yaml="names: [dog, bird, cat]\n"))
    assert boxes(named)["2.png"][:, 0].tolist() == [0, 2]


def test_a_class_that_the_yaml_does_not_name_is_refused_or_left_out(make_coco: Callable[..., Path]) -> None:
    file = make_coco(yaml="names: [cat]\n")
    assert "annotation 1: category 'dog' is not one of names in data.yaml" in refusal(file)
    dataset = DetectionDataset(load_data(file, DROP_BAD_ROWS), "train", 64)
    assert [len(dataset.labels(i)) for i in range(3)] == [0, 1, 1]
    assert len(dataset.dropped) == 1


def test_images_lie_where_exports_put_them(make_coco: Callable[..., Path], tmp_path: Path) -> None:
    """Beside the JSON, in images/, in the folder it is called after, or by path."""
    file = make_coco()
    for place in ("train", "images/train", "annotations", "images", "."):
        old = next(tmp_path.rglob("train/0.png"), None) or next(tmp_path.rglob("0.png"))
        target = tmp_path / place
        target.mkdir(parents=True, exist_ok=True)
        for image in [image for image in old.parent.iterdir() if image.suffix == ".png"]:
            image.rename(target / image.name)
        text = file.read_text().replace("val: annotations/instances_val.json\n", "")
        file.write_text(text)
        assert [image.parent for image in load_data(file).train] == [target.resolve()] * 3


def test_an_image_that_two_folders_have_is_refused(make_coco: Callable[..., Path], tmp_path: Path) -> None:
    file = make_coco()
    picture(tmp_path / "images" / "0.png", 7)
    assert "set 'path:' in data.yaml" in refusal(file)


def test_images_may_be_links_and_a_run_goes_nowhere_among_them(make_coco: Callable[..., Path], tmp_path: Path) -> None:
    file = make_coco()
    (tmp_path / "train" / "0.png").rename(tmp_path / "elsewhere.png")
    (tmp_path / "train" / "0.png").symlink_to(tmp_path / "elsewhere.png")
    data = load_data(file)
    assert data.folders == {tmp_path / name for name in ("train", "val", "annotations")}
    assert len(boxes(data)) == 3


def change(**parts: Any) -> dict[str, Any]:
    """The usual file, with keys of the first image, annotation or category changed."""
    data = coco()
    for name, values in parts.items():
        data[{"image": "images", "annotation": "annotations", "category": "categories"}[name]][0] |= values
    return data


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (change(image={"id": 11}), "both have the id 11: their annotations cannot be told apart"),
        (change(image={"file_name": None}), "has no 'id' or no 'file_name'"),
        (change(image={"width": 0}), "is 0 x 40; write its width and height"),
        (change(image={"height": "40"}), "write its width and height"),
        (change(image={"id": True}), "has no 'id'"),
        (change(annotation={"image_id": 99}), "annotation 0 is of image 99, which 'images' does not list"),
        (change(annotation={"category_id": 2}), "annotation 0 is of category 2, which 'categories' does not list"),
        (change(annotation={"bbox": [1, 2, 0, 4]}), "annotation 0: box x=0.0166667 y=0.1 w=0 h=0.1 has no area"),
        (change(annotation={"bbox": [1, 2, -3, 4]}), "has no area"),
        (change(annotation={"bbox": [1, 2, 300, 4]}), "reaches outside the image"),
        (change(annotation={"bbox": []}), "annotation 0: bbox [] is not [left, top, width, height]"),
        (change(annotation={"bbox": [1, 2, True, 4]}), "is not [left, top, width, height]"),
        (change(annotation={"bbox": [1, 2, 10**400, 4]}), "is not [left, top, width, height]"),
        (change(annotation={"bbox": None}), "bbox None is not"),
        (change(category={"id": 1}), "has no 'id' of its own"),
        (change(category={"name": "cat"}), "categories 1 and 3 are both named 'cat'"),
        (change(category={"name": ""}), "has the name ''"),
        (coco(images=[]), "'images' lists none"),
        (coco(annotations={}), "has no list 'annotations'"),
        (coco(categories=[1]), "has no list 'categories'"),
        ("{", ":1: not valid JSON"),
        ("[]", "holds a list, not COCO's"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": NaN}', "NaN is not a number of JSON"),
        ('{"images": [], "images": []}', "'images' is given twice"),
    ],
)
def test_what_is_wrong_in_a_coco_file_is_one_line(make_coco: Callable[..., Path], data: Any, said: str) -> None:
    message = refusal(make_coco(data))
    assert said in message
    assert "instances_train.json" in message


def test_an_image_that_is_not_there_or_listed_twice_is_refused(make_coco: Callable[..., Path], tmp_path: Path) -> None:
    data = coco()
    data["images"].append({**data["images"][0], "id": 99})
    assert "'0.png' is listed twice, under two ids" in refusal(make_coco(data))
    file = make_coco()
    (tmp_path / "train" / "1.png").unlink()
    assert "no such image '1.png'" in refusal(file)


def test_a_bad_annotation_is_left_out_by_a_rule_for_its_image_alone(make_coco: Callable[..., Path]) -> None:
    file = make_coco(change(annotation={"bbox": [1, 2, 0, 4]}))
    dataset = DetectionDataset(load_data(file, DROP_BAD_ROWS), "train", 64)
    assert [len(dataset.labels(i)) for i in range(3)] == [0, 0, 2]
    assert len(dataset) == 3
    assert "annotation 0" in dataset.dropped[0]


def test_what_cannot_be_a_data_yaml_says_what_to_write(make_coco: Callable[..., Path], tmp_path: Path) -> None:
    make_coco()
    with pytest.raises(DataError, match=r"write a data\.yaml with 'train: instances_train\.json'"):
        load_data(tmp_path / "annotations" / "instances_train.json")
    with pytest.raises(DataError, match=r'convert_ndjson_to_yolo\("pets\.ndjson"\)'):
        load_data(tmp_path / "pets.ndjson")
    (tmp_path / "pets.ndjson").write_text("{}")
    (tmp_path / "data.yaml").write_text("train: pets.ndjson\nnames: [cat]\n")
    with pytest.raises(DataError, match="NDJSON lists images to download"):
        load_data(tmp_path / "data.yaml")


@pytest.mark.parametrize(
    ("yaml", "said"),
    [
        ("labels: yolo\n", "is a COCO file beside labels: yolo"),
        ("labels: csv\n", "labels: 'csv' is not one of yolo, coco, voc"),
    ],
)
def test_a_format_that_is_not_the_files_own_is_refused(make_coco: Callable[..., Path], yaml: str, said: str) -> None:
    assert said in refusal(make_coco(yaml=yaml))


def test_commands_that_copy_label_files_refuse_others(make_coco: Callable[..., Path], tmp_path: Path) -> None:
    file = make_coco()
    with pytest.raises(DataError, match="its boxes are COCO, and dptrain seal takes YOLO text only"):
        list(_members(file, "dataset"))
    with pytest.raises(DataError, match="dptrain scrub takes YOLO text only"):
        dptrain.scrub(file, tmp_path / "clean")


def test_the_format_belongs_into_the_yaml() -> None:
    with pytest.raises(ConfigError, match=r"labels=coco is how boxes are written: say so in the data\.yaml"):
        dptrain.train(model="yolo26n.yaml", data="data.yaml", labels="coco")


def test_check_reads_them_too(make_coco: Callable[..., Path], make_voc: Callable[..., Path]) -> None:
    report = check(make_coco(change(annotation={"bbox": [1, 2, 0, 4]})))
    assert any("annotation 0: box" in str(finding) for finding in report.findings)
    report = check(make_voc({"a": voc(("cat", 1, 1, 20, 20)), "b": voc(("cow", 1, 1, 20, 20))}))
    assert any("class 'cow' is not one of names" in str(finding) for finding in report.findings)


def test_check_tells_of_images_that_were_turned_since(
    make_coco: Callable[..., Path], make_voc: Callable[..., Path]
) -> None:
    report = check(make_coco(change(image={"width": 40, "height": 60})))
    said = [str(finding) for finding in report.findings if "turned or cropped" in str(finding)]
    assert len(said) == 2  # train and val are listed alike
    assert "0.png: is 60 x 40 pixels, and" in said[0] and "in an image of 40 x 60" in said[0]
    half = voc(("cat", 1, 1, 20, 15), size=(30, 20))  # resized since: the boxes are where they were
    report = check(make_voc({"a": half, "b": voc(size=(40, 60)), "c": None}))
    assert sum("turned or cropped" in str(finding) for finding in report.findings) == 2


# ---- Pascal VOC


def test_boxes_of_voc_are_where_the_file_says(make_voc: Callable[..., Path]) -> None:
    difficult = "<object><name>cat</name><difficult>1</difficult></object>"
    data = load_data(make_voc({"a": voc(("dog", 6, 10, 36, 30), more=difficult), "b": voc(), "c": None}))
    found = boxes(data)
    assert found["a.png"].tolist() == [[1, pytest.approx(0.35), 0.5, 0.5, 0.5]]
    assert [len(rows) for rows in found.values()] == [1, 0, 0]
    assert DetectionDataset(data, "train", 64).unlabelled == 1


@pytest.mark.parametrize("entry", ["VOC", "VOC/JPEGImages", "VOC/Annotations", "VOC/ImageSets/Main/train.txt"])
def test_every_way_to_name_a_voc_folder(make_voc: Callable[..., Path], tmp_path: Path, entry: str) -> None:
    file = make_voc({"a": voc(("cat", 1, 1, 20, 20)), "b": voc()}, f"train: {entry}\nnames: [cat, dog]\n")
    for image in (tmp_path / "VOC" / "JPEGImages").iterdir():
        image.rename(image.with_suffix(".jpg"))
    picture(tmp_path / "VOC" / "SegmentationClass" / "a.png", 5)  # a mask is no image
    (tmp_path / "VOC" / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "VOC" / "ImageSets" / "Main" / "train.txt").write_text("a\nb\n")
    data = load_data(file)
    assert [image.name for image in data.train] == ["a.jpg", "b.jpg"]
    assert data.boxes_in("train").format == "voc"
    assert [len(rows) for rows in boxes(data).values()] == [1, 0]


def test_xml_beside_the_images(tmp_path: Path) -> None:
    """As Roboflow exports VOC."""
    picture(tmp_path / "train" / "a.png", 0)
    (tmp_path / "train" / "a.xml").write_text(voc(("cat", 1, 1, 20, 20)))
    (tmp_path / "data.yaml").write_text("train: train\nnames: [cat]\n")
    assert len(boxes(load_data(tmp_path / "data.yaml"))["a.png"]) == 1


def test_one_image_does_not_decide_how_the_others_are_read(tmp_path: Path, make_voc: Callable[..., Path]) -> None:
    """XML for most and text for one: neither is taken in silence, since one image more would unlabel all others."""
    file = make_voc({"a": voc(("cat", 1, 1, 20, 20)), "b": voc(("cat", 1, 1, 20, 20))})
    (tmp_path / "VOC" / "JPEGImages").rename(tmp_path / "VOC" / "images")
    text = "train: VOC/images\nnames: [cat, dog]\n"
    file.write_text(text)
    assert load_data(file).boxes_in("train").format == "voc"
    (tmp_path / "VOC" / "labels").mkdir()
    (tmp_path / "VOC" / "labels" / "b.txt").write_text("1 .5 .5 .1 .1\n")
    assert "a.xml and" in (message := refusal(file))
    assert "say which to read, 'labels: voc' or 'labels: yolo' in data.yaml" in message
    file.write_text(text + "labels: yolo\n")
    assert [rows[:, 0].tolist() for rows in boxes(load_data(file)).values()] == [[], [1]]
    file.write_text(text + "labels: voc\n")
    assert [rows[:, 0].tolist() for rows in boxes(load_data(file)).values()] == [[0], [0]]


ENTITY = '<!DOCTYPE annotation [<!ENTITY a "cat">]>'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (voc(("cow", 1, 1, 20, 20)), "object 1: class 'cow' is not one of names"),
        (voc(("cat", 20, 1, 20, 20)), "object 1: box x=0.333333 y=0.2625 w=0 h=0.475 has no area"),
        (voc(("cat", 30, 1, 20, 20)), "has no area"),
        (voc(("cat", 1, 1, 200, 20)), "reaches outside the image"),
        (voc(("cat", 1, 1, float("nan"), 20)), "has no bndbox of xmin, ymin, xmax, ymax"),
        (voc(more="<object><name>cat</name><polygon/></object>"), "has no bndbox"),
        (voc(size=(0, 0)), "the size of the image is 0 x 0"),
        ("<annotation/>", "the size of the image is nothing x nothing"),
        ("<html/>", "is XML of 'html', not a VOC annotation"),
        ("<annotation>", ":1: not valid XML (no element found)"),
        ("", "not valid XML"),
        (ENTITY + voc(("&a;", 1, 1, 20, 20)), "has a document type (DOCTYPE)"),
        ('<!DOCTYPE x SYSTEM "file:///etc/passwd">' + voc(), "has a document type (DOCTYPE)"),
        ("<a>" * 200 + "</a>" * 200, "more than 100 deep"),
        (
            '<?xml version="1.0" encoding="nonsense"?><annotation/>',
            "cannot be read as XML (unknown encoding: nonsense)",
        ),
        (voc(("&amp;cat", 1, 1, 20, 20)), "class '&cat' is not"),
    ],
)
def test_what_is_wrong_in_a_voc_file_is_one_line(make_voc: Callable[..., Path], text: str, said: str) -> None:
    message = refusal(make_voc({"a": text, "b": voc(("cat", 1, 1, 20, 20))}))
    assert said in message
    assert "a.xml" in message


def test_voc_needs_the_names_of_its_classes(make_voc: Callable[..., Path]) -> None:
    file = make_voc({"a": voc(("cat", 1, 1, 20, 20))}, "train: VOC\nnc: 2\n")
    assert "VOC, which has no list of classes; add 'names: [...]'" in refusal(file)


# ---- What is checked, charged and trained on is one thing


def options(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    plan = dptrain.PrivacyPlan(1.0, 2, 1.0, 1.0, 1e-3, 3)
    budget = {"url": f"sqlite:///{tmp_path / 'budget.db'}"}
    return run_options(tmp_path, plan=plan, tracking={"enabled": False}, budget=budget, validation="off", **changes)


def relabel_coco(tmp_path: Path) -> None:
    data = change(annotation={"bbox": [2, 2, 9, 9]})
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(data))


def relabel_voc(tmp_path: Path) -> None:
    (tmp_path / "VOC" / "Annotations" / "a.xml").write_text(voc(("cat", 2, 2, 20, 20)))


@pytest.mark.parametrize("kind", ["coco", "voc"])
def test_a_replaced_annotation_is_found_and_the_charge_is_that_of_the_converted_dataset(
    kind: str, make_coco: Callable[..., Path], make_voc: Callable[..., Path], tmp_path: Path
) -> None:
    texts = {"a": voc(("cat", 1, 1, 20, 20)), "b": voc(), "c": voc(("dog", 5, 5, 9, 9))}
    file = make_coco() if kind == "coco" else make_voc(texts, "train: VOC\nnames: [cat, dog]\n")
    relabel = relabel_coco if kind == "coco" else relabel_voc
    result = dptrain.train(data=file, **options(tmp_path))
    assert result.epsilon > 0
    ledger = BudgetLedger(f"sqlite:///{tmp_path / 'budget.db'}")
    data = load_data(file)
    charged = ledger.manifest(data.train, boxes=data.boxes_in("train"))
    for image in data.train:  # the same as text, where Ultralytics looks for it
        rows = data.boxes_in("train").rows(image) or []
        place = tmp_path / "yolo" / "labels" / f"{image.stem}.txt"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("\n".join(" ".join(row.words) for row in rows))
        (tmp_path / "yolo" / "images").mkdir(exist_ok=True)
        (tmp_path / "yolo" / "images" / image.name).write_bytes(image.read_bytes())
    assert ledger.manifest(sorted((tmp_path / "yolo" / "images").iterdir())).digest == charged.digest
    relabel(tmp_path)
    again = load_data(file)
    now = ledger.manifest(again.train, boxes=again.boxes_in("train"))
    assert str(now.changes_since(charged.units)) == "the labels of 1 image changed"


@pytest.mark.parametrize("kind", ["coco", "voc"])
def test_an_annotation_that_changes_within_a_run_stops_it(
    kind: str, make_coco: Callable[..., Path], make_voc: Callable[..., Path], tmp_path: Path
) -> None:
    file = make_coco() if kind == "coco" else make_voc({"a": voc(("cat", 1, 1, 20, 20))})
    with files_held():
        DetectionDataset(load_data(file), "train", 64)
        (relabel_coco if kind == "coco" else relabel_voc)(tmp_path)
        with pytest.raises(DataError, match=re.compile(r"(train\.json|a\.xml): changed after it was checked")):
            DetectionDataset(load_data(file), "train", 64)


def test_a_resumed_run_with_other_annotations_is_refused(
    make_coco: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dptrain.run import job

    def stop(self: Any, step: int) -> None:
        if step == 1:
            raise RuntimeError("power")

    file = make_coco()
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power"):
        patch.setattr(job.Progress, "update", stop)
        dptrain.train(data=file, **options(tmp_path))
    relabel_coco(tmp_path)
    with pytest.raises(BudgetError, match="the labels of 1 image changed"):
        dptrain.train(data=file, **options(tmp_path, resume=True))
