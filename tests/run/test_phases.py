"""Whole runs in phases: one plan, one event, one statement; cut and resumed anywhere; the same on neighbours."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow.tracking import MlflowClient

import dptrain
import dptrain.run.job
from dptrain import ConfigError, PrivacyPlan
from dptrain.detection import load_model, save_weights
from dptrain.run.prepare import prepare
from dptrain.settings import resolve as settings
from dptrain.statement import check_statement

from ..conftest import SMALL, dataset_maker, run_options
from ..privacy.datasets import write_neighbours
from ..privacy.recording import difference, length
from ..privacy.whole_runs import published, run_on

PLAN = PrivacyPlan(0.5, 4, 1.0, 1.0, 1e-3, 3)
TWO = [
    {"trainable": "new_classes", "steps": 2},
    {"trainable": ["neck_and_head", "norm_and_bias"], "steps": 2, "lr": 1e-3},
]
LAST = {f"model.4.{branch}.{level}.2.{kind}"
        for branch in ("cv3", "one2one_cv3") for level in (0, 1) for kind in ("weight", "bias")}  # fmt: skip


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of three classes, none of which is in the data."""
    torch.manual_seed(0)
    names = {0: "ball", 1: "bat", 2: "net"}
    return save_weights(load_model(SMALL, names=names), tmp_path_factory.mktemp("start") / "start.pt")


def options(folder: Path, start: Path, **changes: Any) -> dict[str, Any]:
    given = run_options(
        folder, model=str(start), phases=TWO, plan=PLAN, evaluate_every=2, tracking={"enabled": False},
        budget={"url": None}, **changes,
    )  # fmt: skip
    del given["trainable"]
    return given


def test_a_run_in_phases_names_them_and_is_one_event(
    start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = dataset_maker(tmp_path)()
    tracking = {"uri": f"sqlite:///{tmp_path / 'mlflow.db'}", "experiment": "test"}
    result = dptrain.train(data=data, **{**options(tmp_path, start), "tracking": tracking})
    assert result.plan == PLAN and result.epsilon == PLAN.epsilon()

    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if line.startswith("phases: ")]
    assert (
        "steps 1 to 2 new_classes (" in line and "by the rule of docs/training.md); steps 3 to 4 neck_and_head+" in line
    )
    assert "lr 0.001)" in line and "optimizer.lr is not set" not in said

    written = json.loads((result.output_dir / "statement.json").read_text())
    rate = written["model"]["phases"][0]["lr"]
    assert rate > 0 and written["model"]["phases"] == [{**TWO[0], "lr": rate}, TWO[1]]
    assert "trainable" not in written["model"] and written["mechanism"]["planned_steps"] == 4
    assert check_statement(result.output_dir).statement["guarantee"]["epsilon"] == PLAN.epsilon()
    page = (result.output_dir / "statement.md").read_text().replace("\\", "")
    assert "phases trainable new_classes, steps 2, lr " in page
    assert "; trainable neck_and_head norm_and_bias, steps 2, lr 0.001" in page
    with (result.output_dir / "results.csv").open() as stream:
        assert [(row["step"], row["phase"]) for row in csv.DictReader(stream)] == [("0", "1"), ("2", "1"), ("4", "2")]
    run = MlflowClient(tracking["uri"]).get_run((result.output_dir / "mlflow_run").read_text())
    assert "new_classes" in run.data.params["phases"] and run.data.params["steps"] == "4"

    edited = {**written, "model": {**written["model"], "phases": [TWO[1]]}}
    (result.output_dir / "statement.json").write_text(json.dumps(dptrain.statement.facts.sealed(edited)))  # type: ignore[attr-defined]
    with pytest.raises(dptrain.PrivacyError, match=r"model\.phases="):
        check_statement(result.output_dir)


def test_a_run_in_phases_is_the_event_of_as_many_steps(start: Path, tmp_path: Path) -> None:
    """Planned from epsilon: as many steps are noised as the plan, the journal and the statement have."""
    data = dataset_maker(tmp_path)()
    privacy = {"epsilon": 8.0, "delta": 1e-3, "sample_rate": 0.5, "expected_batch_size": 3}
    result = dptrain.train(
        data=data, **{**options(tmp_path, start, validation="off"), "plan": None, "privacy": privacy}
    )
    assert result.plan == PrivacyPlan.calibrate(
        epsilon=8.0, delta=1e-3, sample_rate=0.5, expected_batch_size=3, steps=4
    )
    assert (result.output_dir / "steps.journal").stat().st_size == result.statement["mechanism"]["steps"] == 4


