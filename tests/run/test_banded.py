"""Whole runs with correlated noise: what they cost, state, charge and resume with, and what they do to a neighbour."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from dp_accounting.dp_event import ComposedDpEvent, GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.rdp import RdpAccountant
from mlflow.tracking import MlflowClient

import dptrain
from dptrain import BudgetLedger, ConfigError, PrivacyError, PrivacyPlan
from dptrain.audit import audit_training
from dptrain.commands.main import main
from dptrain.datasets.identity import picture_in
from dptrain.detection import load_model, save_weights
from dptrain.privacy.accounting import attack_accuracy, true_positive_rates
from dptrain.privacy.rdp import ORDERS, RELATION
from dptrain.privacy.sampling import CyclicPoissonSampler, part_of
from dptrain.run import job as run_module
from dptrain.run.prepare import prepare
from dptrain.run.sweep.cost import JobCost, compose, read_cost
from dptrain.settings import resolve as settings
from dptrain.statement import check_statement
from dptrain.statement.start_runs import StartRun

from ..conftest import SMALL, dataset_maker, run_options
from ..privacy.datasets import write_neighbours
from ..privacy.recording import difference, length
from ..privacy.whole_runs import published, run_on
from ..statement.runs import reseal

PLAN = PrivacyPlan(0.25, 7, 1.0, 1.0, 1e-3, 3, bands=3)


def by_hand(events: list[tuple[float, float, int]], delta: float = 1e-3) -> float:
    """RDP epsilon of Poisson-sampled Gaussians (rate, noise multiplier, how often), by dp-accounting alone."""
    steps = [PoissonSampledDpEvent(rate, GaussianDpEvent(noise)) for rate, noise, often in events for _ in range(often)]
    return float(RdpAccountant(ORDERS, RELATION).compose(ComposedDpEvent(steps)).get_epsilon(delta))


def options(folder: Path, **changes: Any) -> dict[str, Any]:
    usual = {"plan": PLAN, "validation": "off", "tracking": {"enabled": False}, "budget": {"url": None}, "imgsz": 32}
    return run_options(folder, **{**usual, **changes})


def ledger_at(folder: Path) -> dict[str, str]:
    return {"url": f"sqlite:///{folder / 'budget.db'}"}


def stop_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have whatever run comes next stopped after a step, by Ctrl-C."""
    real = run_module.Progress.update

    def update(self: Any, taken: int) -> None:
        real(self, taken)
        if taken == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(run_module.Progress, "update", update)


