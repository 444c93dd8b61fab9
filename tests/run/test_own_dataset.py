"""A dataset of one's own in the place of files: the same guarantee, the same checks, or one line."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import dptrain
from dptrain import BudgetError, BudgetLedger, ConfigError, DataError, PrivacyError, PrivacyPlan
from dptrain.datasets.own import IN_MEMORY, held
from dptrain.datasets.sources import load_data
from dptrain.detection.data import DetectionDataset
from dptrain.run import job
from dptrain.statement import check_statement
from dptrain.training.checkpoint import load_checkpoint

from ..conftest import run_options

PLAN = PrivacyPlan(1.0, 2, 1.0, 1.0, 1e-3, 6)
Item = tuple[Any, Any, Any]


class Own:
    """Item i has i % 3 boxes."""

    names: Any = ("cat", "dog")

    def __init__(self, count: int = 6, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.items: list[Item] = []
        for number in range(count):
            boxes = rng.uniform(0.3, 0.5, (number % 3, 4))
            image = rng.integers(0, 255, (40, 61, 3), np.uint8)
            self.items.append((image, boxes, rng.integers(0, 2, number % 3)))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Item:
        return self.items[index]


class Grouped(Own):
    """Two items of each group but the last one; names that no path could hold."""

    units: Sequence[str] = ("a/../b", "a/../b", ".", ".", "ä b", "x%2F")

    def unit(self, index: int) -> str:
        return self.units[index]


def options(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    budget = {"url": f"sqlite:///{tmp_path / 'budget.db'}"}
    given = run_options(tmp_path, plan=PLAN, tracking={"enabled": False}, budget=budget)
    given.pop("workers")
    return {**given, **changes}


def on_disk(folder: Path, own: Own) -> Path:
    """The same as files, in the same order."""
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for number, (image, boxes, classes) in enumerate(own.items):
        cv2.imwrite(str(folder / "images" / f"{number:03}.png"), image[..., ::-1])
        lines = (" ".join(map(repr, [kind, *box])) for kind, box in zip(classes.tolist(), boxes.tolist(), strict=True))
        (folder / "labels" / f"{number:03}.txt").write_text("\n".join(lines))
    (folder / "data.yaml").write_text("train: images\nnames: [cat, dog]\n")
    return folder / "data.yaml"


def test_pixels_boxes_and_charge_are_those_of_the_same_files(tmp_path: Path) -> None:
    own = Own()
    file = on_disk(tmp_path / "files", own)
    ledger = BudgetLedger(f"sqlite:///{tmp_path / 'budget.db'}")
    from_files = load_data(file)
    one = DetectionDataset(from_files, "train", 64)
    with held(own) as place:
        data = load_data(place)
        other = DetectionDataset(data, "train", 64)
        assert len(one) == len(other) == 6
        for number in range(6):
            a, b = one.sample(number, 7), other.sample(number, 7)
            assert all(torch.equal(a[key], b[key]) for key in ("img", "cls", "bboxes"))
        assert ledger.manifest(data.train).digest == ledger.manifest(from_files.train).digest


def test_a_run_is_the_run_on_the_same_files_step_by_step(tmp_path: Path) -> None:
    """With the noise of one seed: the very same weights."""
    own, val = Own(), Own(3, seed=9)
    file = on_disk(tmp_path / "files", own)
    on_disk(tmp_path / "val", val)
    file.write_text(f"train: images\nval: {tmp_path}/val/images\nnames: [cat, dog]\n")
    states = []
    for name, data in (("a", file), ("b", {"train": own, "val": val})):
        result = dptrain.train(data=data, **options(tmp_path, output_dir=str(tmp_path / name), seed=3, workers=0))
        states.append(load_checkpoint(tmp_path / name / "checkpoint.pt", result.plan, 3)["parameters"])
        assert result.metrics is not None
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_a_run_states_charges_and_leaves_nothing_behind(tmp_path: Path) -> None:
    result = dptrain.train(data=Own(), **options(tmp_path))
    assert result.epsilon == pytest.approx(PLAN.epsilon())
    assert check_statement(tmp_path / "out").statement["dataset"]["name"] == "dataset"
    assert BudgetLedger(f"sqlite:///{tmp_path / 'budget.db'}").show()[0].epsilon == pytest.approx(PLAN.epsilon())
    with pytest.raises(DataError, match="was a dataset in Python"):
        load_data(IN_MEMORY / "dataset" / "data.yaml")


def test_groups_are_drawn_and_charged_as_the_dataset_names_them(tmp_path: Path) -> None:
    plan = PrivacyPlan(1.0, 2, 1.0, 1.0, 1e-3, 4, unit="group")
    seen: list[Any] = []
    real = job.Run.__init__

    def spy(self: Any, prepared: Any, *args: Any, **kwargs: Any) -> None:
        seen.append(prepared)
        real(self, prepared, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job.Run, "__init__", spy)
        result = dptrain.train(data=Grouped(), **options(tmp_path, plan=plan))
    assert seen[0].groups == list(Grouped.units)
    assert seen[0].trainer.sampler.num_units == 4
    assert result.statement["dataset"]["groups"] == "unit() of the dataset"
    ledger = BudgetLedger(f"sqlite:///{tmp_path / 'budget.db'}")
    other = Grouped(seed=5)  # new pictures of the same patients
    dptrain.train(data=other, **options(tmp_path, plan=plan, output_dir=str(tmp_path / "two")))
    assert [reading.runs for reading in ledger.show()] == [2]


@pytest.mark.parametrize(
    ("changes", "data", "said"),
    [
        ({"workers": 2}, Own(), "workers=2: a dataset of your own is read in this process"),
        ({"privacy": {"unit": "group"}, "plan": None}, Own(), "has no method unit: give it unit"),
        ({}, Grouped(), "privacy.unit=image, and the dataset has a method unit: set privacy.unit=group"),
        ({"device": "cpu,cpu"}, Own(), "which is in the memory of one, and several processes are not worked out"),
        ({}, {"train": Own(), "test": Own()}, "data='test': Own is no split"),
        ({}, {"val": Own()}, "data has no 'train'"),
        ({}, [1, 2], "data='train': list is no split: give a data.yaml, a dptrain.Dataset"),
        ({}, {"train": Own(), "val": Grouped()}, r"training image and one of the val images .*0\.bmp"),
        ({}, Own(0), "the dataset has no item"),
    ],
)
def test_what_cannot_be_is_one_line_before_anything_is_written(
    changes: dict[str, Any], data: Any, said: str, tmp_path: Path
) -> None:
    given = options(tmp_path, **changes)
    if given["plan"] is None:
        given |= {
            "privacy": {"noise_multiplier": 1.0, "dataset_size": 6, "delta": 1e-3, **given["privacy"]},
            "steps": 2,
        }
    with pytest.raises((ConfigError, DataError), match=said) as caught:
        dptrain.train(data=data, **given)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def with_item(**changes: Any) -> Own:
    own = Own()
    image, boxes, classes = own.items[2]
    given = {"image": image, "boxes": boxes, "classes": classes} | changes
    own.items[2] = (given["image"], given["boxes"], given["classes"])
    return own


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (with_item(image=np.zeros((4, 5, 3))), "item 2 of train: the image is float64 of shape (4, 5, 3), not uint8"),
        (with_item(image=np.zeros((4, 5), np.uint8)), "not uint8 of shape (height, width, 3), RGB"),
        (with_item(image=np.zeros((0, 5, 3), np.uint8)), "not uint8 of shape"),
        (with_item(boxes=[[0.5] * 5] * 2), "boxes are float64 of shape (2, 5) and classes int64 of shape (2,)"),
        (with_item(classes=[1]), "not numbers of shape (m, 4) and (m,)"),
        (with_item(classes=["cat", "dog"]), "classes <U3 of shape (2,)"),
        (with_item(classes=[0, 2]), "class '2' is not a whole number from 0 to 1"),
        (with_item(classes=[0, 0.5]), "class '0.5' is not a whole number"),
        (with_item(boxes=[[0.5, 0.5, 0.2, np.nan], [0.5, 0.5, 0.1, 0.1]]), "'nan' is not a finite number"),
        (with_item(boxes=[[0.5, 0.5, 0.2, 2.0], [0.5, 0.5, 0.1, 0.1]]), "reaches outside the image"),
        (with_item(boxes=[[0.5, 0.5, 0.2, 0.0], [0.5, 0.5, 0.1, 0.1]]), "has no area"),
    ],
)
def test_an_item_that_is_none_is_one_line(own: Own, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=re.escape(said)) as caught:
        dptrain.train(data=own, **options(tmp_path))
    assert "\n" not in str(caught.value)
    assert "2" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_code_that_fails_is_one_line(tmp_path: Path) -> None:
    class Broken(Own):
        def __getitem__(self, index: int) -> Item:
            if index == 4:
                raise KeyError("no row", "\n")
            return super().__getitem__(index)

    with pytest.raises(
        DataError, match=r"item 4 of train cannot be read \(KeyError: \('no row', .*\)\); correct the dataset"
    ):
        dptrain.train(data=Broken(), **options(tmp_path))


def test_names_that_cannot_be(tmp_path: Path) -> None:
    own = Own()
    own.names = ["cat", "cat"]
    with pytest.raises(DataError, match="class 1 is named 'cat'"):
        dptrain.train(data=own, **options(tmp_path))
    other = Own(3, seed=4)
    other.names = ["dog", "cat"]
    with pytest.raises(DataError, match="the classes of val"):
        dptrain.train(data={"train": Own(), "val": other}, **options(tmp_path))
    own = Own()
    own.name = "../x"  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="is not one of letters"):
        dptrain.train(data=own, **options(tmp_path))


def test_the_same_picture_twice_starts_no_run(tmp_path: Path) -> None:
    own = Own()
    image, boxes, classes = own.items[1]
    own.items[3] = (np.ascontiguousarray(image[:, ::-1]), boxes, classes)
    with pytest.raises(DataError, match=r"3\.bmp: is the same picture as .*1\.bmp, perhaps turned"):
        dptrain.train(data=own, **options(tmp_path))


@pytest.mark.parametrize("what", ["pixels", "boxes"])
@pytest.mark.parametrize("at", [1, 2, 3, 4, 5])
def test_an_item_that_is_another_at_any_read_ends_the_run(what: str, at: int, tmp_path: Path) -> None:
    """Labels, identity, the ledger's hash, and two steps read it: none takes another than the first did."""

    class Changing(Own):
        reads = 0

        def __getitem__(self, index: int) -> Item:
            image, boxes, classes = super().__getitem__(index)
            if index != 2:
                return image, boxes, classes
            Changing.reads += 1
            if Changing.reads <= at:
                return image, boxes, classes
            if what == "pixels":
                image = image.copy()
                image[0, 0, 0] ^= 1
                return image, boxes, classes
            return image, boxes * 1.01, classes

    Changing.reads = 0
    with pytest.raises(DataError, match="item 2 of train changed after it was checked"):
        dptrain.train(data=Changing(), **options(tmp_path, plan=PrivacyPlan(1.0, 4, 1.0, 1.0, 1e-3, 6)))
    assert Changing.reads == at + 1