def test_only_the_layers_of_the_phase_train(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset_maker(tmp_path)()
    seen: list[dict[str, torch.Tensor]] = []
    real = dptrain.run.job.Run._lease

    def look(run: Any) -> None:
        seen.append({name: p.detach().clone() for name, p in run.prepared.model.named_parameters()})
        real(run)

    monkeypatch.setattr(dptrain.run.job.Run, "_lease", look)
    result = dptrain.train(data=data, **options(tmp_path, start))
    seen.append(torch.load(result.output_dir / "checkpoint.pt", weights_only=True)["parameters"])
    for step in range(4):
        before, after = seen[step], seen[step + 1]
        moved = {name for name in after if not torch.equal(before[name], after[name])}
        if step < 2:
            assert moved == LAST
        else:
            assert moved > LAST and any(name.startswith("model.0.") and ".1." in name for name in moved)
            assert "model.0.conv.0.weight" not in moved


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_run_killed_before_at_and_after_the_boundary_ends_as_the_whole_one(
    step: int, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = dataset_maker(tmp_path)()
    given = {**options(tmp_path, start, validation="off", seed=3, checkpoint_every=1), "evaluate_every": 4}
    whole = dptrain.train(data=data, **{**given, "output_dir": str(tmp_path / "whole")})
    real = dptrain.run.job.Run._checkpoint

    def kill(run: Any) -> None:
        real(run)
        if run.trainer.step == step:
            raise OSError("power gone")

    with monkeypatch.context() as patch:
        patch.setattr(dptrain.run.job.Run, "_checkpoint", kill)
        with pytest.raises(OSError, match="power gone"):
            dptrain.train(data=data, **given)
    other = [{**TWO[0], "steps": 1}, {**TWO[1], "steps": 3}]
    with pytest.raises(dptrain.PrivacyError, match="phases="):
        dptrain.train(data=data, **{**given, "phases": other, "resume": True})
    result = dptrain.train(data=data, **given, resume=True)
    ends = [torch.load(run.output_dir / "checkpoint.pt", weights_only=True) for run in (whole, result)]
    for part in ("parameters", "average"):
        assert ends[0][part].keys() == ends[1][part].keys()
        assert all(torch.equal(value, ends[1][part][name]) for name, value in ends[0][part].items())
    assert ends[0]["phases"] == ends[1]["phases"] and [phase[0] for phase in ends[0]["phases"]] == [2, 2]


def test_one_image_more_changes_neither_boundary_nor_sets_nor_anything_that_is_written(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    neighbours = write_neighbours(tmp_path / "data", ["ordinary", "no boxes", "one box"], "300 boxes", 3)
    doors, files = [], []
    for name, dataset in (("one", neighbours.smaller), ("other", neighbours.larger)):
        with monkeypatch.context() as patch:
            more = int(dataset == neighbours.larger)
            _, seen = run_on(dataset, start, tmp_path / name, patch, more, phases=TWO)
        doors.append(seen)
        files.append(published(tmp_path / name))
    one, other = doors
    assert [value.keys() for value in one.values] == [value.keys() for value in other.values]
    assert [value.keys() == LAST for value in one.values] == [True, True, False, False]
    assert one.stated == other.stated == [(0.3, 1.0)] * 4 and one.draws == other.draws
    apart = [length(difference(a, b)) for a, b in zip(one.values, other.values, strict=True)]
    assert 0.0 < max(apart) <= 0.3 * (1 + 1e-4)
    assert files[0].keys() == files[1].keys()
    assert [name for name, content in files[0].items() if content != files[1][name]] == []


@pytest.mark.parametrize("by_val", [False, True])
def test_scales_are_measured_once_for_all_layers_and_each_phase_has_those_of_its_own(
    by_val: bool, start: Path, tmp_path: Path
) -> None:
    """Also by default, where a public val split gives them."""
    public = dataset_maker(tmp_path / "public")(seed=9)
    data = dataset_maker(tmp_path / "data")()
    numbers = {"noise_multiplier": 1.0, "sample_rate": 0.5, "expected_batch_size": 3, "delta": 1e-3}
    named = {} if by_val else {"clipping": "scaled", "clip_scales": str(public)}
    given = {**options(tmp_path, start), "plan": None, "privacy": {**numbers, **named}, "data": str(data)}
    config = settings.resolve(settings.from_kwargs(**given))
    plan = settings.make_plan(config)
    prepared = prepare(settings.with_plan(config, plan), plan)
    assert prepared.plan.clipping.name == "scaled"
    assert prepared.charge.event == PLAN.event()
    measured = dict(prepared.plan.clipping.scales)
    trainer = prepared.trainer
    assert measured.keys() == {name.rpartition(".")[0] for name in trainer.parameters}
    for clipped, phase in zip(trainer._sums, trainer.phases, strict=True):
        rule: Any = clipped.mechanism.rule
        assert rule.groups.keys() == set(phase.names)
        assert {n: rule.scales[g] for n, g in rule.groups.items()} == {
            n: measured[n.rpartition(".")[0]] for n in phase.names
        }
    assert len({*trainer._sums[1].mechanism.rule.scales}) > 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ([{"trainable": "new_classes", "steps": 4}], "every layer of a random start is new"),
        ([{"trainable": "nothing.*", "steps": 4}], r"trainable='nothing\.\*' matches no parameter"),
    ],
)
def test_what_no_phase_can_train_is_refused_before_anything_is_written(
    phases: Any, message: str, tmp_path: Path
) -> None:
    data = dataset_maker(tmp_path)()
    with pytest.raises(ConfigError, match=message):
        dptrain.train(data=data, **{**options(tmp_path, Path(SMALL)), "phases": phases})
    assert not (tmp_path / "out").exists()
