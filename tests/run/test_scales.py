"""The clip rule that nobody gave: scaled by a val split that is public and has boxes, else flat."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dptrain
import dptrain.detection.scales
import dptrain.run.job
import dptrain.run.scales
from dptrain import Clipping, ConfigError, DataError, PrivacyError, PrivacyPlan
from dptrain.detection import load_model, save_weights
from dptrain.detection.centring import centre_inputs
from dptrain.detection.data import DetectionDataset, load_data
from dptrain.detection.loss import PerImageLoss, one2many_weight
from dptrain.detection.scales import layer_scales
from dptrain.detection.trainable import set_trainable
from dptrain.run.prepare import Prepared, prepare
from dptrain.run.tuning import plan_tuning
from dptrain.settings import resolve as settings
from dptrain.statement import check_statement

from ..conftest import SMALL, MakeDataset, dataset_maker, run_options

PUBLIC = {"noise_multiplier": 1.0, "delta": 1e-3, "sample_rate": 0.5, "expected_batch_size": 3}


def options(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    given = {"privacy": PUBLIC, "steps": 4, "evaluate_every": 2, "tracking": {"enabled": False}}
    return run_options(tmp_path, **{**given, "budget": {"url": None}, **changes})


def prepared(data: Path, tmp_path: Path, **changes: Any) -> Prepared:
    config = settings.resolve(settings.from_kwargs(data=str(data), **options(tmp_path, **changes)))
    plan = settings.make_plan(config)
    return prepare(settings.with_plan(config, plan), plan)


@contextmanager
def unmeasured() -> Iterator[None]:
    def fails(*_: Any) -> None:
        raise AssertionError("scales were measured")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dptrain.run.scales, "layer_scales", fails)
        yield


def start_of(tmp_path: Path) -> Path:
    start = tmp_path / "start.pt"
    save_weights(load_model(SMALL, 2), start)
    return start


def relabel(data: Path, text: str = "1 0.5 0.5 0.5 0.5") -> None:
    for file in (data.parent / "labels" / "val").glob("*.txt"):
        file.write_text(text)


def stopped_at_two(**given: Any) -> None:
    def fails(run: dptrain.run.job.Run, status: str) -> None:
        raise RuntimeError(f"step {run.trainer.step}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dptrain.run.job.Run, "_write_statement", fails)
        with pytest.raises(RuntimeError, match="step 2"):
            dptrain.train(**given)


def test_a_public_val_split_gives_the_scales_by_default(
    make_dataset: MakeDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In plan, statement, settings and checkpoint; what is accounted is what flat clipping costs."""
    result = dptrain.train(data=make_dataset(), **options(tmp_path))
    clipping = result.plan.clipping
    assert clipping.name == "scaled" and len({scale for _, scale in clipping.scales}) > 2
    flat = PrivacyPlan(0.5, 4, 1.0, 1.0, 1e-3, 3)
    assert dataclasses.replace(result.plan, clipping=Clipping()) == flat
    assert result.epsilon == flat.epsilon() and result.plan.event() == flat.event()
    said = check_statement(result.output_dir).statement
    assert said["mechanism"]["clip_rule"] == clipping.to_dict()
    assert said["public_data"]["clip_scales"] == {
        "data": f"the val split of {tmp_path.name}, which validation=public declares public",
        "images": 3, "compared": "no ledger (budget.url=null)",
    }  # fmt: skip
    assert "its images and labels gave clipping one number a layer" in said["validation"]
    assert any("scales were measured on are public" in line for line in said["assumptions"])
    page = (result.output_dir / "statement.md").read_text()
    assert "3 public images of the val split" in page and "declares public" in page
    written = json.loads((result.output_dir / "settings.json").read_text())
    assert (written["privacy"]["clipping"], written["privacy"]["clip_scales"]) == ("scaled", "val")
    kept = torch.load(result.output_dir / "checkpoint.pt", weights_only=True)["plan"]
    assert PrivacyPlan.from_dict(kept) == result.plan
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "layers are scaled" in line] == [
        "layers are scaled by their gradients on 3 images of the val split; privacy.clipping=flat turns it off"
    ]