def test_a_stream_that_varies_its_images_is_refused(tmp_path: Path) -> None:
    class Varied(Own):
        turns = itertools.count()

        def __getitem__(self, index: int) -> Item:
            image, boxes, classes = super().__getitem__(index)
            return np.roll(image, next(self.turns), axis=1), boxes, classes

    with pytest.raises(DataError, match="must be the same at every read; let augment vary images"):
        dptrain.train(data=Varied(), **options(tmp_path))


def test_a_resumed_run_must_have_the_dataset_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(self: Any, step: int) -> None:
        if step == 1:
            raise RuntimeError("power")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power"):
        patch.setattr(job.Progress, "update", stop)
        dptrain.train(data=Own(), **options(tmp_path))
    other = Own()
    other.items[0] = Own(1, seed=8).items[0]
    with pytest.raises(BudgetError, match="1 image added, 1 image removed"):
        dptrain.train(data=other, **options(tmp_path, resume=True))
    with pytest.raises(BudgetError, match="the labels of 1 image changed"):
        relabelled = Own()
        image, boxes, classes = relabelled.items[2]
        relabelled.items[2] = (image, boxes, 1 - classes)
        dptrain.train(data=relabelled, **options(tmp_path, resume=True))
    with pytest.raises(ConfigError, match=r"resume=true and budget\.url=null: only a ledger tells"):
        dptrain.train(data=Own(), **{**options(tmp_path, resume=True), "budget": {"url": None}})
    renamed = Own()
    renamed.name = "other"  # type: ignore[attr-defined]
    with pytest.raises(PrivacyError, match="data=/in memory/other"):
        dptrain.train(data=renamed, **options(tmp_path, resume=True))
    assert dptrain.train(data=Own(), **options(tmp_path, resume=True)).epsilon == pytest.approx(PLAN.epsilon())


def test_other_functions_say_that_they_take_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data is a Own: a dataset of your own goes to dptrain\.train"):
        load_data(Own())  # type: ignore[arg-type]


def test_the_example_of_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = Path("docs/data.md").read_text(encoding="utf-8")
    (example,) = (code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "class Scenes" in code)
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {}
    small = {'"yolo26n.yaml"': repr(run_options(tmp_path)["model"]), "steps=2": "steps=2, tracking={'enabled': False}"}
    for one, other in small.items():
        assert one in example
        example = example.replace(one, other)
    exec(compile(example, "data.md", "exec"), space)
    assert space["result"].epsilon <= 8
