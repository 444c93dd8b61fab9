"""No image that is used without noise may be a training image, or one that a ledger protects."""

from __future__ import annotations

from itertools import chain, islice
from pathlib import Path
from typing import Any

import pytest

import dptrain
from dptrain import BudgetLedger, DataError, PrivacyError, PrivacyPlan
from dptrain.datasets.identity import pictures_in
from dptrain.datasets.listing import public_images
from dptrain.datasets.sources import load_data
from dptrain.run.declared_public import DeclaredPublic

from ..conftest import MakeDataset, dataset_maker, run_options
from ..datasets.turned import copies

PLAN = PrivacyPlan(0.5, 2, 1.0, 1.0, 1e-3, 3)


def test_a_training_image_among_public_ones_is_refused_under_any_name(
    make_dataset: MakeDataset, tmp_path: Path
) -> None:
    """Under another name, in another folder or format, turned, as a link, or as the very file."""
    data = load_data(make_dataset())
    train, photo = pictures_in(data.train), data.train[2]
    DeclaredPublic("the val images", data.val, "...").refuse_training(train)
    link = tmp_path / "link.png"
    link.symlink_to(photo)
    for copy in chain((photo, link), copies(photo, tmp_path / "public")):
        with pytest.raises(DataError, match=rf"002\.png: is a training image and one of public_images \(.*{copy.name}"):
            DeclaredPublic("public_images", [data.val[0], copy], "...").refuse_training(train)


def test_the_images_of_a_folder_or_of_a_list_are_compared(make_dataset: MakeDataset, tmp_path: Path) -> None:
    val = load_data(make_dataset()).val
    listed = tmp_path / "public.txt"
    listed.write_text("./images/val/001.png\n")
    assert public_images(listed) == [val[1]] and set(public_images(tmp_path / "images" / "val")) == set(val)
    (tmp_path / "empty").mkdir()
    for place, words in ((tmp_path / "none", "does not exist"), (tmp_path / "empty", "holds no images")):
        with pytest.raises(DataError, match=words):
            public_images(place)


def options(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    return run_options(tmp_path, plan=PLAN, tracking={"enabled": False}, **changes)


def test_a_val_image_that_is_a_training_image_in_another_format_starts_no_run(
    make_dataset: MakeDataset, tmp_path: Path
) -> None:
    data = make_dataset()
    photo = tmp_path / "images" / "train" / "001.png"
    for copy in islice(copies(photo, tmp_path / "images" / "val"), 3, 5):
        with pytest.raises(DataError, match=rf"001\.png: is a training image and one of the val images.*{copy.name}"):
            dptrain.train(data=data, **options(tmp_path, budget={"url": None}))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("where", ["val", "public_images"])
@pytest.mark.parametrize("required", [False, True])
def test_an_image_that_a_ledger_protects_is_no_public_one(
    make_dataset: MakeDataset, tmp_path: Path, where: str, required: bool
) -> None:
    """It is somebody's private image, in a dataset of theirs: its metrics, or its start, would carry no noise."""
    data = make_dataset()
    theirs = load_data(dataset_maker(tmp_path / "theirs")(seed=5)).train
    url = f"sqlite:///{tmp_path / 'budget.db'}"
    ledger = BudgetLedger(url)
    ledger.create("theirs", epsilon=8.0, delta=1e-3, manifest=ledger.manifest(theirs))
    if required:
        own = load_data(data).train
        ledger.create("own", epsilon=1000.0, delta=1e-3, manifest=ledger.manifest(own))
    before = ledger.export()
    folder = tmp_path / ("images/val" if where == "val" else "public")
    more: dict[str, Any] = {"budget": {"url": url, "required": required}}
    if where == "public_images":
        more["public_images"] = str(folder)
    for copy in islice(copies(theirs[0], folder), 3, 5):
        with pytest.raises(PrivacyError, match=rf"{copy.name}: is one of .* protects it, in theirs;") as caught:
            dptrain.train(data=data, **options(tmp_path, **more))
        assert "\n" not in str(caught.value)
    assert ledger.export() == before and not (tmp_path / "out").exists()


def test_a_new_image_of_a_group_that_a_ledger_protects_is_no_val_image(
    make_dataset: MakeDataset, tmp_path: Path
) -> None:
    """The patient of val/000.png is in another project, with other images."""
    data = make_dataset(val=1)
    theirs = load_data(dataset_maker(tmp_path / "theirs")(seed=5)).train
    url = f"sqlite:///{tmp_path / 'budget.db'}"
    ledger = BudgetLedger(url)
    known = ledger.manifest(theirs, groups=["p1", "p1", "p2", "p2", "p3", "p3"])
    ledger.create("theirs", epsilon=8.0, delta=1e-3, unit="group", manifest=known)
    plan = PrivacyPlan(0.5, 2, 1.0, 1.0, 1e-3, 3, unit="group")
    for patient in ("p2", "p4"):
        rows = [f"train/{number:03}.png,q{number}" for number in range(6)] + [f"val/000.png,{patient}"]
        (tmp_path / "groups.csv").write_text("file,group\n" + "\n".join(rows) + "\n")
        groups = {"groups": {"csv": str(tmp_path / "groups.csv"), "column": "group"}}
        given = run_options(tmp_path, plan=plan, tracking={"enabled": False}, privacy=groups, budget={"url": url})
        if patient == "p2":
            with pytest.raises(PrivacyError, match=r"val/000\.png: .* protects it or its group, in theirs;"):
                dptrain.train(data=data, **given)
        else:
            assert dptrain.train(data=data, **given).metrics


def test_without_validation_a_private_val_split_is_left_alone(make_dataset: MakeDataset, tmp_path: Path) -> None:
    data = make_dataset()
    url = f"sqlite:///{tmp_path / 'budget.db'}"
    ledger = BudgetLedger(url)
    ledger.create("val", epsilon=8.0, delta=1e-3, manifest=ledger.manifest(load_data(data).val))
    with pytest.raises(PrivacyError, match=r"in val \(and 2 more\); .*validation=off"):
        dptrain.train(data=data, **options(tmp_path, budget={"url": url}))
    assert dptrain.train(data=data, **options(tmp_path, budget={"url": url}, validation="off")).metrics == {}
