"""A private val split in a whole run: what is released, what is charged, and what is refused."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from mlflow.tracking import MlflowClient

import dptrain
from dptrain import BudgetError, BudgetLedger, ConfigError, DataError, PrivacyError, PrivacyPlan
from dptrain.commands import main as commands
from dptrain.detection.data import DetectionDataset, load_data
from dptrain.detection.estimates import NOISED_KEYS, SD_KEYS
from dptrain.privacy import noise
from dptrain.privacy.counts import ReleasePlan
from dptrain.privacy.exact import SENSITIVITY
from dptrain.run import job as run_module
from dptrain.run import private_validation
from dptrain.statement import check_statement

from ..conftest import MakeDataset, dataset_maker, run_options

PLAN = PrivacyPlan(0.5, 4, 1.0, 1.0, 1e-3, 3)
VAL = {"epsilon": 4.0, "dataset_size": 100}
DELTA = 100**-1.1


def options(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    usual = {
        "plan": PLAN,
        "validation": "private",
        "validation_privacy": VAL,
        "tracking": {"enabled": False},
        "budget": {"url": f"sqlite:///{tmp_path / 'budget.db'}"},
    }
    return run_options(tmp_path, **{**usual, **changes})


def ledger_of(tmp_path: Path) -> BudgetLedger:
    return BudgetLedger(f"sqlite:///{tmp_path / 'budget.db'}")


def of_val(tmp_path: Path) -> Any:
    """What the ledger says of the val images."""
    return next(reading for reading in ledger_of(tmp_path).show() if reading.name.endswith("-val"))


def test_a_run_releases_noised_metrics_once_and_charges_the_val_images(
    make_dataset: MakeDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracking = {"uri": f"sqlite:///{tmp_path / 'mlflow.db'}", "experiment": "test"}
    result = dptrain.train(data=make_dataset(), **options(tmp_path, tracking=tracking))
    section = result.statement["validation_release"]
    plan = ReleasePlan.calibrate(epsilon=4.0, delta=DELTA)
    assert (section["epsilon"], section["delta"]) == (plan.epsilon(), DELTA)
    assert (section["releases"], section["planned_releases"]) == (1, 1)
    assert section["dataset"] == {"name": f"{tmp_path.name}-val", "declared_size": 100}
    assert result.statement["guarantee"]["epsilon"] == PLAN.epsilon(), "the training images' own is another"
    assert set(result.metrics) == {*NOISED_KEYS, *SD_KEYS}
    assert of_val(tmp_path).epsilon == pytest.approx(plan.epsilon())
    assert {reading.runs for reading in ledger_of(tmp_path).show()} == {1}
    (run,) = MlflowClient(tracking["uri"]).search_runs(["1"])
    assert {key for key in run.data.metrics if not key.startswith("dp/")} == {*NOISED_KEYS, *SD_KEYS}
    assert run.data.tags["dptrain.validation"] == "private"
    said = capsys.readouterr().out
    assert "validation=private: 1 noised evaluation of the val split" in said
    assert "(noised" in said
    checked = check_statement(tmp_path / "out").statement
    assert checked["validation_release"] == section
    page = (tmp_path / "out/statement.md").read_text()
    assert "Private validation split" in page
    assert "carries no noise" not in page
    assert not (tmp_path / "out/per_class.csv").exists()


def test_every_evaluation_is_planned_and_paid_for(make_dataset: MakeDataset, tmp_path: Path) -> None:
    result = dptrain.train(data=make_dataset(), **options(tmp_path, evaluate_every=2))
    section = result.statement["validation_release"]
    assert (section["releases"], section["planned_releases"]) == (2, 2)
    assert section["noise_multiplier"] == ReleasePlan.calibrate(epsilon=4.0, delta=DELTA, releases=2).noise_multiplier
    assert len((tmp_path / "out/results.csv").read_text().splitlines()) == 3
    assert of_val(tmp_path).epsilon == pytest.approx(section["epsilon"])


def counted(patch: pytest.MonkeyPatch) -> list[tuple[Any, float, float]]:
    """Collect what passes the door as counts: the sum, the sensitivity and the noise multiplier."""
    passed: list[tuple[Any, float, float]] = []
    real = noise.privatize

    def door(value: Any, **stated: Any) -> Any:
        if "counts" in value:
            passed.append((value["counts"].clone(), stated["sensitivity"], stated["noise_multiplier"]))
        return real(value, **stated)

    patch.setattr(noise, "privatize", door)
    return passed


def test_what_is_noised_is_what_is_accounted(
    make_dataset: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed = counted(monkeypatch)
    result = dptrain.train(data=make_dataset(), **options(tmp_path, evaluate_every=1))
    section = result.statement["validation_release"]
    assert len(passed) == section["planned_releases"] == 4
    assert {(sensitivity, multiplier) for _, sensitivity, multiplier in passed} == {
        (SENSITIVITY, section["noise_multiplier"])
    }


@pytest.mark.parametrize("end", [KeyboardInterrupt, RuntimeError])
def test_a_release_that_was_cut_short_stays_spent_and_is_not_made_again(
    make_dataset: MakeDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    end: type[BaseException],
) -> None:
    data, passed = make_dataset(), counted(monkeypatch)
    real = private_validation.evaluate_noised

    def dies(*args: Any, **kwargs: Any) -> Any:
        real(*args, **kwargs)
        raise end

    with monkeypatch.context() as patch, pytest.raises(end):
        patch.setattr(private_validation, "evaluate_noised", dies)
        dptrain.train(data=data, **options(tmp_path, evaluate_every=2))
    assert (tmp_path / "out/releases.journal").stat().st_size == 1
    with caplog.at_level(logging.WARNING):
        result = dptrain.train(data=data, **options(tmp_path, evaluate_every=2, resume=True))
    section = result.statement["validation_release"]
    assert (section["releases"], section["planned_releases"], len(passed)) == (2, 2, 2)
    assert of_val(tmp_path).epsilon == pytest.approx(section["epsilon"])
    assert of_val(tmp_path).runs == 1
    assert len((tmp_path / "out/results.csv").read_text().splitlines()) == 2, "the second one alone is told"


def test_a_run_that_stops_before_its_evaluation_gives_back_what_it_did_not_release(
    make_dataset: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_dataset()
    taken = run_module.Progress.update

    def stop_at_two(self: Any, step: int) -> None:
        taken(self, step)
        if step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run_module.Progress, "update", stop_at_two)
        dptrain.train(data=data, **options(tmp_path))
    assert of_val(tmp_path).epsilon_charged == 0
    result = dptrain.train(data=data, **options(tmp_path, resume=True))
    assert of_val(tmp_path).epsilon == pytest.approx(result.statement["validation_release"]["epsilon"])
    assert of_val(tmp_path).runs == 1


def test_a_copy_of_the_folder_makes_no_release_of_its_own(
    make_dataset: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copied before the evaluation; the original goes on and releases, and the copy may not."""
    data, passed = make_dataset(), counted(monkeypatch)
    taken = run_module.Progress.update

    def stop_at_two(self: Any, step: int) -> None:
        taken(self, step)
        if step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run_module.Progress, "update", stop_at_two)
        dptrain.train(data=data, **options(tmp_path))
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    dptrain.train(data=data, **options(tmp_path, resume=True))
    with pytest.raises(BudgetError, match="continued elsewhere"):
        dptrain.train(data=data, **options(tmp_path, resume=True, output_dir=str(tmp_path / "copy")))
    assert len(passed) == 1