def test_no_training_image_changes_a_scale(tmp_path: Path) -> None:
    """One more training image, or other boxes in all of them: the same plan, which is that of the val images."""
    start, plans = start_of(tmp_path), []
    for number, (count, boxes) in enumerate(((6, None), (7, None), (6, "0 0.3 0.3 0.2 0.2"))):
        folder = tmp_path / str(number)
        data = dataset_maker(folder)(train=count)
        for file in (folder / "labels" / "train").glob("*.txt") if boxes else ():
            file.write_text(str(boxes))
        made = prepared(data, folder, model=str(start))
        plans.append(made.plan)
        assert len(made.pictures) == count
    assert plans[0] == plans[1] == plans[2]
    model = load_model(start, 2, names={0: "green", 1: "blue"})
    set_trainable(model, "head")
    centre_inputs(model)
    val = DetectionDataset(load_data(data), "val", 64)
    assert plans[0].clipping.scales == layer_scales(model, PerImageLoss(one2many_weight(0.5)), val)


def test_at_most_so_many_val_images_are_measured(
    make_dataset: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dptrain.detection.scales, "IMAGES", 2)
    made = prepared(make_dataset(val=5), tmp_path)
    assert made.scaled_by is not None and made.scaled_by.images == 2


def test_without_public_boxes_clipping_is_flat(tmp_path: Path) -> None:
    def without_val(data: Path) -> None:
        data.write_text("train: images/train\nnames: [green, blue]\n")

    cases: dict[str, tuple[Any, dict[str, Any]]] = {
        "off": (None, {"validation": "off"}),
        "no split": (without_val, {}),
        "no boxes": (lambda data: relabel(data, ""), {}),
        "adapters": (None, {"trainable": ["lora", "norm_and_bias"]}),
        "asked": (None, {"privacy": {**PUBLIC, "clipping": "flat"}}),
    }
    for name, (change, given) in cases.items():
        folder = tmp_path / name
        data = dataset_maker(folder)()
        if change is not None:
            change(data)
        with unmeasured():
            made = prepared(data, folder, **given)
        assert made.plan.clipping == Clipping() and made.scaled_by is None, name
        assert made.settings()["privacy"]["clipping"] == made.config.privacy.clipping == "flat", name


def test_a_val_image_that_is_private_is_refused_before_a_scale_is_measured(tmp_path: Path) -> None:
    data = dataset_maker(tmp_path / "a")()
    images = data.parent / "images"
    shutil.copy(images / "train" / "002.png", images / "val" / "other.png")
    with unmeasured(), pytest.raises(DataError, match="is a training image and one of the val images"):
        dptrain.train(data=data, **options(tmp_path))
    theirs, ours = dataset_maker(tmp_path / "b")(seed=5), dataset_maker(tmp_path / "c")(seed=6)
    budget = {"url": f"sqlite:///{tmp_path / 'budget.db'}"}
    dptrain.train(data=theirs, **options(tmp_path, budget=budget, validation="off", evaluate_every=None))
    shutil.copy(theirs.parent / "images" / "train" / "001.png", ours.parent / "images" / "val" / "other.png")
    with unmeasured(), pytest.raises(PrivacyError, match=r"other\.png: is one of the val images.* protects it"):
        dptrain.train(data=ours, **options(tmp_path, budget=budget, output_dir=str(tmp_path / "two")))
    assert not (tmp_path / "two").exists()


def test_a_resumed_run_keeps_its_scales_whatever_became_of_the_val_labels(tmp_path: Path) -> None:
    """From a random start, which is gone; measured anew, the scales would be others."""
    data = dataset_maker(tmp_path)()
    stopped_at_two(data=data, **options(tmp_path))
    before = torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)["plan"]
    relabel(data)
    with unmeasured():
        result = dptrain.train(data=data, **options(tmp_path, resume=True))
    assert result.plan == PrivacyPlan.from_dict(before) and result.plan.clipping.name == "scaled"
    assert check_statement(result.output_dir).statement["mechanism"]["steps"] == 4


