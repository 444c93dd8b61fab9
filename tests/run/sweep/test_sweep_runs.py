"""``dptrain train -m``: real runs with both launchers, MLflow above them, and sweeps that were cut and go on."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from dptrain.commands.main import main
from dptrain.errors import ConfigError
from dptrain.run.tracking import PARENT_RUN
from dptrain.settings.schema import TrainConfig

from ...conftest import SMALL, dataset_maker
from .weights import weights_hash

TINY = (
    f"model={SMALL} imgsz=32 trainable=head workers=0 steps=1 evaluate_every=1 privacy.sample_rate=0.5 "
    "privacy.expected_batch_size=3 privacy.delta=1e-3"
).split()
NOISE = "privacy.noise_multiplier=4.0,5.0"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    dataset_maker(folder)(train=3, val=1)
    return folder


def test_a_real_sweep_has_a_parent_run_that_holds_its_curve_and_its_cost(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    command = ["train", *TINY, "data=data.yaml", "-m", NOISE, "output_dir=s", "seed=3", "tracking.experiment=e"]
    assert main(command) == 0
    summary = json.loads((place / "s" / "summary.json").read_text())
    assert summary["meaning"] in capfd.readouterr().out
    client = MlflowClient("sqlite:///mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "e"]
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.info.run_name for run in children} == {"noise_multiplier=4.0", "noise_multiplier=5.0"}
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert parent.data.params["sweep.privacy.noise_multiplier"] == "4.0, 5.0"
    assert parent.data.metrics["sweep/epsilon_composed"] == pytest.approx(summary["epsilon_composed"])
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} == {
        "epsilon_vs_map.html", "epsilon_vs_map.png", "runs.json", "summary.json", "sweep.csv",
    }  # fmt: skip
    points = {m.step: m.value for m in client.get_metric_history(parent.info.run_id, "sweep/epsilon")}
    with (place / "s" / "sweep.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert points == {n: pytest.approx(float(row["epsilon"])) for n, row in enumerate(rows)}
    assert summary["epsilon_composed"] > max(points.values())
    assert PARENT_RUN not in os.environ

    before = {file: file.stat().st_mtime_ns for file in (place / "s").glob("[01]/**/*")}
    assert main([*command, "resume=true"]) == 0
    assert {file: file.stat().st_mtime_ns for file in (place / "s").glob("[01]/**/*")} == before
    assert len(client.search_runs([experiment.experiment_id])) == 3
    assert len(client.get_metric_history(parent.info.run_id, "sweep/epsilon")) == 2
    assert json.loads((place / "s" / "summary.json").read_text()) == summary

    # A job is the run that it would have been by itself: nothing leaks from the one before.
    single = [*TINY, "data=data.yaml", "privacy.noise_multiplier=5.0", "seed=3", "tracking=disabled", "output_dir=one"]
    assert main(["train", *single]) == 0
    assert weights_hash(place / "one") == weights_hash(place / "s" / "1")


def test_no_two_jobs_of_a_process_share_a_draw_or_its_noise(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The average is no part of what is compared: the jobs differ in nothing but what the system gave them."""
    monkeypatch.chdir(place)
    sweep = ["privacy.noise_multiplier=4.0", "ema.decay=0.5,0.9", "output_dir=k", "tracking=disabled"]
    assert main(["train", *TINY, "data=data.yaml", "-m", *sweep]) == 0
    assert weights_hash(place / "k" / "0") != weights_hash(place / "k" / "1")