def test_a_count_of_releases_that_is_gone_ends_the_resume(
    make_dataset: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_dataset()
    taken = run_module.Progress.update

    def stop_at_two(self: Any, step: int) -> None:
        taken(self, step)
        if step == 2:
            raise KeyboardInterrupt

    unrecorded = options(tmp_path, budget={"url": None})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run_module.Progress, "update", stop_at_two)
        dptrain.train(data=data, **unrecorded)
    (tmp_path / "out/releases.journal").unlink()
    with pytest.raises(PrivacyError, match=r"releases\.journal is gone"):
        dptrain.train(data=data, **unrecorded, resume=True)


def test_the_charge_is_reserved_before_a_val_image_is_evaluated_on(make_dataset: MakeDataset, tmp_path: Path) -> None:
    """A budget without room for the val images stops the run before its first step, and costs nothing."""
    data = make_dataset()
    ledger = ledger_of(tmp_path)
    ledger.create("scans", epsilon=1.0, delta=1e-3, manifest=ledger.manifest(load_data(data).val))
    with pytest.raises(BudgetError, match=r"of the val images \(validation=private\): 1 step .* do not fit"):
        dptrain.train(data=data, **options(tmp_path))
    assert {reading.name: reading.epsilon_charged for reading in ledger.show()}["scans"] == 0
    assert all(reading.epsilon_charged == 0 for reading in ledger.show())
    assert not (tmp_path / "out").exists()
    fits = {"epsilon": 0.5, "dataset_size": 1000, "budget": "scans"}
    result = dptrain.train(data=data, **options(tmp_path, validation_privacy=fits))
    assert result.statement["validation_release"]["budget"]["limit"] == 1.0


