"""The same picture twice in a training split starts no run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch

import dptrain
from dptrain import ConfigError, DataError, PrivacyPlan
from dptrain.datasets.identity import pictures_in
from dptrain.datasets.images import read_image
from dptrain.datasets.repeats import refuse_repeats
from dptrain.privacy import noise
from dptrain.sealing.keys import new_identity
from dptrain.settings import resolve as settings
from dptrain.toolbox.seal import seal

from ..conftest import MakeDataset, run_options
from .turned import copies, views

PLAN = PrivacyPlan(0.5, 2, 1.0, 1.0, 1e-3, 3)


def test_every_copy_of_a_training_image_is_found_however_it_is_turned(make_dataset: MakeDataset) -> None:
    train = sorted((make_dataset().parent / "images" / "train").iterdir())
    refuse_repeats(pictures_in(train))
    for copy in copies(train[2], train[0].parent / "deep"):
        with pytest.raises(DataError, match=rf"{copy.name}: is the same picture as .*002\.png.*check --json lists"):
            refuse_repeats(pictures_in([*train, copy]))


def test_the_first_two_files_are_named_and_the_others_counted() -> None:
    found = {Path(name): name[:1].encode() for name in ("a", "b", "b2", "a2", "c", "b3")}
    with pytest.raises(DataError, match=r"b2: is the same picture as b, .* \(and 2 more files like it\)") as caught:
        refuse_repeats(found)
    assert "\n" not in str(caught.value)
    refuse_repeats(found, ["p", "q", "q", "p", "p", "q"])  # one group's copies are one unit
    with pytest.raises(DataError, match=r"b3: .* and they are in groups 'p' and 'q'"):
        refuse_repeats(found, ["p", "q", "q", "p", "p", "p"])


def turned_copy(data: Path) -> None:
    picture = read_image(data.parent / "images" / "train" / "001.png")
    assert cv2.imwrite(str(data.parent / "images" / "train" / "again.bmp"), cv2.rotate(picture, cv2.ROTATE_180))


@pytest.mark.parametrize("how", ["ledger", "no ledger", "tuning", "sealed"])
def test_one_photo_twice_starts_no_run(
    make_dataset: MakeDataset, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_dataset()
    turned_copy(data)
    more: dict[str, Any] = {"data": data, "budget": {"url": None}}
    if how == "ledger":
        more["budget"] = {"url": f"sqlite:///{tmp_path / 'budget.db'}"}
    elif how == "tuning":
        more["tuning"] = {"method": "random_stopping", "search": {"optimizer.lr": [1e-3, 3e-3]}}
    elif how == "sealed":
        key = tmp_path / "key.txt"
        more["data"] = seal(data, tmp_path / "pets.seal", recipients=[new_identity(key)])
        more["seal"] = {"identity": str(key)}
    with pytest.raises(DataError, match=r"again\.bmp: is the same picture as .*001\.png, perhaps turned:"):
        dptrain.train(**run_options(tmp_path, plan=PLAN, tracking={"enabled": False}, **more))
    assert not (tmp_path / "out").exists()


def test_a_run_that_protects_groups_takes_copies_that_one_group_has(make_dataset: MakeDataset, tmp_path: Path) -> None:
    data = make_dataset()
    turned_copy(data)
    files = sorted((data.parent / "images" / "train").iterdir())
    for other in ("p1", "p3"):
        table = "".join(f"{file.name},p{number % 3}\n" for number, file in enumerate(files) if file.stem != "again")
        (tmp_path / "groups.csv").write_text(f"file,group\n{table}again.bmp,{other}\n")
        given = run_options(
            tmp_path,
            plan=PrivacyPlan(0.5, 2, 1.0, 1.0, 1e-3, 3, unit="group"),
            privacy={"groups": {"csv": str(tmp_path / "groups.csv"), "column": "group"}},
            data=data,
            validation="off",
            tracking={"enabled": False},
            budget={"url": None},
        )
        if other == "p1":
            assert dptrain.train(**given).statement["status"] == "finished"
            shutil.rmtree(tmp_path / "out")
        else:
            with pytest.raises(DataError, match=r"again\.bmp: is the same picture .* groups 'p3' and 'p1'"):
                dptrain.train(**given)


def test_copies_that_count_as_one_image_move_the_sum_by_one_clip_norm(
    make_dataset: MakeDataset, tmp_path: Path
) -> None:
    """All of a picture's four files are there, or none. As four records they would move the sum by 4 C."""
    data = make_dataset()
    train = data.parent / "images" / "train"
    ledger = f"sqlite:///{tmp_path / 'budget.db'}"
    plan = PrivacyPlan(1.0, 1, 1.0, 1e-3, 1e-3, 3)
    sums: list[dict[str, torch.Tensor]] = []

    def door(value: dict[str, torch.Tensor], **_: Any) -> dict[str, torch.Tensor]:
        sums.append({name: tensor.clone() for name, tensor in value.items()})
        return value

    def train_on(name: str, **privacy: Any) -> dptrain.TrainResult:
        given = run_options(tmp_path, plan=plan, data=data, seed=3, output_dir=str(tmp_path / name), validation="off",
                            tracking={"enabled": False}, budget={"url": ledger}, privacy=privacy)  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(noise, "privatize", door)
            return dptrain.train(**given)

    newcomers = [train / "001.png", *(train / f"copy{number}.bmp" for number in range(3))]
    for file, view in zip(newcomers[1:], views(read_image(newcomers[0])), strict=False):
        assert cv2.imwrite(str(file), view)
    with_all = train_on("all", same_picture="one_unit").statement
    assert with_all["dataset"]["same_picture"] == "copies of one picture count as one image"
    for file in newcomers:
        file.unlink()
    train_on("none", same_picture="one_unit")
    moved = torch.cat([(sums[0][name] - sums[1][name]).flatten() for name in sums[0]]).norm()
    assert 0.9 * plan.clip_norm < float(moved) <= plan.clip_norm * (1 + 1e-4)


def test_copies_count_as_one_image_only_where_images_are_the_unit() -> None:
    with pytest.raises(ConfigError, match=r"privacy\.same_picture=one_unit has no effect with privacy\.unit=group"):
        settings.resolve(
            settings.from_kwargs(
                model="yolo26n.yaml", data="x.yaml", steps=2,
                privacy={"noise_multiplier": 1.0, "dataset_size": 9, "expected_batch_size": 3, "delta": 1e-3,
                         "unit": "group", "groups": {"folder": 1}, "same_picture": "one_unit"},
            )
        )  # fmt: skip