def test_a_run_states_its_noise_and_costs_its_event_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seven steps of three bands: three Poisson-sampled Gaussians at three times the rate."""
    data = dataset_maker(tmp_path / "data")()
    tracking = {"uri": f"sqlite:///{tmp_path / 'mlflow.db'}", "experiment": "test"}
    given = options(tmp_path, validation="public", evaluate_every=2, tracking=tracking, budget=ledger_at(tmp_path))
    result = dptrain.train(data=data, **given)
    expected = by_hand([(0.75, 1.0, 3)])
    assert result.epsilon == pytest.approx(expected, rel=1e-12) == PLAN.epsilon()
    said = " ".join(capsys.readouterr().out.split())
    assert "noise is correlated over 3 steps" in said and "accounted as 3 steps at sample rate 0.75" in said

    with (result.output_dir / "results.csv").open() as stream:
        rows = {int(row["step"]): float(row["dp/epsilon"]) for row in csv.DictReader(stream)}
    costs = {step: by_hand([(0.75, 1.0, math.ceil(step / 3))]) if step else 0.0 for step in (0, 2, 4, 6, 7)}
    assert rows == pytest.approx(costs, rel=1e-9)
    client = MlflowClient(tracking["uri"])
    run = client.get_run((result.output_dir / "mlflow_run").read_text())
    assert run.data.tags["dptrain.sampler"] == "cyclic Poisson" and run.data.params["privacy.bands"] == "3"
    history = {item.step: item.value for item in client.get_metric_history(run.info.run_id, "dp/epsilon")}
    assert history == pytest.approx(costs, rel=1e-9)

    written = json.loads((result.output_dir / "statement.json").read_text())
    step = PoissonSampledDpEvent(0.75, GaussianDpEvent(1.0))
    curve = RdpAccountant(ORDERS, RELATION).compose(step, 3).rdp
    assert written["accounting"]["rdp_curve"] == pytest.approx(
        {str(order): bound for order, bound in zip(ORDERS, curve, strict=True) if math.isfinite(bound)}
    )
    assert written["guarantee"]["attack_accuracy"] == attack_accuracy(0.75, 3, 1.0, 1e-3)
    assert written["guarantee"]["true_positive_rates"] == true_positive_rates(0.75, 3, 1.0, 1e-3)
    assert written["mechanism"]["bands"] == 3 and written["mechanism"]["sample_rate"] == 0.25
    assert "3 parts" in written["mechanism"]["sampling"] and "over 3 steps" in written["mechanism"]["correlation"]
    assert any("one of every 3 steps" in item["assumption"] for item in written["accounting"]["assumptions"])
    assert check_statement(result.output_dir).statement["guarantee"]["epsilon"] == pytest.approx(expected)
    assert "Correlation of the noise" in (result.output_dir / "statement.md").read_text()

    (row,) = BudgetLedger(ledger_at(tmp_path)["url"]).history()
    assert (row.sample_rate, row.noise_multiplier, row.charged, row.planned) == (0.75, 1.0, 3, 3)
    assert BudgetLedger(ledger_at(tmp_path)["url"]).show()[0].epsilon == pytest.approx(expected, rel=1e-9)
    cost = read_cost(result.output_dir)
    assert cost is not None and cost.epsilon() == pytest.approx(expected) and cost.bands == 3
    behind = StartRun.of(written, "0" * 64)
    assert behind.bands == 3 and [*behind.curve().values()] == pytest.approx([*curve])

    for name, value in (
        ("mechanism/bands", 1), ("mechanism/bands", 4), ("mechanism/correlation", "none"),
        ("mechanism/sampling", "Poisson"), ("guarantee/epsilon", by_hand([(0.75, 1.0, 2)])),
    ):  # fmt: skip
        kept = (
            (result.output_dir / "statement.json").read_bytes(),
            (result.output_dir / "weights/statement.json").read_bytes(),
        )
        reseal(result.output_dir, name, value)
        with pytest.raises(PrivacyError, match=name.rpartition("/")[2]):
            check_statement(result.output_dir)
        (result.output_dir / "statement.json").write_bytes(kept[0])
        (result.output_dir / "weights/statement.json").write_bytes(kept[1])


def test_a_sweep_composes_the_events_of_its_jobs() -> None:
    jobs = [JobCost(4, 7, 0.25, 1.0, 1e-3, True, bands=3), JobCost(7, 7, 0.25, 1.5, 1e-3, True)]
    cost = compose(jobs)
    assert cost is not None
    assert cost.epsilon == pytest.approx(by_hand([(0.75, 1.0, 3), (0.25, 1.5, 7)]))
    assert cost.epsilon_of_steps == pytest.approx(by_hand([(0.75, 1.0, 2), (0.25, 1.5, 7)]))
    assert jobs[0].epsilon() == pytest.approx(by_hand([(0.75, 1.0, 3)]))


@pytest.mark.parametrize("recorded", [True, False])
def test_a_stopped_run_resumes_and_is_never_charged_less_than_it_took(
    recorded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a ledger it goes on at the next round, for a copy of its folder may have taken the rest of this one."""
    data = dataset_maker(tmp_path / "data")()
    given = options(tmp_path, budget=ledger_at(tmp_path) if recorded else {"url": None}, checkpoint_every=1)
    with monkeypatch.context() as patch:
        stop_after(4, patch)
        with pytest.raises(KeyboardInterrupt):
            dptrain.train(data=data, **given)
    if recorded:
        (row,) = BudgetLedger(ledger_at(tmp_path)["url"]).history()
        assert row.charged == 2
    result = dptrain.train(data=data, **given, resume=True)
    assert (result.output_dir / "steps.journal").stat().st_size == 7
    assert result.epsilon == PLAN.epsilon() == check_statement(result.output_dir).statement["guarantee"]["epsilon"]
    steps = []
    real = CyclicPoissonSampler.draw
    with monkeypatch.context() as patch:
        patch.setattr(CyclicPoissonSampler, "draw", lambda self, step: (steps.append(step), real(self, step))[1])
        with patch.context() as inner:
            stop_after(4, inner)
            with pytest.raises(KeyboardInterrupt):
                dptrain.train(data=data, **{**given, "output_dir": str(tmp_path / "again")})
        begun = len(steps)
        dptrain.train(data=data, **{**given, "output_dir": str(tmp_path / "again")}, resume=True)
    assert steps[begun:][0] == (6 if recorded else 4)
    if recorded:
        assert [row.charged for row in BudgetLedger(ledger_at(tmp_path)["url"]).history()] == [3, 3]