def test_val_images_that_were_trained_on_elsewhere_add_up_with_that(make_dataset: MakeDataset, tmp_path: Path) -> None:
    """The ledger knows a picture by its pixels: what its training and its evaluation cost composes."""
    data = make_dataset()
    for split in ("images", "labels"):
        shutil.copytree(tmp_path / split / "val", tmp_path / "other" / split / "train")
    (tmp_path / "other/data.yaml").write_text("train: images/train\nnames: [green, blue]\n")
    other = options(tmp_path, validation="off", validation_privacy={}, output_dir=str(tmp_path / "first"))
    dptrain.train(data=tmp_path / "other/data.yaml", **other)
    dptrain.train(data=data, **options(tmp_path))
    both = next(reading for reading in ledger_of(tmp_path).show() if reading.name == "other")
    assert both.runs == 2
    assert both.epsilon > max(PLAN.epsilon(), 4.0)


def test_private_val_images_are_public_to_no_later_run(make_dataset: MakeDataset, tmp_path: Path) -> None:
    data = make_dataset()
    dptrain.train(data=data, **options(tmp_path))
    later = options(tmp_path, validation="public", validation_privacy={}, output_dir=str(tmp_path / "later"))
    with pytest.raises(PrivacyError, match="is one of the val images, which are used without noise, and the ledger"):
        dptrain.train(data=data, **later)


def test_a_val_image_that_is_a_training_image_is_refused(make_dataset: MakeDataset, tmp_path: Path) -> None:
    data = make_dataset()
    picture = cv2.imread(str(tmp_path / "images/train/001.png"))
    cv2.imwrite(str(tmp_path / "images/val/009.png"), picture[:, ::-1])
    with pytest.raises(DataError, match="is a training image and one of the val images"):
        dptrain.train(data=data, **options(tmp_path))


def test_one_photo_twice_in_val_is_refused_or_one_unit(make_dataset: MakeDataset, tmp_path: Path) -> None:
    data = make_dataset()
    for split, suffix in (("images", "png"), ("labels", "txt")):
        shutil.copy(tmp_path / split / f"val/001.{suffix}", tmp_path / split / f"val/009.{suffix}")
    with pytest.raises(DataError, match=r"is the same picture as .*validation=private"):
        dptrain.train(data=data, **options(tmp_path))
    loaded = load_data(data)
    together = settled(data, tmp_path, privacy={**vars(plan_privacy()), "same_picture": "one_unit"})
    private = private_validation.prepare_private(together, ReleasePlan(1.0, 1, 1e-3), loaded, {}, None, "pets")
    assert len(private.units) == len(loaded.val) - 1


def plan_privacy() -> Any:
    from dptrain.settings.schema import PrivacyConfig

    return PrivacyConfig(noise_multiplier=1.0, dataset_size=6, expected_batch_size=3)


def settled(data: Path, tmp_path: Path, **changes: Any) -> Any:
    from dptrain.settings import resolve

    given = {**options(tmp_path), **changes}
    del given["plan"]
    config = resolve.resolve(resolve.from_kwargs(data=str(data), steps=4, **given))
    return resolve.with_plan(config, resolve.make_plan(config))


def test_the_images_that_clipping_is_scaled_by_are_no_private_val_images(
    make_dataset: MakeDataset, tmp_path: Path
) -> None:
    data = make_dataset(val=5)
    (tmp_path / "scales.yaml").write_text("train: images/val\nnames: [green, blue]\n")
    scaled = {"privacy": {"clipping": "scaled", "clip_scales": str(tmp_path / "scales.yaml")}}
    plan = PrivacyPlan(0.5, 4, 1.0, 1.0, 1e-3, 3, clipping=dptrain.Clipping("scaled"))
    with pytest.raises(DataError, match=r"is a private val image and one of the images of privacy\.clip_scales"):
        dptrain.train(data=data, **options(tmp_path, plan=plan, **scaled))


def test_the_start_was_not_made_of_private_val_images(make_dataset: MakeDataset, tmp_path: Path) -> None:
    data = make_dataset()
    with pytest.raises(DataError, match="is a private val image and one of public_images"):
        dptrain.train(data=data, **options(tmp_path, public_images=str(tmp_path / "images/val")))


