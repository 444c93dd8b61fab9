"""A whole run, from files to statement: what it leaves behind, how it stops, and what it refuses."""

from __future__ import annotations

import csv
import dataclasses
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow.tracking import MlflowClient

import dptrain
import dptrain.run.job
from dptrain import Clipping, ConfigError, DataError, PrivacyPlan, TrackingError
from dptrain.detection import load_model, save_weights
from dptrain.detection.centring import centre_inputs
from dptrain.detection.data import DetectionDataset, load_data
from dptrain.detection.loss import PerImageLoss, one2many_weight
from dptrain.detection.scales import layer_scales
from dptrain.detection.trainable import set_trainable
from dptrain.statement import check_statement
from dptrain.statement.results import stock_name
from dptrain.training.checkpoint import CHECKPOINT_KEYS

from ..conftest import SMALL, MakeDataset, run_options

PLAN = PrivacyPlan(0.5, 4, 1.0, 1.0, 1e-3, 3)
METRICS = {f"metrics/{name}B" for name in ("precision", "recall", "mAP50", "mAP50-95")}
COMMAND = (sys.executable, "-m", "dptrain.commands.main", "train")
BUDGET = {"dp/epsilon", "dp/epsilon_pld", "dp/epsilon_claimed", "dp/delta"}