def test_a_run_is_resumed_only_with_the_val_images_that_its_scales_were_measured_on(tmp_path: Path) -> None:
    """One that has left val may be a training image by now, and nothing would compare it."""
    data = dataset_maker(tmp_path)()
    stopped_at_two(data=data, **options(tmp_path))
    split = {kind: data.parent / kind for kind in ("images", "labels")}
    for kind, suffix in (("images", "png"), ("labels", "txt")):
        shutil.move(split[kind] / "val" / f"002.{suffix}", split[kind] / "train" / f"joined.{suffix}")
    with pytest.raises(PrivacyError, match=r"scales_of_pictures_sha256=.*: not the settings of the run"):
        dptrain.train(data=data, **options(tmp_path, resume=True))
    for kind, suffix in (("images", "png"), ("labels", "txt")):
        shutil.move(split[kind] / "train" / f"joined.{suffix}", split[kind] / "val" / f"002.{suffix}")
    assert dptrain.train(data=data, **options(tmp_path, resume=True)).plan.clipping.name == "scaled"


@pytest.mark.parametrize("rule", [Clipping(), Clipping("automatic"), Clipping("groups", ("model.4.cv2*",))])
def test_a_plan_keeps_its_rule(rule: Clipping, make_dataset: MakeDataset, tmp_path: Path) -> None:
    plan = PrivacyPlan(0.5, 2, 1.0, 1.0, 1e-3, 3, clipping=rule)
    with unmeasured():
        result = dptrain.train(data=make_dataset(), **options(tmp_path, plan=plan, privacy={}, steps=2))
    assert result.plan == plan
    assert result.statement["mechanism"]["clip_rule"] == rule.to_dict()


def test_the_candidates_of_a_tuning_are_scaled_by_the_val_split_that_scores_them(tmp_path: Path) -> None:
    search = {"privacy.clipping": ["auto", "automatic"], "optimizer.lr": [1e-3]}
    tuning = {"method": "random_stopping", "mean_runs": 1.01, "search": search}
    given = options(tmp_path, data=str(dataset_maker(tmp_path)()), tuning=tuning)
    made = plan_tuning(settings.resolve(settings.from_kwargs(**given)))
    assert [candidate.privacy.clipping for candidate in made.candidates] == ["auto", "automatic"]
    search["privacy.clipping"] = ["auto"]
    result = dptrain.train(**given)
    assert result.plan.clipping.name == "scaled" and result.epsilon == made.epsilon
    said = check_statement(result.output_dir).statement
    assert said["mechanism"]["clip_rule"] == result.plan.clipping.to_dict()
    assert "they chose the run; its images and labels gave clipping" in said["validation"]


def test_a_plan_may_ask_for_the_val_split_by_name(tmp_path: Path) -> None:
    data = dataset_maker(tmp_path)()
    plan = PrivacyPlan(0.5, 4, 1.0, 1.0, 1e-3, 3, clipping=Clipping("scaled"))
    given = options(tmp_path, plan=plan, privacy={"clip_scales": "val"}, model=str(start_of(tmp_path)))
    made = prepared(data, tmp_path, model=given["model"])
    result = dptrain.train(data=data, **given)
    assert result.plan == made.plan
    with unmeasured(), pytest.raises(ConfigError, match=r"clip_scales=val .*validation=off does not declare it public"):
        dptrain.train(data=data, **{**given, "validation": "off"})
    other = {**given, "output_dir": str(tmp_path / "other")}
    relabel(data, "")
    with unmeasured(), pytest.raises(ConfigError, match=r"clip_scales=val and data=.*: none of the val images"):
        dptrain.train(data=data, **other)
    data.write_text("train: images/train\nnames: [green, blue]\n")
    with unmeasured(), pytest.raises(ConfigError, match=r"clip_scales=val and data=.*: there is no val split"):
        dptrain.train(data=data, **other)
    assert not (tmp_path / "other").exists()


def test_val_images_without_a_gradient_are_refused_in_one_line(
    make_dataset: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(*_: Any) -> dict[str, torch.Tensor]:
        return {"model.0.weight": torch.from_numpy(np.full((1, 2), np.nan, np.float32))}

    monkeypatch.setattr(dptrain.detection.scales, "per_sample_gradients", nothing)
    monkeypatch.setattr(dptrain.detection.scales, "trainable_parameters", lambda _: {"model.0.weight": torch.ones(2)})
    with pytest.raises(DataError, match=r"none of the 3 public images .*\(val of .*or set privacy\.clipping=flat"):
        prepared(make_dataset(), tmp_path)