def test_clipping_is_flat_for_no_scale_is_measured_on_a_private_val_split(
    make_dataset: MakeDataset, tmp_path: Path
) -> None:
    data = make_dataset()
    given = options(tmp_path, privacy={"noise_multiplier": 1.0, "dataset_size": 6, "expected_batch_size": 3}, steps=4)
    del given["plan"]
    result = dptrain.train(data=data, **given)
    assert result.plan.clipping.name == "flat"


def fixed(patch: pytest.MonkeyPatch) -> None:
    """Fix what comes out of the door, whatever goes in, and the draws."""

    def door(value: Any, **stated: Any) -> Any:
        generator = torch.Generator().manual_seed(len(value))
        drawn = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in value.items()}
        if "counts" in value:
            return {name: (5 * SENSITIVITY * tensor).long() for name, tensor in drawn.items()}
        return drawn

    patch.setattr(noise, "privatize", door)


def published(folder: Path) -> dict[str, bytes]:
    """What a run leaves outside of the owner's folder."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and "owner" not in file.parts and file.suffix != ".pt"
    }


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "images/val/002.png").unlink(),
        lambda root: (root / "labels/val/001.txt").write_text("\n".join(["0 0.5 0.5 0.2 0.2"] * 1)),
        lambda root: (root / "labels/val/002.txt").write_text(
            "\n".join(f"1 0.5 0.5 0.2 {0.1 + i * 1e-5:.6f}" for i in range(2000))
        ),
        lambda root: cv2.imwrite(str(root / "images/val/077.png"), 255 - cv2.imread(str(root / "images/val/000.png"))),
    ],
    ids=["one image less", "another label", "2,000 boxes", "one image more"],
)
def test_with_the_door_fixed_no_val_image_changes_what_is_published(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, change: Any
) -> None:
    found = []
    fixed(monkeypatch)
    for name, put in (("one", None), ("other", change)):
        where = tmp_path / name
        (where / "pets").mkdir(parents=True)
        data = dataset_maker(where / "pets")(train=6, val=4)
        if put is not None:
            put(where / "pets")
        monkeypatch.chdir(where)
        given = options(Path(), budget={"url": "sqlite:///budget.db"}, seed=3, output_dir="out")
        dptrain.train(data=data.relative_to(where), **given)
        found.append((published(Path("out")), capsys.readouterr().out))
    assert found[0][1] == found[1][1], "the screen"
    assert found[0][0] == found[1][0]
    assert "results.csv" in found[0][0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"validation_privacy": {}},
            r"nothing says how much the val images may lose: give validation_privacy\.epsilon",
        ),
        ({"validation_privacy": {"epsilon": 1.0}}, r"validation_privacy\.delta is not set"),
        ({"validation_privacy": {**VAL, "noise_multiplier": 1.0}}, "say the same twice"),
        ({"validation_privacy": {"epsilon": -1.0, "dataset_size": 9}}, r"validation_privacy\.epsilon=-1\.0 must be"),
        ({"validation_privacy": {"epsilon": 1.0, "dataset_size": 0}}, r"validation_privacy\.dataset_size=0 must be"),
        ({"validation_privacy": {"epsilon": 1.0, "delta": 1.0}}, r"validation_privacy\.delta=1\.0 must be"),
        ({"validation": "public"}, r"validation_privacy\.epsilon=4\.0 is of validation=private"),
        ({"validation": "secret"}, "validation=secret is not one of public, private, off"),
    ],
)
def test_settings_that_leave_a_doubt_are_refused_by_name(
    make_dataset: MakeDataset, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        dptrain.train(data=make_dataset(), **options(tmp_path, **changes))
    assert not (tmp_path / "out").exists()


def test_people_are_refused_since_one_may_be_in_many_val_pictures(make_dataset: MakeDataset, tmp_path: Path) -> None:
    (tmp_path / "people.csv").write_text("file,person\n")
    plan = PrivacyPlan(0.5, 4, 1.0, 1.0, 1e-3, 3, unit="person")
    privacy = {"groups": {"csv": str(tmp_path / "people.csv")}}
    with pytest.raises(ConfigError, match=r"validation=private with privacy\.unit=person"):
        dptrain.train(data=make_dataset(), **options(tmp_path, plan=plan, privacy=privacy))


def test_a_private_val_split_that_is_not_there_is_refused(make_dataset: MakeDataset, tmp_path: Path) -> None:
    data = make_dataset()
    data.write_text("train: images/train\nnames: [green, blue]\n")
    with pytest.raises(ConfigError, match=r"validation=private, and .* has no val split"):
        dptrain.train(data=data, **options(tmp_path))


def test_the_number_of_val_images_is_never_taken_from_the_folder(make_dataset: MakeDataset, tmp_path: Path) -> None:
    result = dptrain.train(data=make_dataset(val=7), **options(tmp_path))
    assert result.statement["validation_release"]["dataset"]["declared_size"] == 100
    assert '"7"' not in json.dumps(result.statement["validation_release"])


def test_groups_are_protected_as_one(make_dataset: MakeDataset, tmp_path: Path) -> None:
    data = make_dataset(train=6, val=6)
    rows = [f"train/{n:03}.png,patient{n // 2}" for n in range(6)] + [f"val/{n:03}.png,other{n // 3}" for n in range(6)]
    (tmp_path / "groups.csv").write_text("\n".join(["image,group", *rows]))
    privacy = {"groups": {"csv": str(tmp_path / "groups.csv")}}
    plan = PrivacyPlan(0.5, 4, 1.0, 1.0, 1e-3, 3, unit="group")
    result = dptrain.train(data=data, **options(tmp_path, plan=plan, privacy=privacy))
    section = result.statement["validation_release"]
    assert section["unit"] == "group"
    assert of_val(tmp_path).unit == "group"


def test_a_statement_that_claims_less_for_the_val_images_is_refused(make_dataset: MakeDataset, tmp_path: Path) -> None:
    from dptrain.statement.facts import sealed

    dptrain.train(data=make_dataset(), **options(tmp_path))
    written = json.loads((tmp_path / "out/statement.json").read_text())
    section = written["validation_release"]
    for change, words in (
        ({"epsilon": section["epsilon"] - 0.5}, r"validation_release\.epsilon=.* is below"),
        ({"epsilon_pld": 0.1}, r"validation_release\.epsilon_pld=.* is below"),
        ({"planned_releases": 9}, r"validation_release\.epsilon=.* is below"),
        ({"releases": 3}, r"releases=3 is above planned_releases=1"),
        ({"mechanism": "none"}, r"validation_release\.mechanism='none' is not what dptrain does"),
    ):
        forged = sealed({**written, "validation_release": {**section, **change}})
        for place in (tmp_path / "out/statement.json", tmp_path / "out/weights/statement.json"):
            place.write_text(json.dumps(forged))
        with pytest.raises(PrivacyError, match=words):
            check_statement(tmp_path / "out")


def test_settling_a_killed_run_settles_its_releases_too(
    make_dataset: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was reserved and may have been released stays charged; the others become free."""
    data = make_dataset()
    real = private_validation.PrivateValidation.evaluate

    def dies(self: Any, model: Any, number: int, device: Any) -> Any:
        if number == 2:
            raise SystemExit
        return real(self, model, number, device)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(private_validation.PrivateValidation, "evaluate", dies)
        patch.setattr(private_validation.PrivateValidation, "close", lambda self, reason: self._journal.close() or True)
        dptrain.train(data=data, **options(tmp_path, evaluate_every=1))
    assert of_val(tmp_path).open_runs == 1
    assert commands.main(["budget", "settle", str(tmp_path / "out")]) in (0, None)
    assert "1 of 4 evaluations on its private val split are charged" in capsys.readouterr().out
    assert of_val(tmp_path).open_runs == 0


def test_sweeps_tunings_and_rounds_refuse_it(make_dataset: MakeDataset, tmp_path: Path) -> None:
    tuned = {"tuning": {"method": "random_stopping", "search": {"optimizer.lr": [0.1, 0.2]}}}
    with pytest.raises(ConfigError, match=r"validation=private with tuning\.method=random_stopping"):
        dptrain.train(data=make_dataset(), **options(tmp_path, **tuned))


def test_who_named_nothing_is_told_which_of_the_three_holds(
    make_dataset: MakeDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = options(tmp_path, validation=None, validation_privacy={})
    assert dptrain.train(data=make_dataset(), **given).statement["validation"].startswith("treated as public")
    assert "validation=public: the metrics of the val split are released without noise" in capsys.readouterr().out


def test_a_split_that_is_evaluated_on_is_the_one_that_was_charged(make_dataset: MakeDataset, tmp_path: Path) -> None:
    data = make_dataset()
    loaded = load_data(data)
    config = settled(data, tmp_path, privacy=vars(plan_privacy()))
    private = private_validation.prepare_private(config, ReleasePlan(1.0, 1, 1e-3), loaded, {}, None, "pets")
    assert list(private.charge.pictures) == list(DetectionDataset(loaded, "val", 64).image_files)
