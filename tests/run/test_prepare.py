"""What is decided before a run's first step: all of it at once, with nothing written."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import dptrain.run.train
from dptrain import BudgetLedger, ConfigError, PrivacyPlan
from dptrain.commands.main import main
from dptrain.run.charge import RunCharge
from dptrain.run.prepare import PaidByTuning, Prepared, prepare
from dptrain.settings import resolve as settings
from dptrain.settings.schema import TrainConfig

from ..conftest import SMALL, dataset_maker

PLAN = PrivacyPlan(0.5, 4, 4.0, 1.0, 1e-3, 3)


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    dataset_maker(tmp_path)(train=3, val=1)
    given = settings.from_kwargs(
        plan=PLAN, model=SMALL, data=str(tmp_path / "data.yaml"), imgsz=32, workers=0, trainable="head",
        output_dir=str(tmp_path / "out"), budget={"url": f"sqlite:///{tmp_path / 'budget.db'}"},
        tracking={"enabled": False},
    )  # fmt: skip
    return settings.with_plan(settings.resolve(given), PLAN)


def test_a_prepared_run_is_final_and_nothing_of_it_is_written(config: TrainConfig, tmp_path: Path) -> None:
    prepared = prepare(config, PLAN)
    assert prepared.plan == prepared.trainer.plan == PLAN and prepared.pays
    assert config.optimizer.lr is None and prepared.rate_by_rule == (True,)
    assert prepared.config == dataclasses.replace(config, optimizer=prepared.config.optimizer)
    assert prepared.config.optimizer.lr is not None
    assert len(prepared.pictures) == 3 and prepared.validation is not None
    assert not (tmp_path / "out").exists()
    assert BudgetLedger(str(config.budget.url)).show() == []
    with pytest.raises(dataclasses.FrozenInstanceError):
        prepared.plan = PLAN  # type: ignore[misc]


def test_a_run_in_bf16_computes_in_it_and_takes_its_steps(config: TrainConfig) -> None:
    trainer = prepare(dataclasses.replace(config, precision="bf16"), PLAN).trainer
    assert trainer.loss_function.precision == "bf16"  # type: ignore[attr-defined]
    trainer._on_release = None  # nothing was reserved
    assert list(trainer.run()) == [1, 2, 3, 4]
    assert prepare(config, PLAN).trainer.loss_function.precision == "fp32"  # type: ignore[attr-defined]


def test_bf16_that_is_not_safe_starts_no_run(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="precision=bf16 is not safe here"):
        prepare(dataclasses.replace(config, precision="bf16", engine="microbatch"), PLAN)
    assert not (tmp_path / "out").exists()


def test_a_candidate_is_paid_for_by_the_tuning(config: TrainConfig, tmp_path: Path) -> None:
    """Its own settings name a ledger, which hears nothing of it."""
    charge = RunCharge(config.budget, PLAN.event(), PLAN.delta, PLAN.unit, {}, "data", whole=True)
    prepared = prepare(config, PLAN, PaidByTuning({"method": "random stopping"}, charge, ()))
    assert prepared.charge is charge and not prepared.pays
    assert prepared.tuning == {"method": "random stopping"}
    assert not (tmp_path / "budget.db").exists() and not (tmp_path / "out").exists()


def test_a_clip_rule_that_fits_no_layer_is_refused_before_anything_is_written(
    config: TrainConfig, tmp_path: Path
) -> None:
    plan = dataclasses.replace(PLAN, clipping=dptrain.Clipping("groups", ("no.such.*",)))
    with pytest.raises(ConfigError, match=r"no\.such"):
        prepare(settings.with_plan(config, plan), plan)
    assert not (tmp_path / "out").exists() and not (tmp_path / "budget.db").exists()


def test_settings_are_resolved_once_from_the_command_line(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[TrainConfig] = []
    real = settings.resolve

    def resolve(given: TrainConfig) -> TrainConfig:
        seen.append(given)
        return real(given)

    def refuse(*_: Any, **__: Any) -> Prepared:
        raise ConfigError("enough was seen")

    monkeypatch.setattr(settings, "resolve", resolve)
    monkeypatch.setattr(dptrain.run.train, "prepare", refuse)
    arguments = [f"data={tmp_path / 'data.yaml'}", f"model={SMALL}", "privacy.epsilon=8", "privacy.dataset_size=100"]
    assert main(["train", *arguments, "steps=2", f"output_dir={tmp_path / 'out'}", "tracking=disabled"]) == 2
    assert len(seen) == 1
