"""``hydra/sweeper=optuna``: trials of one plan, chosen by public scores, each of them charged."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from dptrain.commands.main import main
from dptrain.errors import BudgetError, ConfigError
from dptrain.run.sweep.breaks import NoBudget, SweepRefused
from dptrain.run.sweep.cost import JobCost, compose
from dptrain.run.sweep.jobs import Study, SweepRecord
from dptrain.run.sweep.table import read_table
from dptrain.settings.schema import TrainConfig

from ...conftest import dataset_maker

PLAN = "steps=4 privacy.noise_multiplier=4 privacy.sample_rate=0.1 privacy.delta=1e-5".split()
LR = "optimizer.lr=interval(0.01,0.1)"


@pytest.fixture
def trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[TrainConfig]:
    """The configurations that reach the training, which is replaced by one whose score is the learning rate.

    The third trial finds no budget; one whose image size is 64 fails.
    """
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs dptrain[optuna]")
    seen: list[TrainConfig] = []
    module: Any = ModuleType("dptrain.run.train")
    module.budget = 100

    def train_from_config(config: TrainConfig) -> SimpleNamespace:
        seen.append(config)
        folder = Path(config.output_dir)
        if config.imgsz == 64:
            raise ConfigError("images/anna_b.png is no image of 64 px")
        if len(seen) > module.budget:
            raise BudgetError("the steps of this run do not fit the budget pets")
        privacy = {"sample_rate": 0.1, "delta": 1e-5, "noise_multiplier": config.privacy.noise_multiplier}
        (folder / "settings.json").write_text(json.dumps({"steps": 4, "seed": None, "privacy": privacy}))
        (folder / "steps.journal").write_bytes(b"....")
        names = "step dp/epsilon dp/epsilon_claimed dp/delta metrics/mAP50B metrics/mAP50-95B".split()
        (folder / "results.csv").write_text(f"{','.join(names)}\n4,1,1,1e-5,0.5,{config.optimizer.lr}\n")
        (folder / "statement.json").write_text('{"status": "finished"}')
        return SimpleNamespace(output_dir=folder, weights=folder, epsilon=1.0, metrics={})

    module.train_from_config = train_from_config
    monkeypatch.setitem(sys.modules, "dptrain.run.train", module)
    monkeypatch.chdir(tmp_path)
    dataset_maker(tmp_path)(train=3, val=1)
    return seen


def command(*more: str, number: int = 3) -> list[str]:
    study = ["hydra/sweeper=optuna", f"hydra.sweeper.n_trials={number}", "output_dir=s", "tracking=disabled"]
    return ["train", "-m", "model=m.pt", "data=data.yaml", *study, *PLAN, *more]


def test_a_study_looks_for_the_highest_score_and_costs_all_of_its_trials(
    trials: list[TrainConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(LR)) == 0
    told = capsys.readouterr()
    assert told.err == ""
    rates = [trial.optimizer.lr for trial in trials]
    with Path("s/sweep.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["optimizer.lr"]) for row in rows] == pytest.approx(rates)
    assert f"best_value: {max(rates)}" in Path("s/optimization_results.yaml").read_text()
    whole = compose([JobCost(4, 4, 0.1, 4.0, 1e-5, True)] * 3)
    summary = json.loads(Path("s/summary.json").read_text())
    assert whole is not None and summary["epsilon_composed"] == pytest.approx(whole.epsilon)
    assert (summary["jobs"], summary["finished"], summary["ended_early"]) == (3, 3, False)
    assert main(command(LR, "resume=true")) == 2
    assert "would choose others; resume its jobs one by one" in capsys.readouterr().err


def test_a_used_up_budget_ends_the_study_in_one_line_and_all_planned_trials_count(
    trials: list[TrainConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    """What ended it may have been the scores: the cost is that of the study as it was planned."""
    sys.modules["dptrain.run.train"].budget = 2  # type: ignore[attr-defined]
    assert main(command(LR, number=9)) == 2
    told = capsys.readouterr()
    assert told.err.splitlines() == ["dptrain: error: the steps of this run do not fit the budget pets"]
    assert len(trials) <= 4, "the trials of one batch"
    summary = json.loads(Path("s/summary.json").read_text())
    whole = compose([JobCost(4, 4, 0.1, 4.0, 1e-5, True)] * 9)
    assert whole is not None and summary["epsilon_composed"] == pytest.approx(whole.epsilon)
    assert (summary["finished"], summary["ended_early"]) == (2, True)


def test_a_trial_that_fails_stops_no_other(trials: list[TrainConfig], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(LR, "imgsz=choice(32,64)", "hydra.sweeper.sampler.seed=1", number=6)) == 2
    told = capsys.readouterr()
    failed = [trial for trial in trials if trial.imgsz == 64]
    assert 0 < len(failed) < len(trials) == 6
    assert len(told.err.splitlines()) == len(failed) + 1, told.err
    assert told.err.splitlines()[-1] == f"dptrain: error: {len(failed)} of 6 jobs failed"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([LR, "validation=off"], "validation=off: the score that chooses the next trial must be computed on public"),
        ([LR, "data=train_only.yaml"], "train_only.yaml has no val split, and trials are chosen by their score there"),
        ([LR, "hydra.sweeper.direction=minimize"], "hydra.sweeper.direction=minimize: the score of a trial is its"),
        ([LR, "hydra.sweeper.storage='sqlite:///study.db'"], "hydra.sweeper.storage=sqlite:///study.db is refused"),
        ([LR, "hydra.sweeper.custom_search_space=a.b"], "hydra.sweeper.custom_search_space=a.b is refused"),
        ([LR, "hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials=0: give the number of trials, 1 or more"),
        (["privacy.noise_multiplier=interval(1,2)"], "privacy.noise_multiplier cannot be chosen by scores"),
        (["steps=range(1,9)"], "steps cannot be chosen by scores"),
        (["data=data.yaml,other.yaml"], "data cannot be chosen by scores"),
        (["--config-dir=my", "experiment=wide"], "privacy.epsilon cannot be chosen by scores"),
        (["optimizer.rate=interval(1,2)"], "unknown key optimizer.rate"),
        (["workers=0,2"], "workers cannot be chosen by scores"),
        (["resume=true,false"], "resume cannot be swept: it belongs to the sweep as a whole"),
        ([LR, "steps=null", "time=1h"], "steps is not set, and a sweep compares runs"),
        (["optimizer.lr=0.1"], "hydra/sweeper=optuna has nothing to choose"),
        ([LR, "tuning=random_stopping"], "tuning.method=random_stopping and -m cannot be combined"),
        ([LR, "budget.url=postgresql://anna:hush@h/x"], "budget.url holds a password or a key"),
    ],
)
def test_what_no_study_may_do_is_refused_before_anything_is_charged_or_written(
    arguments: list[str], expected: str, trials: list[TrainConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("train_only.yaml").write_text("train: images/train\nnames: [green, blue]\n")
    Path("my/experiment").mkdir(parents=True)
    wide = "# @package _global_\nhydra:\n  sweeper:\n    params:\n      privacy.epsilon: interval(1,9)\n"
    Path("my/experiment/wide.yaml").write_text(wide)
    assert main(command(*arguments)) == 2
    told = capsys.readouterr()
    assert expected in told.err and len(told.err.splitlines()) == 1, told.err
    assert not trials and not Path("s").exists()


# Parts, also without Optuna


def test_the_record_keeps_what_a_study_may_cost(tmp_path: Path) -> None:
    record = SweepRecord(tmp_path, study=Study(("optimizer.lr",), 5))
    record.write()
    assert SweepRecord.read(tmp_path) == record
    assert record.job(7, ["steps=3", "optimizer.lr=0.1"]).swept == {"optimizer.lr": "0.1"}


def test_a_trial_that_was_killed_counts_though_it_told_nothing_more(tmp_path: Path) -> None:
    record = SweepRecord(tmp_path, study=Study(("optimizer.lr",), 2))
    record.tell(0, "begun", label="lr=0.1", swept={"optimizer.lr": "0.1"})
    (tmp_path / "0").mkdir()
    privacy = {"sample_rate": 0.1, "delta": 1e-5, "noise_multiplier": 4.0}
    (tmp_path / "0" / "settings.json").write_text(json.dumps({"steps": 4, "seed": None, "privacy": privacy}))
    (tmp_path / "0" / "steps.journal").write_bytes(b".")
    (row,) = read_table(record).rows
    whole = compose([JobCost(4, 4, 0.1, 4.0, 1e-5, True)] * 2)
    cost = read_table(record).cost
    assert (row.state, row.label, row.swept) == ("begun", "lr=0.1", {"optimizer.lr": "0.1"})
    assert cost is not None and whole is not None and cost.epsilon == pytest.approx(whole.epsilon)


def test_whoever_reads_the_score_of_a_trial_without_budget_ends_the_study() -> None:
    with pytest.raises(SweepRefused) as ended:
        float(NoBudget(BudgetError("nothing is left")))
    assert str(ended.value.error) == "nothing is left"
