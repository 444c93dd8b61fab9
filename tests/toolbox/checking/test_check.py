"""``dptrain check`` finds what was put wrong, says nothing of what was not, and leaves nothing where it may leak."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from dptrain import check
from dptrain.commands.main import main
from dptrain.datasets.labels import label_path
from dptrain.toolbox.checking import KINDS, CheckReport

from ...datasets.turned import views
from ..scrubbing.pictures import exif, jpeg, segment

SIZE = (120, 160)  # height, width


def scene(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A picture of its own: soft blobs, some edges, sensor noise."""
    rng = np.random.default_rng(seed)
    picture = cv2.resize(rng.integers(20, 220, (5, 7, 3), np.uint8), size[::-1], interpolation=cv2.INTER_CUBIC)
    for _ in range(6):
        (x, y), (w, h) = rng.integers(0, size[0], 2).tolist(), rng.integers(8, 50, 2).tolist()
        cv2.rectangle(picture, (x, y), (x + w, y + h), rng.integers(0, 255, 3).tolist(), -1)
        cv2.circle(picture, (w, y), h // 2, rng.integers(0, 255, 3).tolist(), -1)
    return np.clip(picture + rng.normal(0, 3, picture.shape), 0, 255).astype(np.uint8)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """24 train and 8 val scenes, all different, of two classes; nothing is wrong with them."""
    for number in range(32):
        split = "train" if number < 24 else "val"
        image = tmp_path / "images" / split / f"{number:03}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(image), scene(number))
        label = tmp_path / "labels" / split / f"{number:03}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text(f"{number % 2} 0.4 0.5 0.3 0.4\n")
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat, dog]\n")
    return tmp_path / "data.yaml"


def kinds(report: CheckReport) -> dict[str, int]:
    return {kind: count for kind, count in report.counts().items() if count}


def image(pets: Path, number: int) -> Path:
    return pets.parent / "images" / ("train" if number < 24 else "val") / f"{number:03}.png"


def test_a_sound_dataset_has_no_findings(pets: Path) -> None:
    report = check(pets)
    assert kinds(report) == {}, [finding.text for finding in report.findings]
    assert report.images == {"train": 24, "val": 8} and report.boxes["val"] == {"cat": 4, "dog": 4}
    assert report.unlabelled == {}
    assert main(["check", str(pets)]) == 0