def test_one_image_more_is_in_its_part_alone_and_nothing_else_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    start = save_weights(load_model(SMALL, 2), tmp_path / "start.pt")
    kinds = ["ordinary", "no boxes", "one box", "tiny boxes"]
    neighbours = write_neighbours(tmp_path / "data", kinds, "300 boxes", 4)
    how = PrivacyPlan(1 / 3, 6, 1.0, 0.3, 1e-3, 4, bands=3)
    doors, files = [], []
    for name, dataset in (("one", neighbours.smaller), ("other", neighbours.larger)):
        with monkeypatch.context() as patch:
            more = int(dataset == neighbours.larger)
            _, seen = run_on(dataset, start, tmp_path / name, patch, more, plan=how)
        doors.append(seen)
        files.append(published(tmp_path / name))
    one, other = doors
    assert one.stated == other.stated == [(0.3, 1.0)] * 6 and one.draws == other.draws
    (file,) = {*_listed(neighbours.larger)} - {*_listed(neighbours.smaller)}
    part = part_of(picture_in(file), 3)
    for step, (a, b) in enumerate(zip(one.values, other.values, strict=True)):
        apart = length(difference(a, b))
        assert (0.0 < apart <= 0.3 * (1 + 1e-4)) if step % 3 == part else apart <= 1e-6
    assert files[0].keys() == files[1].keys()
    assert [name for name, content in files[0].items() if content != files[1][name]] == []


def _listed(dataset: Path) -> list[Path]:
    return [dataset.parent / line for line in dataset.with_suffix(".txt").read_text().split()]


def test_an_image_that_comes_first_moves_no_other_to_another_part(tmp_path: Path) -> None:
    """The numbers of all others change; their parts, and with them the steps that may draw them, do not."""
    neighbours = write_neighbours(tmp_path, ["ordinary", "one box", "tiny boxes"], "300 boxes", 0)
    parts = []
    for file in (neighbours.smaller, neighbours.larger):
        config = settings.resolve(settings.from_kwargs(data=str(file), **options(tmp_path)))
        plan = settings.make_plan(config)
        sampler = prepare(settings.with_plan(config, plan), plan).trainer.sampler
        assert isinstance(sampler, CyclicPoissonSampler) and sampler.sample_rate == 0.75
        parts.append(sampler.parts.tolist())
    assert parts[1][1:] == parts[0] and len(parts[1]) == 4


def test_copies_of_a_picture_that_count_as_one_image_have_one_part(tmp_path: Path) -> None:
    data = dataset_maker(tmp_path / "data")()
    images = sorted((tmp_path / "data").rglob("images/train/*"))
    for suffix in ("a", "b"):
        images[0].with_name(f"{images[0].stem}{suffix}.png").write_bytes(images[0].read_bytes())
    given = {**options(tmp_path), "plan": None, "steps": 7, "data": str(data)}
    numbers = {"noise_multiplier": 1.0, "sample_rate": 0.25, "expected_batch_size": 3, "delta": 1e-3}
    privacy = {**numbers, "noise": "banded", "bands": 3, "same_picture": "one_unit"}
    config = settings.resolve(settings.from_kwargs(**given, privacy=privacy))
    plan = settings.make_plan(config)
    assert plan == PLAN
    sampler: Any = prepare(settings.with_plan(config, plan), plan).trainer.sampler
    assert sampler.num_units == len(sampler.parts) == len(images)