def options(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    return run_options(tmp_path, **{"plan": PLAN, "evaluate_every": 2, "tracking": {"enabled": False}, **changes})


def tracked(tmp_path: Path) -> dict[str, Any]:
    return {"tracking": {"uri": f"sqlite:///{tmp_path / 'mlflow.db'}", "experiment": "test"}}


def fingerprint(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        str(f): (hashlib.sha256(f.read_bytes()).hexdigest(), f.stat().st_mtime_ns)
        for f in folder.rglob("*")
        if f.is_file()
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[dptrain.TrainResult, Path]:
    """One finished run, in a working directory of its own."""
    tmp_path = tmp_path_factory.mktemp("run")
    data = make_dataset_at(tmp_path / "data")()
    before = fingerprint(tmp_path / "data")
    here = Path.cwd()
    os.chdir(tmp_path)
    try:
        result = dptrain.train(data=data, **options(tmp_path, model="yolo26n.yaml", **tracked(tmp_path)))
    finally:
        os.chdir(here)
    assert fingerprint(tmp_path / "data") == before, "the dataset's folder was written to"
    return result, tmp_path


def make_dataset_at(folder: Path) -> MakeDataset:
    from ..conftest import dataset_maker

    folder.mkdir()
    return dataset_maker(folder)


def test_result_is_what_the_plan_promised(finished: tuple[dptrain.TrainResult, Path]) -> None:
    result, _ = finished
    assert result.epsilon == PLAN.epsilon()
    assert set(result.metrics) == METRICS
    assert result.statement["guarantee"]["epsilon"] == PLAN.epsilon()
    assert result.statement["valid"] is True
    assert result.weights == result.output_dir / "weights" / "last.pt"


def test_the_folder_holds_what_was_announced_and_nothing_else(finished: tuple[dptrain.TrainResult, Path]) -> None:
    result, _ = finished
    files = {str(f.relative_to(result.output_dir)) for f in result.output_dir.rglob("*") if f.is_file()}
    assert files == {
        "README.txt", "checkpoint.pt", "config.yaml", "epsilon_vs_map.png", "mlflow_run", "owner/README.txt",
        "owner/budget.json", "owner/dataset_budget.json", "results.csv",
        "settings.json", "per_class.csv", "statement.html", "statement.json", "statement.md", "steps.journal",
        "weights/last.pt", "weights/last_raw.pt", "weights/statement.html", "weights/statement.json",
    }  # fmt: skip


def test_the_checkpoint_holds_the_whitelist_only(finished: tuple[dptrain.TrainResult, Path]) -> None:
    result, _ = finished
    payload = torch.load(result.output_dir / "checkpoint.pt", weights_only=True)
    assert set(payload) == set(CHECKPOINT_KEYS)


def test_results_and_mlflow_hold_the_same_public_numbers(finished: tuple[dptrain.TrainResult, Path]) -> None:
    """Every metric key is on this list: none is made of training images without noise."""
    result, tmp_path = finished
    with (result.output_dir / "results.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["step"]) for row in rows] == [0, 2, 4]
    assert set(rows[0]) == {"epoch", "step"} | {stock_name(key) for key in METRICS} | BUDGET
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    run = client.get_run((result.output_dir / "mlflow_run").read_text())
    assert run.info.status == "FINISHED"
    assert set(run.data.metrics) == METRICS | BUDGET
    for key in METRICS | BUDGET:
        history = {m.step: m.value for m in client.get_metric_history(run.info.run_id, key)}
        assert history == {int(row["step"]): pytest.approx(float(row[stock_name(key)])) for row in rows}
    assert [float(row["dp/epsilon"]) for row in rows] == [PLAN.epsilon(steps=k) for k in (0, 2, 4)]
    assert {float(row["dp/epsilon_claimed"]) for row in rows} == {PLAN.epsilon()}
    assert float(run.data.params["privacy.epsilon"]) == pytest.approx(PLAN.epsilon())
    assert run.data.tags["dptrain.sampler"] == "Poisson"
    artifacts = {f.path for f in client.list_artifacts(run.info.run_id)}
    assert artifacts == {
        "config.yaml", "epsilon_vs_map.png", "per_class.csv", "results.csv", "statement.html", "statement.json",
        "statement.md", "weights",
    }  # fmt: skip


def test_the_scales_of_a_run_are_of_public_images_stated_and_found_again(tmp_path: Path) -> None:
    """Two private datasets, the same scales; and a run that was cut resumes with what it began with.

    From a random start, which the resumed run has not, they are others than anew.
    """
    public = make_dataset_at(tmp_path / "public")(seed=9)
    start = tmp_path / "start.pt"
    save_weights(load_model(SMALL, 2), start)
    mechanisms = []
    for number in range(3):
        data = make_dataset_at(tmp_path / f"data{number}")(train=6 + number, seed=number)
        plan = dataclasses.replace(PLAN, clipping=Clipping("scaled"))
        given = options(
            tmp_path, plan=plan, output_dir=str(tmp_path / f"out{number}"), budget={"url": None},
            privacy={"clip_scales": str(public)}, **({"model": str(start)} if number else {}),
        )  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dptrain.run.job.Run, "_write_statement", fails_at(2))
            with pytest.raises(RuntimeError, match="step 2"):
                dptrain.train(data=data, **given)
        result = dptrain.train(data=data, **given, resume=True)
        assert result.epsilon == PLAN.epsilon()
        assert check_statement(result.output_dir).statement["guarantee"]["epsilon"] == PLAN.epsilon()
        assert any("scales were measured on are public" in line for line in result.statement["assumptions"])
        told = {"data": "public", "images": 6, "compared": "no ledger (budget.url=null)"}
        assert result.statement["public_data"]["clip_scales"] == told
        page = (result.output_dir / "statement.md").read_text()
        assert "6 public images of public" in page
        mechanisms.append(result.statement["mechanism"])
    scales = [mechanism["clip_rule"]["scales"] for mechanism in mechanisms]
    assert scales[0] != scales[1] == scales[2] and len({scale for _, scale in scales[1]}) > 2
    model = load_model(start, 2, names={0: "green", 1: "blue"})
    set_trainable(model, "head")
    centre_inputs(model)
    images = DetectionDataset(load_data(public), "train", 64)
    measured = layer_scales(model, PerImageLoss(one2many_weight(0.5)), images)
    assert scales[1] == [list(pair) for pair in measured]


def test_a_run_goes_on_only_with_scales_of_images_that_are_not_private_by_now(tmp_path: Path) -> None:
    """An image that joined the training split since the start was not among those compared then."""
    public, data = make_dataset_at(tmp_path / "public")(seed=9), make_dataset_at(tmp_path / "data")()
    given = options(
        tmp_path, plan=dataclasses.replace(PLAN, clipping=Clipping("scaled")), budget={"url": None},
        privacy={"clip_scales": str(public)}, data=data,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dptrain.run.job.Run, "_write_statement", fails_at(2))
        with pytest.raises(RuntimeError, match="step 2"):
            dptrain.train(**given)
    for kind, name in (("images", "002.png"), ("labels", "002.txt")):
        shutil.copy(public.parent / kind / "train" / name, data.parent / kind / "train" / f"joined{name[3:]}")
    with pytest.raises(dptrain.DptrainError, match=r"joined\.png: is a training image and one of the images of"):
        dptrain.train(**given, resume=True)


def test_scales_of_images_that_a_ledger_protects_are_refused(tmp_path: Path) -> None:
    """They are somebody's private images in another project, though no training image of this run."""
    theirs, data = make_dataset_at(tmp_path / "theirs")(seed=9), make_dataset_at(tmp_path / "data")()
    budget = {"url": f"sqlite:///{tmp_path / 'budget.db'}"}
    dptrain.train(**options(tmp_path, plan=PLAN, data=theirs, budget=budget))
    plan = dataclasses.replace(PLAN, clipping=Clipping("scaled"))
    given = {"data": data, "budget": budget, "privacy": {"clip_scales": str(theirs)}, "output_dir": tmp_path / "two"}
    with pytest.raises(
        dptrain.PrivacyError, match=r"one of the images of privacy\.clip_scales.*in theirs \(and 5 more\)"
    ):
        dptrain.train(**options(tmp_path, plan=plan, **given))
    assert not (tmp_path / "two").exists()


def test_scales_without_public_images_or_from_private_ones_are_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    data = make_dataset_at(tmp_path / "data")()
    other = make_dataset_at(tmp_path / "other")(seed=1)
    plan = dataclasses.replace(PLAN, clipping=Clipping("scaled"))
    for given, words in (
        ({}, r"clipping=scaled needs privacy\.clip_scales"),
        ({"clip_scales": str(data)}, r"is a training image and one of the images of privacy\.clip_scales="),
        ({"clip_scales": str(renamed(other))}, r"clip_scales=.* has other names of classes than"),
        ({"clip_scales": str(tmp_path / "none.yaml")}, r"none\.yaml"),
    ):
        with pytest.raises(dptrain.DptrainError, match=words):
            dptrain.train(data=data, **options(tmp_path, plan=plan, budget={"url": None}, privacy=given))
        assert not (tmp_path / "out").exists()


def renamed(data: Path) -> Path:
    file = data.with_name("renamed.yaml")
    file.write_text(data.read_text().replace("[green, blue]", "[blue, green]"))
    return file


def fails_at(step: int) -> Any:
    def write(run: dptrain.run.job.Run, status: str) -> None:
        raise RuntimeError(f"step {run.trainer.step}")

    return write


def test_nothing_written_tells_the_number_of_training_images(tmp_path: Path) -> None:
    """Six images or seven, declared as 1000: whatever is written beside the weights is the same to the letter."""
    privacy = {"noise_multiplier": 1.0, "dataset_size": 1000, "expected_batch_size": 300}
    told = []
    for count in (6, 7):
        folder = tmp_path / str(count)
        folder.mkdir()
        data = make_dataset_at(folder / "data")(train=count)
        budget = {"url": f"sqlite:///{folder / 'budget.db'}"}
        changed = options(folder, plan=None, steps=2, privacy=privacy, validation="off", budget=budget)
        result = dptrain.train(data=data, **changed)
        # Hashes under a key that is new each time, and of weights whose noise is, are as good as random.
        hashes = [*result.statement["weights"].values(), result.statement["sha256"]]
        names = ("statement.json", "statement.md", "config.yaml", "steps.journal")
        texts = [(result.output_dir / name).read_text().replace(str(folder), "") for name in names]
        told.append([functools.reduce(lambda text, known: text.replace(known, ""), hashes, text) for text in texts])
        assert result.statement["dataset"]["declared_size"] == 1000
        assert result.plan.delta == pytest.approx(1000**-1.1)
    assert told[0] == told[1]


def test_python_and_command_make_the_same_run(make_dataset: MakeDataset, tmp_path: Path) -> None:
    data = make_dataset()
    one = dptrain.train(data=data, **options(tmp_path, seed=3))
    command = [
        *COMMAND, f"model={SMALL}", f"data={data}", "imgsz=64", "trainable=head",
        "physical_batch_size=2", "workers=0", "evaluate_every=2", "seed=3", "steps=4", "privacy.noise_multiplier=1.0",
        "privacy.clip_norm=1.0", "privacy.sample_rate=0.5", "privacy.delta=1e-3", "privacy.expected_batch_size=3",
        "privacy.clipping=flat", "tracking.enabled=false", f"output_dir={tmp_path / 'two'}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    # From scratch the start weights are random; all else is the same.
    written = json.loads((tmp_path / "two" / "statement.json").read_text())
    assert written["mechanism"] == one.statement["mechanism"]
    assert written["guarantee"] == one.statement["guarantee"]


def test_a_seed_voids_the_statement(make_dataset: MakeDataset, tmp_path: Path) -> None:
    result = dptrain.train(data=make_dataset(), **options(tmp_path, seed=1, validation="off"))
    assert result.statement["valid"] is False
    assert "VOID" in (result.output_dir / "statement.md").read_text()
    assert result.metrics == {}
    assert not (result.output_dir / "results.csv").exists()


def test_an_output_folder_in_use_is_refused(finished: tuple[dptrain.TrainResult, Path]) -> None:
    _, tmp_path = finished
    before = fingerprint(tmp_path / "out")
    with pytest.raises(ConfigError, match="already holds a run"):
        dptrain.train(data=tmp_path / "data" / "data.yaml", **options(tmp_path))
    assert fingerprint(tmp_path / "out") == before


def test_a_folder_with_files_of_others_is_refused_and_left_alone(make_dataset: MakeDataset, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.csv").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        dptrain.train(data=make_dataset(), **options(tmp_path))
    assert (tmp_path / "out" / "results.csv").read_text() == "mine"


@pytest.mark.parametrize("inside", ["images/train/run", "labels/val"])
def test_an_output_folder_among_the_images_is_refused(inside: str, make_dataset: MakeDataset, tmp_path: Path) -> None:
    data = make_dataset()
    before = fingerprint(tmp_path)
    with pytest.raises(ConfigError, match=r"inside the dataset|not empty"):
        dptrain.train(data=data, **options(tmp_path, output_dir=str(tmp_path / inside)))
    assert fingerprint(tmp_path) == before


def fails(*_: Any) -> None:
    raise OSError("power gone")


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that took two steps and died before its first checkpoint; its dataset is beside it."""
    tmp_path = tmp_path_factory.mktemp("cut")
    data = make_dataset_at(tmp_path / "data")()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dptrain.run.job.Run._checkpoint", lambda self: None)
        patch.setattr("dptrain.run.job.Run._write_weights", fails)
        with pytest.raises(OSError, match="power gone"):
            dptrain.train(data=data, **options(tmp_path))
    assert (tmp_path / "out" / "steps.journal").stat().st_size == 2
    return tmp_path


@pytest.mark.parametrize(
    ("named", "changes"),
    [
        ("privacy.noise_multiplier", {"plan": PrivacyPlan(0.5, 4, 4.0, 1.0, 1e-3, 3)}),
        ("optimizer.name", {"optimizer": {"name": "sgd"}}),
        ("imgsz", {"imgsz": 96}),
        ("augment.fliplr", {"augment": {"fliplr": 0.5}}),
    ],
)
def test_a_run_is_resumed_with_its_own_settings_or_not_at_all(named: str, changes: dict[str, Any], cut: Path) -> None:
    """Also before its first checkpoint: steps of one plan must not be accounted by another."""
    before = fingerprint(cut / "out")
    with pytest.raises(dptrain.PrivacyError, match=named):
        dptrain.train(data=cut / "data" / "data.yaml", **options(cut, **{**changes, "resume": True}))
    assert fingerprint(cut / "out") == before


def test_a_run_cut_before_its_first_checkpoint_goes_on_once(cut: Path) -> None:
    data = cut / "data" / "data.yaml"
    result = dptrain.train(data=data, **options(cut, resume=True, physical_batch_size=3))
    assert result.statement["mechanism"]["steps"] == 4
    with pytest.raises(ConfigError, match="is finished"):
        dptrain.train(data=data, **options(cut, resume=True))


def test_a_resumed_run_has_the_same_frozen_layers(
    make_dataset: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From scratch they are random, and the trained head is of use on top of those only."""
    import ultralytics

    data = make_dataset()
    real = dptrain.run.job.Run._evaluate

    def cut(self: Any, *args: Any) -> None:
        if self.trainer.step:
            raise OSError("power gone")
        real(self, *args)

    with monkeypatch.context() as context:
        context.setattr("dptrain.run.job.Run._evaluate", cut)
        with pytest.raises(OSError, match="power gone"):
            dptrain.train(data=data, **options(tmp_path))
    weights = tmp_path / "out" / "weights" / "last.pt"
    before = ultralytics.YOLO(weights).model.state_dict()["model.0.conv.0.weight"].clone()
    dptrain.train(data=data, **options(tmp_path, resume=True))
    assert torch.equal(before, ultralytics.YOLO(weights).model.state_dict()["model.0.conv.0.weight"])


def test_a_run_cut_before_its_statement_is_finished_by_a_resume(
    make_dataset: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All steps taken, the last evaluation written, and no statement yet: the run must not count as finished."""
    monkeypatch.chdir(tmp_path)  # MLflow keeps a finished run's files in ./mlruns
    data = make_dataset()
    with monkeypatch.context() as context:
        context.setattr("dptrain.run.job.Run._finish", fails)
        with pytest.raises(OSError, match="power gone"):
            dptrain.train(data=data, **options(tmp_path, **tracked(tmp_path)))
    result = dptrain.train(data=data, **options(tmp_path, resume=True, **tracked(tmp_path)))
    assert result.statement["status"] == "finished"
    assert result.statement["mechanism"]["steps"] == 4
    steps = [line.split(",")[1] for line in (tmp_path / "out" / "results.csv").read_text().splitlines()[1:]]
    assert steps == ["0", "2", "4"]


def test_resume_needs_a_run(make_dataset: MakeDataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no run"):
        dptrain.train(data=make_dataset(), **options(tmp_path, resume=True))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "uri",
    ["http://127.0.0.1:9", "sqlite:////proc/none/mlflow.db", "nonsense://there"],
    ids=["server", "file", "scheme"],
)
def test_a_tracker_that_cannot_be_reached_stops_before_step_one(
    uri: str, make_dataset: MakeDataset, tmp_path: Path
) -> None:
    with pytest.raises(TrackingError, match=r"tracking\.uri") as caught:
        dptrain.train(data=make_dataset(), **options(tmp_path, tracking={"uri": uri}))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_tracker_that_goes_away_does_not_lose_the_run(
    make_dataset: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, calls = MlflowClient.log_batch, []

    def flaky(self: MlflowClient, *args: Any, **kwargs: Any) -> None:
        calls.append(1)
        if len(calls) > 2:
            raise ConnectionError("server gone")
        real(self, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_batch", flaky)
    result = dptrain.train(data=make_dataset(), **options(tmp_path, **tracked(tmp_path)))
    assert len((result.output_dir / "results.csv").read_text().splitlines()) == 4
    assert [r.message for r in caplog.records if "MLflow at" in r.message and " failed (" in r.message]
    assert len(calls) == 3, "it is told once and then left alone"


def test_a_train_image_in_val_is_refused(make_dataset: MakeDataset, tmp_path: Path) -> None:
    data = make_dataset()
    (tmp_path / "images" / "val" / "000.png").write_bytes((tmp_path / "images" / "train" / "001.png").read_bytes())
    with pytest.raises(DataError, match="val"):
        dptrain.train(data=data, **options(tmp_path))


def test_an_output_folder_that_cannot_be_made_is_named(make_dataset: MakeDataset, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        dptrain.train(data=make_dataset(), **options(tmp_path, output_dir=str(blocked / "out")))