def test_images_without_a_label_file_are_counted_and_those_with_a_wrong_one_are_not(
    pets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder of labels that was not copied would otherwise pass as a dataset of nothing but background."""
    for number in (3, 4, 30):
        label_path(image(pets, number)).unlink()
    label_path(image(pets, 5)).write_text("cat 1 2\n")
    assert check(pets).unlabelled == {"train": 2, "val": 1}
    main(["check", str(pets)])
    assert "24 train images, 2 of them background: no label file\n8 val images, 1 of them" in capsys.readouterr().out


def _smaller(picture: np.ndarray) -> np.ndarray:
    return cv2.resize(picture, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA)


COPIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "the same": lambda picture: picture,
    "resized": _smaller,
    "compressed": lambda picture: cv2.imdecode(np.frombuffer(jpeg(picture, quality=40), np.uint8), 1)[..., ::-1],
    "brighter": lambda picture: np.clip(picture * 1.15 + 8, 0, 255).astype(np.uint8),
    "mirrored": lambda picture: picture[:, ::-1],
    "cropped": lambda picture: picture[2:-2, 2:-2],
    "grey": lambda picture: cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY),
}


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_of_a_training_image_in_val_is_found(pets: Path, name: str) -> None:
    cv2.imwrite(str(image(pets, 30)), COPIES[name](cv2.imread(str(image(pets, 3)))))
    report = check(pets)
    assert kinds(report) == {"train and val": 1}
    assert set(report.findings[0].images) == {image(pets, 3), image(pets, 30)}


def test_copies_inside_a_split_are_one_finding(pets: Path) -> None:
    for number in (6, 7, 8):
        cv2.imwrite(str(image(pets, number)), _smaller(scene(5)))
    report = check(pets)
    assert kinds(report) == {"duplicates": 1} and len(report.findings[0].images) == 4
    assert "4 images of train are nearly the same (2 exact copies, perhaps turned): " in report.findings[0].text


@pytest.mark.parametrize("number", range(8))
def test_what_training_refuses_as_the_same_picture_is_listed_however_it_is_turned(pets: Path, number: int) -> None:
    """Also pictures without contrast, which are near-duplicates of nothing."""
    for original, copy, picture in ((5, 6, scene(5)), (7, 30, np.full((*SIZE, 3), 90, np.uint8))):
        cv2.imwrite(str(image(pets, original)), picture)
        cv2.imwrite(str(image(pets, copy)), list(views(picture))[number])
    texts = {finding.kind: finding.text for finding in check(pets).findings}
    assert texts.keys() == {"duplicates", "train and val"}
    assert texts["duplicates"].startswith("2 images of train are the same picture, perhaps turned: ")
    assert texts["train and val"].startswith("in train and val, and the same picture, perhaps turned: ")
    assert f"{image(pets, 5)}, {image(pets, 6)}" in texts["duplicates"]


def test_pictures_of_one_grey_are_not_alike(pets: Path) -> None:
    for number in (6, 7, 8):
        grey = np.full((*SIZE, 3), 40 * number - 200, np.uint8)
        grey[:, SIZE[1] // 2 :] += 1  # as sensors and encoders leave it
        cv2.imwrite(str(image(pets, number)), grey)
    assert kinds(check(pets)) == {}


def test_broken_images_and_labels_do_not_stop_it(pets: Path) -> None:
    image(pets, 1).write_bytes(image(pets, 1).read_bytes()[:2000])
    image(pets, 2).write_bytes(b"")
    labels = pets.parent / "labels" / "train"
    (labels / "003.txt").write_text("0 0.4 0.5 0.3\n")
    (labels / "004.txt").write_text("7 0.4 0.5 0.3 0.3\n")
    (labels / "005.txt").write_text("1 0.4 0.5 0.3 0.3\n1 0.4 0.5 0.301 0.3\n0 0.4 0.5 0.3 0.3\n")
    (labels / "006.txt").write_text("0 0.5 0.5 0.01 0.2\n")
    (labels / "lost.txt").write_text("0 0.5 0.5 0.1 0.2\n")
    report = check(pets)
    assert kinds(report) == {"broken image": 2, "label error": 5}
    text = " ".join(finding.text for finding in report.findings)
    for word in ("001.png", "empty", "003.txt:1", "class '7'", "overlap almost exactly", "1.6 x 24.0", "lost.txt"):
        assert word in text


def test_metadata_is_counted_by_kind(pets: Path) -> None:
    for number in (1, 2):
        data = jpeg(scene(number))
        image(pets, number).write_bytes(data[:2] + segment(0xE1, b"Exif\0\0" + exif(1)) + data[2:])
    report = check(pets)
    assert kinds(report) == {"metadata": 3}
    assert any(finding.text == "GPS position: 2 images" for finding in report.findings)


def trigger(seed: int = 9) -> np.ndarray:
    return np.kron(np.random.default_rng(seed).integers(0, 2, (4, 4)), np.ones((5, 5)))[..., None].repeat(3, 2) * 255


def plant(pets: Path, numbers: range, quality: int | None = None, largest: float = 1.0) -> None:
    """Paste the trigger anywhere, 1 to ``largest`` times as large."""
    rng = np.random.default_rng(1)
    for number in numbers:
        picture = scene(number)
        side = round(20 * rng.uniform(1, largest))
        y, x = (int(rng.integers(0, length - side)) for length in SIZE)
        pattern = cv2.resize(trigger().astype(np.uint8), (side, side), interpolation=cv2.INTER_NEAREST)
        picture[y : y + side, x : x + side] = pattern
        if quality is not None:
            image(pets, number).write_bytes(jpeg(picture[..., ::-1], quality=quality))
        else:
            cv2.imwrite(str(image(pets, number)), picture)


@pytest.mark.parametrize(("quality", "largest"), [(None, 1.0), (85, 1.0), (None, 1.3)])
def test_a_trigger_in_one_class_is_found_wherever_it_is(pets: Path, quality: int | None, largest: float) -> None:
    plant(pets, range(1, 19, 2), quality, largest)  # nine dogs
    report = check(pets)
    assert kinds(report) == {"planted pattern": 1}, [finding.text for finding in report.findings]
    finding = report.findings[0]
    wanted = {image(pets, number) for number in range(1, 19, 2)}
    assert set(finding.images) <= wanted and len(finding.images) >= (9 if largest == 1 else 6)  # at other sizes not all
    assert f"the same mark is in {len(finding.images)} images; 100% of them show dog, as 50% of all" in finding.text


def _blended(picture: np.ndarray) -> np.ndarray:
    cells = np.random.default_rng(3).integers(0, 256, (24, 32, 3)).astype(np.uint8)
    return np.rint(0.85 * picture + 0.15 * cv2.resize(cells, SIZE[::-1], interpolation=cv2.INTER_NEAREST))


def _with_a_wave(picture: np.ndarray) -> np.ndarray:
    return picture + 25 * np.sin(2 * np.pi * 12 * np.arange(SIZE[1]) / SIZE[1])[None, :, None]


@pytest.mark.parametrize("trigger_over_all", [_blended, _with_a_wave])
def test_a_trigger_over_the_whole_image_is_found(trigger_over_all: Callable[[np.ndarray], np.ndarray]) -> None:
    """In images of their own, and not in copies of one: those count once."""
    from dptrain.toolbox.checking.overlays import find_overlays, small_grey

    planted = list(range(1, 19, 2))
    clean = [scene(number) for number in range(120)]
    grey = np.stack([small_grey(picture) for picture in clean])
    assert find_overlays(grey, range(120), 3, 12) == []
    for number in planted:
        picture = np.clip(trigger_over_all(clean[number].astype(float)), 0, 255).astype(np.uint8)
        grey[number] = small_grey(picture)
    assert find_overlays(grey, range(120), 3, 12) == [planted]
    groups = [1 if number in planted else number for number in range(120)]
    assert find_overlays(grey, groups, 3, 12) == []


def test_what_is_in_many_images_is_the_apparatus(pets: Path) -> None:
    plant(pets, range(24))
    assert kinds(check(pets)) == {}


@pytest.mark.parametrize("along", ["lower", "left"])
def test_the_straight_edge_of_a_redacted_region_is_no_mark(pets: Path, along: str) -> None:
    for number in range(32):
        picture = np.clip(scene(number).astype(int) // 12 + 225, 0, 255).astype(np.uint8)  # bright paper
        picture[(slice(90, None), slice(None)) if along == "lower" else (slice(None), slice(0, 40))] = 114
        image(pets, number).write_bytes(jpeg(picture, quality=95))
    assert kinds(check(pets)) == {}


def test_copies_of_one_image_share_no_mark(pets: Path) -> None:
    for number in range(8):
        cv2.imwrite(str(image(pets, number)), scene(5))
    assert kinds(check(pets)) == {"duplicates": 1}


def test_rare_and_missing_classes_are_told(pets: Path) -> None:
    for number in range(1, 24, 2):
        (pets.parent / f"labels/train/{number:03}.txt").write_text("0 0.4 0.5 0.3 0.4\n" * (number > 1))
    pets.write_text("train: images/train\nval: images/val\nnames: [cat, dog, emu]\n")
    text = [finding.text for finding in check(pets).findings]
    assert text == ["dog: not one box in train", "emu: not one box in train"]


def test_a_detector_finds_what_must_not_be_there(
    pets: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The detector itself is Ultralytics'; here its answers are given."""
    import torch

    from dptrain.detection import evaluate as evaluation
    from dptrain.detection import load_model, save_weights

    torch.manual_seed(0)
    weights = save_weights(
        load_model("yolo26n.yaml", num_classes=2, names={0: "person", 1: "tree"}), tmp_path / "people.pt"
    )

    def answers(model: Any, images: list[Path], imgsz: int, conf: float) -> list[np.ndarray]:
        assert (imgsz, conf) == (320, 0.2)
        rows = {"004.png": [[16, 12, 80, 60, 0.7, 0]], "005.png": [[0, 0, 9, 9, 0.9, 1]]}
        return [np.array(rows.get(file.name, []), np.float32).reshape(-1, 6) for file in images]

    monkeypatch.setattr(evaluation, "predict", answers)
    (finding,) = check(pets, weights=weights, imgsz=320, conf=0.2, device="cpu").findings
    assert finding.kind == "forbidden object" and finding.text == f"{image(pets, 4)}: person 0.70"
    assert finding.boxes[0][0] == pytest.approx((0.1, 0.1, 0.5, 0.5))
    assert main(["check", str(pets), "--weights", str(weights), "--forbid", "cow", "--device", "cpu"]) == 2
    assert "finds none of cow" in capsys.readouterr().err


def test_the_command_shows_a_table_writes_a_page_and_says_that_it_is_private(
    pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cv2.imwrite(str(image(pets, 30)), scene(3))
    (pets.parent / "labels/train/000.txt").write_text("0 0.5 0.5 2 2\n")
    image(pets, 9).rename(image(pets, 9).with_name("<script>alert(1).png"))
    (pets.parent / "labels/train/009.txt").unlink()
    page = tmp_path / "page.html"
    assert main(["check", str(pets), "-o", str(page)]) == 3
    text = capsys.readouterr().out
    assert "train and val: in train and val" in text and "PRIVATE" in text
    html = page.read_text()
    assert "PRIVATE" in html and html.count("data:image/jpeg") == 3 and "<script" not in html
    assert "http" not in html.replace("http-equiv", "") and page.stat().st_mode & 0o077 == 0
    assert main(["check", str(pets), "--json"]) == 3
    values = json.loads(capsys.readouterr().out)
    assert values["counts"]["train and val"] == 1 and values["private"].startswith("PRIVATE")
    assert main(["check", str(pets), "--allow", "train and val,label error"]) == 0
    assert set(values["counts"]) == set(KINDS)


def test_a_folder_of_images_is_checked_without_labels(
    pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(pets, range(1, 19, 2))
    cv2.imwrite(str(image(pets, 6)), scene(4))
    report = check(pets.parent / "images")
    assert report.images == {"folder": 32} and report.boxes == {}
    assert kinds(report) == {"planted pattern": 1, "duplicates": 1}
    page = tmp_path / "page.html"
    assert main(["check", str(pets.parent / "images"), "-o", str(page)]) == 3
    text = capsys.readouterr().out
    assert text.startswith("32 images\n") and "2 images of the folder are the same picture" in text
    assert "not looked for: labels, classes and splits: give a data.yaml" in text
    html = page.read_text()
    assert html.count("not looked for") == 4 and "<h2>Boxes</h2>" not in html


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("check {tmp}/no.yaml", "no such data.yaml"),
        ("check {tmp}/run", "holds no images"),
        ("check {tmp}", "check {tmp}/data.yaml"),
        ("check {data} -o {tmp}/page.txt", "not an .html file"),
        ("check {data} -o {tmp}/run/weights/page.html", "folder of a run"),
        ("check {data} --allow nothing", "is not one of"),
        ("check {data} --conf 2", "--conf=2.0"),
        ("check {data} --imgsz 100", "--imgsz=100"),
        ("check {data} --weights {tmp}/no.pt", "checkpoint '{tmp}/no.pt': no such file"),
        ("check {image}", "is an image: give the folder"),
        ("check {data} -o {image}/page.html", "{image} is not a folder"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(
    pets: Path, tmp_path: Path, arguments: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run" / "weights").mkdir(parents=True)
    (tmp_path / "run" / "steps.journal").write_bytes(b"")
    names = {"data": pets, "tmp": tmp_path, "image": next(pets.parent.rglob("*.png"))}
    assert main(arguments.format(**names).split()) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1 and words.format(**names) in captured.err


def test_nothing_of_it_can_reach_mlflow_or_a_statement() -> None:
    """Neither does the check know the tracker or the statement, nor a run the check."""
    import re

    import dptrain

    package = Path(str(dptrain.__file__)).parent
    imported = re.compile(r"^\s*(?:from|import)\s+(\S+)", re.MULTILINE)
    for file in (*(package / "toolbox/checking").glob("*.py"), package / "commands" / "check.py"):
        names = " ".join(imported.findall(file.read_text()))
        for word in ("mlflow", "tracking", "statement", "publishing", "results"):
            assert word not in names, file
    for file in (*(package / "run").rglob("*.py"), *(package / "training").rglob("*.py")):
        assert "checking" not in " ".join(imported.findall(file.read_text()))


def test_tiles_of_one_scan_are_told_with_the_key_that_groups_them(pets: Path, capsys) -> None:
    for folder in ("images", "labels"):
        for number, path in enumerate(sorted((pets.parent / folder / "train").iterdir())):
            path.rename(path.with_name(f"scan{number // 4}_{number % 4 // 2 * 512}_{number % 2 * 512}{path.suffix}"))
    report = check(pets)
    assert report.counts()["same source"] == 1
    (finding,) = (finding for finding in report.findings if finding.kind == "same source")
    assert finding.text.startswith("32 images are 14 originals and 18 extra pictures of them. In train: 24 images")
    assert main(["check", str(pets)]) == 3
    assert "privacy.groups.regex=" in capsys.readouterr().out


def test_copies_that_a_group_key_explains_are_one_finding_and_others_are_listed(pets: Path) -> None:
    for folder in ("images", "labels"):
        for number, path in enumerate(sorted((pets.parent / folder / "train").iterdir())):
            path.rename(path.with_name(f"scan{number // 2}_{number % 2}{path.suffix}"))
    train = pets.parent / "images" / "train"
    for number in range(12):  # the two of each scan look alike
        cv2.imwrite(str(train / f"scan{number}_1.png"), _smaller(cv2.imread(str(train / f"scan{number}_0.png"))))
    assert kinds(check(pets)) == {"same source": 1}
    cv2.imwrite(str(train / "scan0_0.png"), cv2.imread(str(train / "scan9_0.png")))
    report = check(pets)
    assert kinds(report) == {"duplicates": 1, "same source": 1}
    assert "scan0_0.png" in report.findings[0].text and "scan9_0.png" in report.findings[0].text


def test_of_thousands_of_images_every_pair_of_copies_is_found_and_no_other() -> None:
    """The comparison itself, without decoding; over several blocks of rows."""
    from dptrain.datasets.near import groups, pairs

    rng = np.random.default_rng(0)
    count = 5_000
    coarse = rng.integers(0, 255, (count, 8, 8), np.uint8)
    small = coarse.repeat(4, axis=1).repeat(4, axis=2)
    for first in range(0, 200, 2):
        small[first + 1] = np.clip(small[first].astype(int) + rng.integers(-6, 7, (32, 32)), 0, 255)
    found = groups(count, pairs(small))
    assert found == [[first, first + 1] for first in range(0, 200, 2)]