# Settings.

PUBLIC = {"dataset_size": 20_000, "expected_batch_size": 64, "epsilon": 8.0, "noise": "banded"}


def resolved(privacy: dict[str, Any], **changes: Any) -> Any:
    given = {"model": "a.pt", "data": "b.yaml", "steps": 800, **changes}
    return settings.resolve(settings.from_kwargs(**given, privacy=privacy))


def test_the_settings_make_the_plan_and_the_plan_the_settings() -> None:
    config = resolved({**PUBLIC, "bands": 8})
    plan = settings.make_plan(config)
    assert plan.bands == 8 and 7.9 < plan.epsilon() <= 8.0
    settled = settings.with_plan(config, plan)
    assert settled.privacy.noise == "banded" and settled.privacy.bands == 8
    assert settings.make_plan(settings.resolve(settled)) == plan
    given = settings.from_kwargs(model="a.pt", data="b.yaml", plan=plan)
    assert settings.make_plan(settings.resolve(given)) == plan
    one = settings.make_plan(resolved({**PUBLIC, "bands": 1}))
    assert one == settings.make_plan(resolved({**PUBLIC, "noise": "independent"}))
    assert settings.with_plan(config, one).privacy.noise == "independent"


def test_without_a_number_of_bands_the_best_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    plan = settings.make_plan(resolved(PUBLIC))
    assert plan.bands == 32 and "privacy.bands is not set: 32, 40 %" in caplog.text
    assert plan == settings.make_plan(resolved({**PUBLIC, "bands": 32}))


@pytest.mark.parametrize(
    ("privacy", "changes", "said"),
    [
        ({"bands": 8, "noise": "independent"}, {}, "privacy.bands=8 has no effect with privacy.noise=independent"),
        ({"noise": "correlated"}, {}, "privacy.noise=correlated is not one of independent, banded"),
        ({"bands": 0}, {}, "privacy.bands=0 must be 1 or more"),
        ({"unit": "group"}, {}, "privacy.noise=banded with privacy.unit=group"),
        ({"bands": 8}, {"noise": {"exact": True}}, "privacy.noise=banded with noise.exact=true"),
        ({"bands": 8}, {"tuning": {"method": "random_stopping"}}, "with tuning.method=random_stopping"),
        ({"bands": 400}, {}, "bands=400 at sample_rate=0.0032 .* at most 312 bands"),
        ({"expected_batch_size": 2048}, {}, "privacy.noise=banded saves nothing in 800 steps"),
        ({"epsilon": None, "noise_multiplier": 1.0}, {}, "privacy.bands is not set, and is found for a given"),
    ],
)
def test_what_is_not_worked_out_is_refused_in_a_line(
    privacy: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        settings.make_plan(resolved({**PUBLIC, **privacy}, **changes))
    assert "\n" not in str(caught.value)


def test_a_run_resumed_with_other_bands_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset_maker(tmp_path / "data")()
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        with pytest.raises(KeyboardInterrupt):
            dptrain.train(data=data, **options(tmp_path))
    with pytest.raises(PrivacyError, match="bands"):
        dptrain.train(data=data, **options(tmp_path, plan=dataclasses.replace(PLAN, bands=2), resume=True))


def test_attacks_are_not_made_on_correlated_noise() -> None:
    with pytest.raises(ConfigError, match="bands=3 cannot be audited"):
        audit_training(PLAN)


def test_plan_shows_the_best_bands_and_what_they_save(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["plan", "--dataset-size", "20000", "--epsilon", "8", "--delta", "1.9e-5", "--steps", "800"]
    assert main([*asked, "--batch-sizes", "64,2048", "--json"]) == 0
    few, many = json.loads(capsys.readouterr().out)["runs"]
    assert few["bands"] == 32 and few["banded_noise"] == pytest.approx(0.40, abs=0.01)
    assert many["bands"] == 1 and many["banded_noise"] == 1.0
    assert main([*asked, "--batch-sizes", "64"]) == 0
    assert "32: 40%" in capsys.readouterr().out
