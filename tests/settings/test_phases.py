"""``phases`` in the settings: one plan of all their steps, or one line that names the phase, the value and the fix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dptrain import ConfigError, PrivacyPlan
from dptrain.commands.main import main
from dptrain.run.phases import rate_of
from dptrain.run.sweep.cost import planned_cost
from dptrain.run.sweep.jobs import SweepJob, comparable
from dptrain.run.tuning import plan_tuning
from dptrain.settings import resolve as settings
from dptrain.settings.schema import PhaseConfig, TrainConfig

from .test_resolve import BASE, refusal, resolved

PRIVACY = {"noise_multiplier": 1.0, "sample_rate": 0.1, "expected_batch_size": 10, "delta": 1e-5}
HEAD, ALL = {"trainable": "head", "steps": 60}, {"trainable": ["neck_and_head", "norm_and_bias"], "steps": 100}
TWO = [HEAD, ALL]


def test_phases_are_typed_sections_and_their_steps_are_the_plans() -> None:
    config = resolved(phases=TWO, privacy=PRIVACY)
    assert config.phases == [
        PhaseConfig("head", 60, None),
        PhaseConfig(["neck_and_head", "norm_and_bias"], 100, None),
    ]
    assert config.steps == 160 and config.trainable is None
    plan, one = settings.make_plan(config), settings.make_plan(resolved(steps=160, privacy=PRIVACY))
    assert plan == one and plan.event() == one.event()
    assert settings.make_plan(settings.with_plan(config, plan)) == plan


def test_the_noise_for_an_epsilon_is_that_of_all_steps_of_all_phases() -> None:
    privacy = {"epsilon": 8.0, "dataset_size": 1000}
    plan = settings.make_plan(resolved(phases=TWO, privacy=privacy))
    assert plan == settings.make_plan(resolved(steps=160, privacy=privacy)) and plan.epsilon() <= 8.0
    assert plan.noise_multiplier > settings.make_plan(resolved(steps=60, privacy=privacy)).noise_multiplier


def test_what_was_resolved_is_resolved_to_the_same_and_may_repeat_the_sum() -> None:
    config = resolved(phases=TWO, steps=160, privacy=PRIVACY)
    assert settings.resolve(config) == config
    again = settings.resolve(settings.with_plan(config, settings.make_plan(config)))
    assert again.phases == config.phases and again.steps == 160


def test_steps_and_what_trains_are_those_of_the_phases() -> None:
    config = resolved(phases=TWO, privacy={"epsilon": 8.0, "dataset_size": 500})
    assert config.steps == 160 and config.trainable is None and config.head == "auto"


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "trainable": ("trainable=all and phases are one too many", {"trainable": "all"}),
    "lr": ("optimizer.lr=0.1 has no effect with phases", {"optimizer": {"lr": 0.1}}),
    "steps": ("steps=100, and the phases have 160 in all", {"steps": 100}),
    "warm-up": ("schedule.warmup_steps=61 is more than the 60 steps of a phase", {"schedule": {"warmup_steps": 61}}),
    "lora": ("phases[1].trainable=lora", {"phases": [HEAD, {"trainable": ["lora", "head"], "steps": 1}]}),
    "lora options": ("lora.rank=4 has no effect without trainable=lora", {"lora": {"rank": 4}}),
    "no trainable": ("phases[1].trainable is not set", {"phases": [HEAD, {"steps": 1}]}),
    "no steps": ("phases[0].steps is not set", {"phases": [{"trainable": "head"}]}),
    "zero steps": ("phases[0].steps=0 must be 1 or more", {"phases": [{"trainable": "head", "steps": 0}]}),
    "no rate": ("phases[0].lr=0.0 must be more than 0", {"phases": [{**HEAD, "lr": 0.0}]}),
    "a rate that is none": ("phases[0].lr=nan must be more than 0", {"phases": [{**HEAD, "lr": float("nan")}]}),
    "empty names": ("phases[0].trainable=[] is not the name", {"phases": [{**HEAD, "trainable": []}]}),
    "a section": ("is not the name of a group", {"phases": [{**HEAD, "trainable": {"a": 1}}]}),
    "a misspelt key": ("phases: unknown key trianable; did you mean trainable?", {"phases": [{"trianable": "head"}]}),
    "a key of nowhere": ("phases: unknown key xyz; it has trainable, steps, lr", {"phases": [{"xyz": 1}]}),
    "a text": ("phases: steps=abc is not a whole number", {"phases": [{"trainable": "head", "steps": "abc"}]}),
    "a fraction": ("phases: steps=1.5 is not a whole number", {"phases": [{"trainable": "head", "steps": 1.5}]}),
    "no number": ("phases: lr=x is not a number", {"phases": [{**HEAD, "lr": "x"}]}),
    "no list": ("phases is not a list such as [{", {"phases": "head"}),
    "no sections": ("phases[0]=5 is not a list such as [{", {"phases": [5]}),
}


@pytest.mark.parametrize(("message", "changes"), REFUSED.values(), ids=REFUSED.keys())
def test_phases_that_contradict_or_are_none_are_one_line(message: str, changes: dict[str, Any]) -> None:
    assert message in refusal(**{"phases": TWO, "privacy": PRIVACY, **changes})


def test_a_plan_of_other_steps_is_refused() -> None:
    plan = PrivacyPlan(0.1, 100, 1.0, 1.0, 1e-5, 10)
    with pytest.raises(ConfigError, match="steps=100, and the phases have 160 in all"):
        settings.resolve(settings.from_kwargs(**BASE, plan=plan, phases=TWO))


def test_the_schedule_runs_anew_in_every_phase() -> None:
    phases = [{**HEAD, "steps": 4, "lr": 0.4}, {**ALL, "steps": 6, "lr": 0.1}]
    schedule = {"name": "linear", "warmup_steps": 2, "final": 0.5}
    config = resolved(phases=phases, privacy=PRIVACY, schedule=schedule)
    rate = rate_of(config, settings.make_plan(config))
    assert [rate(step) for step in range(4)] == pytest.approx([0.2, 0.4, 0.4, 0.2])
    assert [rate(step) for step in range(4, 10)] == pytest.approx([0.05, 0.1, 0.1, 0.1 - 0.05 / 3, 0.1 - 0.1 / 3, 0.05])


def test_a_job_of_a_sweep_costs_the_steps_of_all_its_phases() -> None:
    config = resolved(phases=TWO, privacy=PRIVACY)
    cost = planned_cost(SweepJob(0, {}, comparable(config)))
    assert cost is not None and cost.planned_steps == 160


def _tuned(search: Any, **changes: Any) -> TrainConfig:
    tuning = {"method": "random_stopping", "mean_runs": 5.0, "search": search}
    return resolved(**{"privacy": PRIVACY, "tuning": tuning, **changes})


def test_a_tuning_searches_phases_of_equal_cost_only() -> None:
    other = [{**HEAD, "steps": 100}, {**ALL, "steps": 60}]
    tuning = plan_tuning(_tuned({"phases": [TWO, other]}))
    assert [[phase.steps for phase in c.phases] for c in tuning.candidates] == [[60, 100], [100, 60]]
    assert tuning.plan.steps == 160 and all(c.trainable is None for c in tuning.candidates)
    assert plan_tuning(_tuned({"schedule.name": ["constant", "cosine"]}, phases=TWO)).plan.steps == 160
    with pytest.raises(ConfigError, match="costs another epsilon"):
        plan_tuning(_tuned({"phases": [TWO, [HEAD]]}))
    with pytest.raises(ConfigError, match=r"phases=\[\[\]\]: every candidate is a list of phases"):
        plan_tuning(_tuned({"phases": [[]]}))
    with pytest.raises(ConfigError, match="trainable=head and phases are one too many"):
        plan_tuning(_tuned({"trainable": ["head", "all"]}, phases=TWO))


def test_the_command_line_takes_phases(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[TrainConfig] = []
    monkeypatch.setattr("dptrain.run.train.train_from_config", seen.append)
    monkeypatch.setattr("dptrain.commands.train.train_from_config", seen.append, raising=False)
    common = ["train", "data=pets.yaml", "model=yolo26n.yaml", "privacy.epsilon=8", "privacy.dataset_size=1000"]
    main([*common, "phases=[{trainable:head,steps:60,lr:0.01},{trainable:[head,norm_and_bias],steps:100}]",
          f"output_dir={tmp_path / 'out'}"])  # fmt: skip
    (config,) = seen
    assert [(p.trainable, p.steps, p.lr) for p in config.phases] == [
        ("head", 60, 0.01), (["head", "norm_and_bias"], 100, None),
    ]  # fmt: skip
    assert config.steps == 160
    capsys.readouterr()
    assert main([*common, "phases=[{trainable:head,step:60}]"]) == 2
    assert "phases: unknown key step; did you mean steps?" in capsys.readouterr().err
    assert main([*common, "phases={trainable:head,steps:60}"]) == 2
    assert "phases is not a list such as [{trainable:head,steps:60}" in capsys.readouterr().err