def test_the_joblib_launcher_reports_the_same(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    parallel = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "imgsz=32,50", "tracking.experiment=j"]
    arguments = [*TINY, "data=data.yaml", "-m", "privacy.noise_multiplier=4.0", *parallel, "output_dir=j"]
    assert main(["train", *arguments]) == 2
    told = capfd.readouterr()
    assert "dptrain: job 1 (imgsz=50) failed: imgsz=50 is not a multiple of 32: give 32 or 64" in told.err
    assert told.err.strip().endswith("dptrain: error: 1 of 2 jobs failed")
    assert "publishing this curve costs" in told.out
    client = MlflowClient("sqlite:///mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "j"]
    child, parent = sorted(
        client.search_runs([experiment.experiment_id]), key=lambda run: "mlflow.parentRunId" not in run.data.tags
    )
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert parent.info.status == "FAILED"
    assert sorted(file.name for file in (place / "j").iterdir() if file.is_dir()) == ["0", "jobs", "owner"]


# With a stand-in for the training


def stand_in(seen: list[TrainConfig]) -> ModuleType:
    """What is there instead of ``dptrain.run.train``; its ``stop_at`` stops the job with that noise once."""
    module: Any = ModuleType("dptrain.run.train")
    module.stop_at = None

    def train_from_config(config: TrainConfig) -> SimpleNamespace:
        seen.append(config)
        noise, folder = config.privacy.noise_multiplier, Path(config.output_dir)
        privacy = {"sample_rate": 0.1, "delta": 1e-5, "noise_multiplier": noise}
        (folder / "settings.json").write_text(json.dumps({"steps": 4, "seed": None, "privacy": privacy}))
        with (folder / "steps.journal").open("ab") as stream:
            stream.write(b"..")
        if noise == module.stop_at:
            module.stop_at = None
            raise SystemExit("stopped after step 2 of 4; go on with this and that")
        (folder / "statement.json").write_text('{"status": "finished"}')
        return SimpleNamespace(output_dir=folder, weights=folder, epsilon=1.0, metrics={})

    module.train_from_config = train_from_config
    return module


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[TrainConfig]:
    """The configurations that reach the training."""
    seen: list[TrainConfig] = []
    monkeypatch.setitem(sys.modules, "dptrain.run.train", stand_in(seen))
    monkeypatch.chdir(tmp_path)
    return seen


SWEEP = ["train", "model=m.pt", "data=d.yaml", "tracking=disabled", "steps=3", "-m"]
THREE = [*SWEEP, "privacy.noise_multiplier=4,5,6", "output_dir=s"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished sweep; for copying."""
    folder = tmp_path_factory.mktemp("swept")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "dptrain.run.train", stand_in([]))
        patch.chdir(folder)
        assert main(THREE) == 0
    return folder / "s"


def test_an_interrupted_sweep_goes_on_where_it_was(runs: list[TrainConfig], capsys: pytest.CaptureFixture[str]) -> None:
    sys.modules["dptrain.run.train"].stop_at = 5  # type: ignore[attr-defined]
    with pytest.raises(SystemExit, match=r"job 1 of 3 .* stopped after step 2 of 4; resume the whole sweep"):
        main(THREE)
    assert [config.privacy.noise_multiplier for config in runs] == [4, 5]
    assert "the composition of 2 runs" in capsys.readouterr().out
    partial = json.loads(Path("s/summary.json").read_text())
    runs.clear()
    assert main([*THREE, "resume=true"]) == 0
    assert [(c.privacy.noise_multiplier, c.resume, c.output_dir) for c in runs] == [(5, True, "s/1"), (6, False, "s/2")]
    whole = json.loads(Path("s/summary.json").read_text())
    assert (partial["finished"], whole["finished"]) == (1, 3)
    assert whole["epsilon_composed"] > partial["epsilon_composed"]
    runs.clear()
    assert main([*THREE, "resume=true"]) == 0
    assert not runs
    assert json.loads(Path("s/summary.json").read_text()) == whole


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (THREE, "output_dir=s already holds a sweep"),
        ([*SWEEP, "privacy.noise_multiplier=4,5,7", "output_dir=s", "resume=true"], "job 2: privacy.noise_multiplier="),
        ([*THREE, "steps=9", "resume=true"], "job 0: steps=9 differs"),
        ([*SWEEP, "steps=1,2", "output_dir=t", "resume=true"], "output_dir=t holds no sweep"),
        ([*SWEEP, "steps=1,2", "tuning=random_stopping"], "tuning.method=random_stopping and -m cannot be combined"),
    ],
)
def test_what_is_no_continuation_is_refused_before_anything_runs(
    arguments: list[str], expected: str, swept: Path, runs: list[TrainConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(swept, "s")
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert expected in told.err
    assert len(told.err.splitlines()) == 1
    assert not runs


def test_device_and_workers_may_change_on_the_way(swept: Path, runs: list[TrainConfig]) -> None:
    shutil.copytree(swept, "s")
    assert main([*THREE, "resume=true", "device=cuda", "workers=7", "physical_batch_size=2"]) == 0


def test_a_failed_job_is_tried_again(runs: list[TrainConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = sys.modules["dptrain.run.train"]
    real = module.train_from_config

    def fails(config: TrainConfig) -> SimpleNamespace:
        if config.privacy.noise_multiplier == 5:
            raise ConfigError("no disk for images/anna_b.png")
        return real(config)

    with monkeypatch.context() as context:
        context.setattr(module, "train_from_config", fails)
        assert main(THREE) == 2
    told = {file for file in Path("s").rglob("*") if file.is_file() and b"anna_b" in file.read_bytes()}
    assert told == {Path("s/owner/job_1_error.txt")}
    assert {file.stat().st_mtime % 86400 for file in Path("s").iterdir() if not file.name.isdecimal()} == {0}
    runs.clear()
    assert main([*THREE, "resume=true"]) == 0
    assert [config.privacy.noise_multiplier for config in runs] == [5]


def test_json_ends_with_the_cost_of_the_sweep(runs: list[TrainConfig], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*THREE, "--json"]) == 0
    told = capsys.readouterr()
    lines = [json.loads(line) for line in told.out.splitlines()]
    assert [line["output_dir"] for line in lines] == ["s/0", "s/1", "s/2", "s"]
    assert lines[-1]["finished"] == 3
    assert "publishing this curve costs" in told.err


def test_a_job_whose_process_was_lost_goes_on_where_it_was(
    runs: list[TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray and submitit start it again by themselves; a journal without steps is that of a run, too."""
    from dptrain.run.sweep import launch

    def as_it_was_left(_: str) -> None:
        for folder in Path("s").glob("[0-9]"):
            (folder / "steps.journal").touch()

    monkeypatch.setattr(launch, "go_to", as_it_was_left)
    assert main(THREE) == 0
    assert [config.resume for config in runs] == [True] * 3


def test_a_launchers_own_end_of_a_process_keeps_its_status(runs: list[TrainConfig]) -> None:
    """submitit's controller starts a job again by it."""
    module: Any = sys.modules["dptrain.run.train"]

    def train_from_config(config: TrainConfig) -> None:
        raise SystemExit(144)

    module.train_from_config = train_from_config
    with pytest.raises(SystemExit) as ended:
        main(THREE)
    assert ended.value.code == 144


@pytest.mark.parametrize(
    ("argument", "extra"),
    [("hydra/launcher=submitit_slurm", "submitit"), ("hydra/launcher=ray", "ray"), ("hydra/sweeper=optuna", "optuna")],
)
def test_what_is_not_installed_is_named_with_its_extra(
    argument: str, extra: str, runs: list[TrainConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = {"submitit": "submitit_launcher", "ray": "ray_launcher", "optuna": "optuna_sweeper"}[extra]
    if importlib.util.find_spec(f"hydra_plugins.hydra_{plugin}"):
        pytest.skip(f"dptrain[{extra}] is installed")
    assert main([*THREE, argument]) == 2
    line = f"dptrain: error: {argument} is not installed: pip install 'dptrain[{extra}]'"
    assert capsys.readouterr().err.splitlines() == [line]


def test_a_job_that_a_launcher_keeps_the_lines_of_tells_its_owner_alone_why_it_failed(
    runs: list[TrainConfig], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The main process tells it on its screen, when all jobs have ended."""
    from dptrain.run.sweep import launch

    module: Any = sys.modules["dptrain.run.train"]

    def fails(config: TrainConfig) -> None:
        raise ConfigError("no disk for images/anna_b.png")

    monkeypatch.setattr(launch, "keeps_lines", lambda hydra: True)
    module.train_from_config = fails
    assert main(THREE) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "dptrain: job 0 (noise_multiplier=4) failed: no disk for images/anna_b.png"
    assert lines[-1] == "dptrain: error: 3 of 3 jobs failed" and len(lines) == 4
    assert not [file for file in Path("s").rglob("*.json") if b"anna_b" in file.read_bytes()]
