"""``dptrain train`` on Hydra: presets beside files, one-line errors, sweeps that go on, a clean working folder."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from dptrain.commands.main import main
from dptrain.errors import ConfigError
from dptrain.run.sweep.hydra_app import is_file_value, quote_values
from dptrain.settings.schema import TrainConfig

BASE = ["model=m.pt", "data=d.yaml"]
SWEEP = [*BASE, "steps=3", "tracking=disabled", "-m"]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[TrainConfig]]:
    """The configurations that reach the training, which is replaced by one that fails at noise 0.5 and 0.25."""
    seen: list[TrainConfig] = []

    def train_from_config(config: TrainConfig) -> SimpleNamespace:
        seen.append(config)
        if config.privacy.noise_multiplier == 0.5:
            raise ConfigError("no such data")
        if config.privacy.noise_multiplier == 0.25:
            raise RuntimeError("a bug\nin two lines")
        print("progress")
        folder = Path(config.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "statement.json").write_text("{}")
        return SimpleNamespace(
            output_dir=folder, weights=folder / "last.pt", epsilon=1.5, metrics={"metrics/mAP50B": 0.5}
        )

    module = ModuleType("dptrain.run.train")
    module.train_from_config = train_from_config  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dptrain.run.train", module)
    monkeypatch.chdir(tmp_path)
    yield seen
    assert Path.cwd() == tmp_path


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["train", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1, captured.err
    assert captured.err.startswith("dptrain: error: ")
    return captured.err.removeprefix("dptrain: error: ").strip()


def test_overrides_reach_the_run(runs: list[TrainConfig]) -> None:
    assert main(["train", *BASE, "privacy.epsilon=8", "optimizer=sgd", "optimizer.lr=0.2", "trainable=[a.*,b]"]) == 0
    (config,) = runs
    assert (config.model, config.data, config.privacy.epsilon) == ("m.pt", "d.yaml", 8.0)
    assert (config.optimizer.name, config.optimizer.lr, config.trainable) == ("sgd", 0.2, ["a.*", "b"])


def test_a_run_leaves_its_output_folder_and_nothing_else(runs: list[TrainConfig], tmp_path: Path) -> None:
    assert main(["train", *BASE, "output_dir=out/x"]) == 0
    assert sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*")) == [
        "out",
        "out/x",
        "out/x/statement.json",
    ]


def test_the_default_folder_is_dated_and_relative(runs: list[TrainConfig]) -> None:
    assert main(["train", *BASE]) == 0
    assert Path(runs[0].output_dir).parent == Path("runs")


@pytest.mark.parametrize(
    "file",
    [
        "yolo26n.yaml",
        "yolo26n.pt",
        "../start.pt",
        "./a/b.pt",
        "sealed.pt.age",
        "/absolute/x.pt",
        "a folder/with (brackets), and commas/it's.pt",
        "weird=name.pt",
        "back\\slash [1].pt",
    ],
)
def test_model_and_data_take_any_file(file: str, runs: list[TrainConfig], tmp_path: Path) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    if not file.startswith("/absolute"):
        path.touch()  # commas are a sweep unless there is such a file
    assert main(["train", f"model={file}", f"data={file}"]) == 0
    assert (runs[0].model, runs[0].data) == (file, file)


def test_groups_are_told_by_any_pattern(runs: list[TrainConfig]) -> None:
    pattern = r"^(?:a|b)\[(p\d{1,3}),\.*$"
    assert main(["train", *BASE, "privacy.unit=group", f"privacy.groups.regex={pattern}"]) == 0
    assert (runs[0].privacy.unit, runs[0].privacy.groups.regex) == ("group", pattern)


@pytest.mark.parametrize("swept", ["privacy.unit=image,group", "privacy.groups.folder=1,2"])
def test_a_sweep_is_of_one_unit(swept: str, runs: list[TrainConfig], capsys: pytest.CaptureFixture[str]) -> None:
    rest = [] if "unit" in swept else ["privacy.unit=group"]
    message = refusal(capsys, *SWEEP, "privacy.epsilon=8", "privacy.dataset_size=100", *rest, swept)
    assert "in one sweep" in message and not runs


def test_home_is_expanded(runs: list[TrainConfig]) -> None:
    assert main(["train", "model=m.pt", "data=~/d.yaml"]) == 0
    assert runs[0].data == str(Path.home() / "d.yaml")


def test_a_file_never_reaches_into_the_presets_folder(runs: list[TrainConfig]) -> None:
    assert main(["train", "model=m.pt", "data=../config.yaml"]) == 0
    assert runs[0].data == "../config.yaml"


def test_named_presets_work_in_the_same_keys(runs: list[TrainConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPTRAIN_DATASETS", "/sets")
    assert main(["train", "model=yolo26n.yaml", "data=bccd", "privacy=epsilon_3", "imgsz=64"]) == 0
    (config,) = runs
    assert (config.model, config.norm, config.data) == ("yolo26n.yaml", "auto", "/sets/bccd/data.yaml")
    assert (config.privacy.epsilon, config.privacy.dataset_size, config.imgsz) == (3.0, 205, 64)


def test_every_preset_composes_and_is_valid(runs: list[TrainConfig]) -> None:
    folder = Path(__file__).resolve().parents[3] / "conf"
    groups = [sorted(group.glob("*.yaml")) for group in sorted(folder.iterdir()) if group.is_dir()]
    assert len(groups) == 7
    for files in itertools.zip_longest(*groups):
        chosen = [f"{file.parent.name}={file.stem}" for file in files if file]
        assert main(["train", *BASE, *chosen]) == 0, chosen


def test_a_users_own_presets_may_name_files_too(runs: list[TrainConfig], tmp_path: Path) -> None:
    (tmp_path / "my" / "experiment").mkdir(parents=True)
    (tmp_path / "my" / "experiment" / "cats.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: ../p q/x.pt\n  - override /data: cats.yaml\nimgsz: 96\n"
    )
    assert main(["train", "--config-dir", "my", "experiment=cats"]) == 0
    assert main(["train", "experiment=cats", "--config-dir=my", "model=other.pt"]) == 0
    assert [(c.model, c.data, c.imgsz) for c in runs] == [
        ("../p q/x.pt", "cats.yaml", 96),
        ("other.pt", "cats.yaml", 96),
    ]


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("privacy.epsilonn=3", "unknown key privacy.epsilonn; did you mean privacy.epsilon?"),
        ("modle=x.pt", "unknown key modle; did you mean model?"),
        ("epsilon=8", "unknown key epsilon; did you mean privacy.epsilon?"),
        ("+xyzzy=1", "unknown key xyzzy (dptrain train --help lists the keys)"),
        ("++privacy.xyzzy=1", "unknown key privacy.xyzzy (dptrain train --help lists the keys)"),
        ("privacy.epsilon=abc", "privacy.epsilon=abc is not a number"),
        ("imgsz=64.5", "imgsz=64.5 is not a whole number"),
        ("privacy.clip_norm=null", "privacy.clip_norm=null is not a number"),
        ("optimizer.betas=[0.9,x]", "optimizer.betas[1]=x is not a number"),
        ("privacy=epsilon_9", "privacy=epsilon_9 names no preset; did you mean epsilon_8?"),
        ("privacy=8", "privacy=8: privacy is chosen by the name of a preset"),
        ("optimizer=null", "optimizer=null: optimizer is chosen by the name of a preset"),
        ("model=yolo26n_scratch", "model=yolo26n_scratch was removed: use model=yolo26n.yaml"),
        ("data=bcd", "data=bcd names no preset; did you mean bccd?"),
        ("model=a.pt,b.pt", "model=a.pt,b.pt is several values: add -m"),
        ("steps=[1", "cannot read 'steps=[1'"),
        ("output_dir=${nope}", "output_dir: Interpolation key 'nope' not found"),
        ("--unknown", "unknown option --unknown"),
        ("--config-dir", "option --config-dir needs a value"),
        ("privacy.epsilon=-1", "privacy.epsilon=-1.0 must be more than 0"),
        ("augment.mosaic=1", "augment.mosaic=1.0 is refused"),
    ],
)
def test_an_error_is_one_line_that_names_the_key(
    argument: str, expected: str, runs: list[TrainConfig], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert expected in refusal(capsys, *BASE, argument)
    assert not runs
    assert not list(tmp_path.iterdir())


def test_an_error_in_a_users_file_names_the_file(
    runs: list[TrainConfig], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "my" / "experiment").mkdir(parents=True)
    (tmp_path / "my" / "experiment" / "a.yaml").write_text("# @package _global_\nimgzz: 64\n")
    (tmp_path / "my" / "experiment" / "b.yaml").write_text("a: [\n")
    message = refusal(capsys, *BASE, "--config-dir", "my", "experiment=a")
    assert message == "unknown key imgzz; did you mean imgsz? (in experiment/a)"
    assert "b.yaml" in refusal(capsys, *BASE, "--config-dir", "my", "experiment=b")


def test_an_error_of_the_run_is_one_line(runs: list[TrainConfig], capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(capsys, *BASE, "privacy.noise_multiplier=0.5") == "no such data"
    assert main(["train", *BASE, "privacy.noise_multiplier=0.25"]) == 1
    message = capsys.readouterr().err
    assert message == "dptrain: error: RuntimeError: a bug in two lines (--debug shows where)\n"


def test_json_is_all_that_stdout_gets(runs: list[TrainConfig], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *BASE, "output_dir=out", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {
        "output_dir": "out",
        "weights": "out/last.pt",
        "epsilon": 1.5,
        "metrics": {"metrics/mAP50B": 0.5},
    }
    assert "progress" in captured.err


def test_cfg_shows_the_settings_and_runs_nothing(
    runs: list[TrainConfig], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["train", "--cfg", "job", *BASE, "privacy.epsilon=8"]) == 0
    assert "epsilon: 8.0" in capsys.readouterr().out
    assert not runs
    assert not list(tmp_path.iterdir())


# Sweeps (what they come to: tests/run/sweep/)


def test_a_sweep_gives_every_job_a_folder(runs: list[TrainConfig]) -> None:
    assert main(["train", *SWEEP, "privacy.noise_multiplier=0.6,0.8", "output_dir=runs/s"]) == 0
    assert [(c.privacy.noise_multiplier, c.output_dir) for c in runs] == [(0.6, "runs/s/0"), (0.8, "runs/s/1")]


def test_a_sweep_leaves_no_steps_to_a_clock(runs: list[TrainConfig], capsys: pytest.CaptureFixture[str]) -> None:
    sweep = [*BASE, "tracking=disabled", "-m", "output_dir=s"]
    for more in ("privacy.noise_multiplier=1,2", "privacy.noise_multiplier=1,2 time=1h", "time=1h,2h"):
        assert main(["train", *sweep, *more.split()]) == 2
        assert "steps is not set, and a sweep compares runs" in capsys.readouterr().err
    assert not runs
    assert main(["train", *sweep, "privacy.noise_multiplier=1,2", "privacy.epsilon=2"]) == 0, "these find the steps"


@pytest.mark.parametrize("key", ["workers=0,2", "physical_batch_size=4,8", "checkpoint_every=1,2", "time=1h,2h"])
def test_no_job_is_charged_for_what_changes_nothing(
    key: str, runs: list[TrainConfig], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["train", *SWEEP, "privacy.noise_multiplier=0.6,0.8", key, "output_dir=s"]) == 2
    name = key.partition("=")[0]
    line = f"{name} cannot be swept: it changes nothing of what a run releases, and every job would be charged"
    assert line in capsys.readouterr().err
    assert not runs and not (tmp_path / "s").exists()


def test_a_sweep_over_models_takes_files(runs: list[TrainConfig]) -> None:
    models = "model=yolo26n.yaml,'/a b/c.pt',yolov8n.yaml"
    assert main(["train", "-m", models, "data=d.yaml", "tracking=disabled", "steps=3", "output_dir=s"]) == 0
    assert [c.model for c in runs] == ["yolo26n.yaml", "/a b/c.pt", "yolov8n.yaml"]


def test_a_failed_job_stops_no_other_and_leaves_no_folder(
    runs: list[TrainConfig], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["train", *SWEEP, "privacy.noise_multiplier=0.5,0.8,0.25,1.0", "output_dir=s"]) == 1
    assert [c.privacy.noise_multiplier for c in runs] == [0.5, 0.8, 0.25, 1.0]
    assert capsys.readouterr().err.splitlines() == [
        "dptrain: job 0 (noise_multiplier=0.5) failed: no such data",
        "dptrain: job 2 (noise_multiplier=0.25) failed: RuntimeError: a bug in two lines (--debug shows where)",
        "dptrain: error: 2 of 4 jobs failed",
    ]
    assert sorted(file.name for file in (tmp_path / "s").iterdir() if file.name.isdecimal()) == ["1", "3"]


def test_a_value_out_of_range_fails_its_own_job_only(runs: list[TrainConfig]) -> None:
    assert main(["train", *SWEEP, "imgsz=50,64", "output_dir=s"]) == 2
    assert [c.imgsz for c in runs] == [64]


@pytest.mark.parametrize(
    "argument", ["privacy.noise_multiplier=0.6,abc", "noise=1,2", "output_dir=a,b", "tracking=sqlite,disabled"]
)
def test_a_sweep_that_cannot_be_composed_starts_nothing_and_leaves_nothing(
    argument: str, runs: list[TrainConfig], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert argument.partition("=")[0] in refusal(capsys, *BASE, "-m", argument)
    assert not runs
    assert not list(tmp_path.iterdir())


# Parts


@pytest.mark.parametrize(
    ("value", "expected"),
    [("a.pt", True), ("A.YAML", True), ("../x", True), ("~/x", True), ("/x", True), ("yolo26n", False), ("", False)],
)
def test_a_bare_name_is_a_preset(value: str, expected: bool) -> None:
    assert is_file_value(value) is expected


def test_only_what_needs_quotes_is_quoted() -> None:
    plain = ["data=a b.yaml", "steps=3", "privacy.noise_multiplier=1,2", "trainable=[a,b]", "~optimizer"]
    assert quote_values(plain) == plain
    assert quote_values(["data=a(1.yaml"]) == ["data='a(1.yaml'"]
