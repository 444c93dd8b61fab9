"""A statement that says less than its run did must not pass."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from dp_accounting import NeighboringRelation
from dp_accounting.dp_event import RepeatAndSelectDpEvent
from dp_accounting.rdp import RdpAccountant

from dptrain import ConfigError, PrivacyError
from dptrain.privacy.accounting import attack_accuracy, rdp_curve, true_positive_rates, true_positive_rates_within
from dptrain.statement import check_statement, to_html
from dptrain.statement.facts import SPENT

from .runs import PLAN, edit, make_run, reseal


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("made") / "run")


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "run")


def test_an_untouched_run_reports_what_it_wrote(run: Path) -> None:
    written = json.loads((run / "statement.json").read_text())
    for asked in (run, run / "weights" / "last.pt", run / "weights", run / "statement.json"):
        found = check_statement(asked).statement
        assert len(found.pop("checks")) == 4
        assert {**found, "sha256": 0} == {**written, "sha256": 0}


TUNING = {"method": "random stopping", "runs": "secret", "distribution": "geometric", "mean_runs": 5.0}


OF_ONE_RUN = true_positive_rates(PLAN.sample_rate, PLAN.steps, PLAN.noise_multiplier, PLAN.delta)


def test_the_winner_of_a_tuning_claims_what_the_tuning_costs(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tuning=TUNING)
    edit(run / "settings.json", "tuning", {"method": "random_stopping", "distribution": "geometric", "mean_runs": 5.0})
    guarantee = check_statement(run).statement["guarantee"]
    account = RdpAccountant(neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE)
    price = account.compose(RepeatAndSelectDpEvent(PLAN.event(), 5.0, 1.0)).get_epsilon(PLAN.delta)
    assert guarantee["epsilon"] == guarantee["epsilon_pld"] == pytest.approx(price, rel=1e-9)
    assert guarantee["ended_early"] is None
    event = RepeatAndSelectDpEvent(PLAN.event(), 5.0, 1.0)
    assert guarantee["true_positive_rates"] == true_positive_rates_within(rdp_curve(event))
    assert all(guarantee["true_positive_rates"][name] > rate for name, rate in OF_ONE_RUN.items())
    assert price > 1.2 * PLAN.epsilon()
    assert "winner" in guarantee["covers"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("guarantee/epsilon", PLAN.epsilon()),
        ("guarantee/true_positive_rates", OF_ONE_RUN),
        ("guarantee/covers", "one training run, every iterate of it"),
        ("accounting/epsilon_over_steps", {"0": 0.0, "20": PLAN.epsilon()}),
        ("accounting/epsilon_over_steps", {"0": 0.0, "20": 99.0}),
        ("tuning/mean_runs", 2.0),
        ("tuning/mean_runs", 0.5),
        ("tuning/distribution", "logarithmic"),
        ("tuning/distribution", "fixed"),
        ("tuning/distribution", ...),
        ("tuning", {"method": "single run", "runs": 1, "epsilon": None}),
    ],
)
def test_a_winner_cannot_pass_for_a_run_that_nobody_chose(tmp_path: Path, name: str, value: Any) -> None:
    run = make_run(tmp_path / "run", tuning=TUNING)
    edit(run / "settings.json", "tuning", {"method": "random_stopping", "distribution": "geometric", "mean_runs": 5.0})
    reseal(run, name, value)
    with pytest.raises(PrivacyError, match=name.rpartition("/")[2]):
        check_statement(run)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("guarantee/epsilon", PLAN.epsilon() * 0.999),
        ("guarantee/epsilon", math.nan),
        ("guarantee/epsilon", True),
        ("guarantee/epsilon", "1"),
        ("guarantee/epsilon", ...),
        ("guarantee/epsilon_pld", PLAN.epsilon("pld") * 0.999),
        ("guarantee/attack_accuracy", 0.5),
        ("guarantee/true_positive_rates/1 in 100", 0.01),
        ("guarantee/true_positive_rates/1 in 1000", ...),
        ("guarantee/true_positive_rates", ...),
        ("guarantee/delta", 1e-3),
        ("guarantee/unit", "patient"),
        ("guarantee/neighbouring_relation", "replace one unit"),
        ("guarantee/setting", "local"),
        ("guarantee/covers", "all runs ever"),
        ("mechanism/noise_multiplier", 2.0),
        ("mechanism/sample_rate", 0.01),
        ("mechanism/steps", 10),
        ("mechanism/steps", 10.5),
        ("mechanism/steps", -1),
        ("mechanism/planned_steps", 10),
        ("mechanism/clip_norm", 0.1),
        ("mechanism/clip_rule/name", "scaled"),
        ("mechanism/clip_rule", {"name": "automatic"}),
        ("mechanism/clip_rule", ...),
        ("mechanism/expected_batch_size", 500),
        ("mechanism/sampling", "shuffled"),
        ("mechanism/rng_mode", "seeded"),
        ("accounting/rdp_curve/3.0", 1e-6),
        ("accounting/rdp_curve/3.03", 1e9),
        ("accounting/epsilon_over_steps/20", 0.01),
        ("accounting/epsilon_over_steps/21", 99.0),
        ("accounting/epsilon_over_steps", {"0": 0.0, "10": 99.0}),
        ("accounting/epsilon_over_steps_of", "any number of steps"),
        ("guarantee/ended_early", {"steps": 10, "epsilon_of_steps": 0.1}),
        ("guarantee/epsilon_pld", None),
        ("dataset/declared_size", 10**6),
        ("model/start_sha256", "cd" * 32),
        ("public_data/declared", "ImageNet"),
        ("valid", False),
        ("weights/last.pt", "cd" * 32),
        ("weights", {}),
        ("deviations", "none"),
        ("guarantee/epsilon", 10**400),
        ("guarantee/epsilon", math.inf),
        ("mechanism/steps", 10**400),
        ("tuning/distribution", ["geometric"]),
        ("accounting/epsilon_over_steps/" + "9" * 400, 1.0),
        ("deviations", [1]),
        ("validation", "\ud800"),
        ("validation", None),
        ("versions", []),
        ("dataset_budget", {"name": "clinic", "unit": "image", "delta": 0.1, "limit": 8.0, "spent": 7.3}),
        ("dataset_budget", {"name": "clinic", "unit": "image", "delta": 0.1, "limit": 8.0, "spent": SPENT, "runs": 5}),
        ("dataset_budget", {"name": "clinic", "unit": "image", "delta": 0.1, "limit": "8", "spent": SPENT}),
        ("dataset_budget", {"name": "clinic", "unit": "image", "limit": None, "spent": SPENT}),
        ("audit", {"method": "x"}),
        ("accounting/assumptions", [1]),
        ("tuning/epsilon", "low"),
        ("training", {"learning_rate": math.nan}),
    ],
)
def test_an_edited_field_is_refused_by_name_however_well_it_is_sealed(run: Path, name: str, value: Any) -> None:
    reseal(run, name, value)
    with pytest.raises(PrivacyError) as error:
        check_statement(run)
    said = str(error.value)
    wanted = {"mechanism/steps": "steps", "weights": "last.pt"}.get(name, name.rpartition("/")[2])
    wanted = {"validation": "no text can", "training": "not finite"}.get(name, wanted) if value else wanted
    assert wanted in said and "\n" not in said


@pytest.mark.parametrize("name", ["assumptions", "released", "validation", "versions", "not_covered", "date"])
def test_a_field_that_nothing_recomputes_is_held_by_the_sha256(run: Path, name: str) -> None:
    for file in (run / "statement.json", run / "weights" / "statement.json"):
        edit(file, name, [])
    with pytest.raises(PrivacyError, match="sha256 does not match"):
        check_statement(run)


EARLY = {"steps": 10, "status": "stopped", "journal": 10}


@pytest.mark.parametrize("status", ["stopped", "running", "failed"])
def test_a_run_that_ended_early_claims_the_epsilon_of_its_plan(tmp_path: Path, status: str) -> None:
    run = make_run(tmp_path / "run", **{**EARLY, "status": status})
    found = check_statement(run).statement
    guarantee, accounting = found["guarantee"], found["accounting"]
    assert guarantee["epsilon"] == PLAN.epsilon() > PLAN.epsilon(steps=10)
    assert guarantee["epsilon_pld"] is None
    assert guarantee["ended_early"]["epsilon_of_steps"] == PLAN.epsilon(steps=10)
    assert "decided before the run" in guarantee["ended_early"]["holds_if"]
    whole = check_statement(make_run(tmp_path / "whole")).statement
    assert guarantee["attack_accuracy"] == whole["guarantee"]["attack_accuracy"]
    assert guarantee["true_positive_rates"] == whole["guarantee"]["true_positive_rates"]
    assert accounting["rdp_curve"] == whole["accounting"]["rdp_curve"]
    assert accounting["epsilon_over_steps"] == whole["accounting"]["epsilon_over_steps"]
    assert whole["guarantee"]["ended_early"] is None and whole["guarantee"]["epsilon_pld"] == PLAN.epsilon("pld")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("guarantee/epsilon", PLAN.epsilon(steps=10)),
        ("guarantee/epsilon_pld", PLAN.epsilon("pld", steps=10)),
        ("guarantee/epsilon_pld", 99.0),
        ("guarantee/attack_accuracy", attack_accuracy(PLAN.sample_rate, 10, PLAN.noise_multiplier, PLAN.delta)),
        ("guarantee/true_positive_rates", true_positive_rates(PLAN.sample_rate, 10, PLAN.noise_multiplier, PLAN.delta)),
        ("guarantee/ended_early", None),
        ("guarantee/ended_early", ...),
        ("guarantee/ended_early/steps", 9),
        ("guarantee/ended_early/epsilon_of_steps", PLAN.epsilon(steps=9)),
        ("guarantee/ended_early/holds_if", "always"),
        ("guarantee/ended_early/why", ...),
        ("accounting/rdp_curve/3.0", 1e-6),
        ("accounting/epsilon_over_steps", {"0": 0.0, "10": PLAN.epsilon(steps=10)}),
        ("status", "finished"),
    ],
)
def test_a_run_that_ended_early_cannot_claim_less_than_its_plan(tmp_path: Path, name: str, value: Any) -> None:
    run = make_run(tmp_path / "run", **EARLY)
    reseal(run, name, value)
    with pytest.raises(PrivacyError, match=name.rpartition("/")[2]):
        check_statement(run)


def test_more_steps_than_planned_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PrivacyError, match=r"mechanism\.steps=21 is above"):
        check_statement(make_run(tmp_path / "stated", steps=21, journal=21))
    with pytest.raises(PrivacyError, match="counts 21 steps, more than the 20 planned"):
        check_statement(make_run(tmp_path / "counted", status="running", journal=21))


def test_two_copies_that_differ_are_refused(run: Path) -> None:
    other = make_run(run.parent / "other", validation="secret")
    shutil.copy(other / "weights" / "statement.json", run / "weights" / "statement.json")
    with pytest.raises(PrivacyError, match=r"differ in (validation|sha256)"):
        check_statement(run)


@pytest.mark.parametrize(
    "name", ["statement.json", "settings.json", "steps.journal", "weights/last.pt", "weights/statement.json"]
)
def test_a_missing_file_is_named(run: Path, name: str) -> None:
    (run / name).unlink()
    with pytest.raises(ConfigError, match=rf"{Path(name).name} is missing"):
        check_statement(run)


def test_weights_of_another_run_are_refused(run: Path) -> None:
    (run / "weights" / "last.pt").write_bytes(b"other")
    with pytest.raises(PrivacyError, match=r"weights\.last\.pt is not the sha256"):
        check_statement(run)
    (run / "weights" / "best.pt").write_bytes(b"x")
    with pytest.raises(PrivacyError, match=r"best\.pt is not covered|last\.pt is not the sha256"):
        check_statement(run / "weights" / "best.pt")


def test_more_steps_than_stated_are_refused_unless_the_run_broke_off_and_then_counted(tmp_path: Path) -> None:
    cut = make_run(tmp_path / "cut", steps=10, status="running", journal=15)
    found = check_statement(cut).statement
    assert found["guarantee"]["epsilon"] == PLAN.epsilon()
    assert found["guarantee"]["ended_early"]["epsilon_of_steps"] == PLAN.epsilon(steps=15)
    assert found["mechanism"]["steps"] == 15
    assert any("5 steps were started" in line for line in found["deviations"])
    over = make_run(tmp_path / "over", steps=10, status="stopped", journal=15)
    with pytest.raises(PrivacyError, match=r"mechanism\.steps=10, but 15"):
        check_statement(over)


def test_a_journal_that_was_cut_is_refused(run: Path) -> None:
    (run / "steps.journal").write_text("...")
    with pytest.raises(PrivacyError, match="it was cut"):
        check_statement(run)


def test_a_seed_cannot_be_hidden(tmp_path: Path) -> None:
    seeded = make_run(tmp_path / "seeded", seed=1, secure=False)
    assert check_statement(seeded).statement["valid"] is False
    posing = make_run(tmp_path / "posing", seed=1)
    with pytest.raises(PrivacyError, match="valid=True, but the run had seed=1"):
        check_statement(posing)
    edit(seeded / "settings.json", "seed", ...)
    with pytest.raises(ConfigError, match="seed"):
        check_statement(seeded)


def test_weights_that_travelled_alone_are_checked_as_far_as_can_be(run: Path, tmp_path: Path) -> None:
    away = tmp_path / "away"
    shutil.copytree(run / "weights", away)
    found = check_statement(away / "last.pt").statement
    assert found["guarantee"]["epsilon"] == PLAN.epsilon()
    assert any("were not compared" in line for line in found["checks"])
    edit(away / "statement.json", "guarantee/epsilon", 0.1)
    with pytest.raises(PrivacyError, match=r"guarantee\.epsilon=0\.1 is below"):
        check_statement(away)


def test_a_higher_claim_is_kept(run: Path) -> None:
    reseal(run, "guarantee/epsilon", 9.0)
    assert check_statement(run).statement["guarantee"]["epsilon"] == 9.0


@pytest.mark.parametrize(
    ("format_", "words"),
    [(1, "earlier dptrain"), (3, "earlier dptrain"), (5, "cannot read it"), (None, "cannot read")],
)
def test_another_format_is_refused_in_a_line(run: Path, format_: int | None, words: str) -> None:
    edit(run / "statement.json", "format", format_)
    with pytest.raises(ConfigError, match=words):
        check_statement(run)


def test_an_audit_above_the_claim_voids_the_statement(run: Path) -> None:
    audit = {"format": 1, "method": "one run", "epsilon_lower_bound": 0.1, "confidence": 0.95}
    (run / "audit.json").write_text(json.dumps(audit))
    found = check_statement(run).statement
    assert found["audit"] == audit and found["valid"] is True
    (run / "audit.json").write_text(json.dumps({**audit, "epsilon_lower_bound": 99.0}))
    found = check_statement(run).statement
    assert found["valid"] is False and found["deviations"][0].startswith("VOID: an audit")
    (run / "audit.json").write_text(json.dumps({**audit, "verdict": "violation", "faults": ["the noise is 0.5"]}))
    found = check_statement(run).statement
    assert found["valid"] is False and found["deviations"][0] == "VOID: an audit found that the noise is 0.5."
    (run / "audit.json").write_text(json.dumps({**audit, "confidence": 1.5}))
    with pytest.raises(ConfigError, match=r"confidence=1\.5"):
        check_statement(run)


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 4}', '{"format": 4, "mechanism": 3}'])
def test_what_is_no_statement_gives_one_line(run: Path, text: str) -> None:
    (run / "statement.json").write_text(text)
    with pytest.raises((ConfigError, PrivacyError)) as error:
        check_statement(run)
    assert "statement.json" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("bound", [10**400, math.inf, "1", None, True])
def test_a_strange_audit_is_one_line(run: Path, bound: Any) -> None:
    audit = {"format": 1, "method": "one run", "epsilon_lower_bound": bound, "confidence": 0.95}
    (run / "audit.json").write_text(json.dumps(audit))
    with pytest.raises(ConfigError, match="epsilon_lower_bound"):
        check_statement(run)


def test_a_damaged_table_is_named_and_not_drawn(run: Path) -> None:
    (run / "results.csv").write_text("step,dp/epsilon\n0,\n")
    found = check_statement(run)
    with pytest.raises(ConfigError, match=r"results\.csv"):
        to_html(found.statement, found.results)
