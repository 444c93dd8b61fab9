"""A start that private runs made: what all of them cost together is stated, or the run does not start."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from dp_accounting import NeighboringRelation
from dp_accounting.rdp import RdpAccountant

import dptrain
from dptrain import ConfigError, PrivacyError, PrivacyPlan
from dptrain.run.facts import runs_behind
from dptrain.run.sweep.cost import JobCost, compose
from dptrain.statement import check_statement
from dptrain.statement.start_runs import NOT_TOGETHER, TOGETHER, StartRun

from ..conftest import dataset_maker, run_options
from ..statement.runs import PLAN as THEIRS
from ..statement.runs import edit, make_run, reseal

PLAN = PrivacyPlan(0.5, 2, 1.1, 1.0, 1e-3, 3)


def reference(*plans: PrivacyPlan, delta: float) -> float:
    """By dp-accounting, from the plans alone."""
    account = RdpAccountant(neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE)
    for plan in plans:
        account.compose(plan.event())
    return float(account.get_epsilon(delta))


def options(folder: Path, name: str, **changes: Any) -> dict[str, Any]:
    usual = {"plan": PLAN, "validation": "off", "tracking": {"enabled": False}, "budget": {"url": None}, "imgsz": 32}
    return {**run_options(folder, **{**usual, **changes}), "output_dir": str(folder / name)}


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two private runs from scratch, and the mean of their last weights in a folder of its own."""
    folder = tmp_path_factory.mktemp("parents")
    data = dataset_maker(folder / "data")()
    found = [dptrain.train(data=data, **options(folder, name)) for name in ("a", "b")]
    files = [torch.load(run.weights, weights_only=False) for run in found]
    model, other = (file["model"] for file in files)
    with torch.no_grad():
        for one, two in zip(model.parameters(), other.parameters(), strict=True):
            one.copy_((one + two) / 2)
    (folder / "soup").mkdir()
    torch.save(files[0], folder / "soup" / "soup.pt")
    return folder


def test_a_mean_of_two_private_runs_states_what_all_three_cost(parents: Path) -> None:
    data, soup = parents / "data" / "data.yaml", parents / "soup" / "soup.pt"
    named = [str(parents / "a"), str(parents / "b" / "weights")]
    result = dptrain.train(data=data, **options(parents, "of soup", model=str(soup), start_runs=named))
    behind = result.statement["start_runs"]
    assert behind["epsilon"] == pytest.approx(reference(PLAN, PLAN, PLAN, delta=PLAN.delta), rel=1e-9)
    assert behind["epsilon"] > 1.5 * result.epsilon and behind["meaning"] == TOGETHER
    hashes = [json.loads((parents / name / "statement.json").read_text())["sha256"] for name in ("a", "b")]
    assert [run["sha256"] for run in behind["runs"]] == hashes
    assert any("come from 2 private runs" in text for text in result.statement["deviations"])
    assert check_statement(result.output_dir).statement["start_runs"] == behind
    assert "Private runs behind the start" in (result.output_dir / "statement.md").read_text()

    # Without the key: the start lies beside a statement, and that one has runs behind it.
    child = dptrain.train(data=data, **options(parents, "child", model=str(result.weights)))
    family = child.statement["start_runs"]
    assert len(family["runs"]) == 3
    assert family["epsilon"] == pytest.approx(reference(PLAN, PLAN, PLAN, PLAN, delta=PLAN.delta), rel=1e-9)
    edit(child.output_dir / "settings.json", "start_runs_found", [])
    with pytest.raises(PrivacyError, match="start_runs are not those"):
        check_statement(child.output_dir)


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """Weights beside the statement of a run whose records are there."""
    return make_run(tmp_path / "run") / "weights" / "last.pt"


def test_a_start_beside_its_statement_needs_no_key(start: Path) -> None:
    (found,) = runs_behind(start, [])
    assert (found.epsilon, found.steps, found.unit) == (THEIRS.epsilon(), THEIRS.steps, "image")
    assert runs_behind(start, [str(start.parent.parent)]) == (found,)  # named as well: it counts once


def test_a_run_that_was_stopped_counts_with_all_its_planned_steps(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", journal=5, steps=5, status="stopped")
    (found,) = runs_behind(run / "weights" / "last.pt", [])
    assert found.steps == THEIRS.steps and found.curve()[8.0] == pytest.approx(runs_curve(8.0))


def runs_curve(order: float) -> float:
    from dptrain.privacy.accounting import rdp_curve

    return rdp_curve(THEIRS.event())[order]


@pytest.mark.parametrize("how", ["edited", "no statement", "another file", "old format", "not there"])
def test_a_start_whose_runs_cannot_be_read_starts_no_run(how: str, start: Path, tmp_path: Path) -> None:
    named = [str(start.parent.parent)]
    if how == "edited":
        reseal(start.parent.parent, "guarantee/epsilon", 0.01)
    elif how == "no statement":
        (start.parent.parent / "statement.json").unlink()
    elif how == "another file":
        start.write_bytes(b"a mean of several")
        named = []
    elif how == "old format":
        edit(start.parent / "statement.json", "format", 1)
        edit(start.parent.parent / "statement.json", "format", 1)
    else:
        shutil.copy(start, tmp_path / "soup.pt")
        start, named = tmp_path / "soup.pt", [str(tmp_path / "gone")]
    with pytest.raises(ConfigError) as error:
        runs_behind(start, named)
    assert "\n" not in str(error.value)
    assert ("earlier dptrain" if how == "old format" else "was made from") in str(error.value)


def test_a_random_start_has_no_runs_behind_it() -> None:
    assert runs_behind(Path("yolo26n.yaml"), []) == ()
    with pytest.raises(ConfigError, match="no run made a random start"):
        runs_behind(Path("yolo26n.yaml"), ["runs/a"])


def made_from(start: Path, folder: Path, **changes: Any) -> Path:
    (earlier,) = runs_behind(start, [])
    earlier = earlier.model_copy(update=changes)
    run = make_run(folder, start_runs=(earlier,))
    edit(run / "settings.json", "start_runs_found", [earlier.model_dump()])
    return run


@pytest.mark.parametrize("changes", [{"valid": False}, {"unit": "group"}])
def test_of_runs_that_do_not_add_up_nothing_is_promised_together(
    changes: dict[str, Any], start: Path, tmp_path: Path
) -> None:
    section = check_statement(made_from(start, tmp_path / "next", **changes)).statement["start_runs"]
    assert section["epsilon"] is None and section["meaning"] == NOT_TOGETHER


def test_the_winner_of_a_tuning_behind_a_start_counts_with_all_of_the_tuning(start: Path, tmp_path: Path) -> None:
    tuned = {"distribution": "geometric", "mean_runs": 5.0, "epsilon": 90.0}
    alone = check_statement(made_from(start, tmp_path / "alone")).statement["start_runs"]["epsilon"]
    after = check_statement(made_from(start, tmp_path / "after", **tuned)).statement["start_runs"]["epsilon"]
    assert after > 1.1 * alone


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("start_runs/epsilon", 0.1),
        ("start_runs/epsilon", None),
        ("start_runs/delta", 0.5),
        ("start_runs/meaning", "all is well"),
        ("start_runs/runs", []),
        ("start_runs", None),
        ("deviations", []),
    ],
)
def test_a_statement_that_claims_less_of_its_start_is_refused(
    name: str, value: Any, start: Path, tmp_path: Path
) -> None:
    run = made_from(start, tmp_path / "next")
    check_statement(run)
    reseal(run, name, value)
    with pytest.raises(PrivacyError, match=name.partition("/")[0]):
        check_statement(run)


@pytest.mark.parametrize(
    ("name", "value"),
    [("epsilon", 0.01), ("steps", 0), ("noise_multiplier", -1.0), ("sample_rate", 2.0), ("distribution", "fixed"),
     ("unit", 3), ("more", 1)],
)  # fmt: skip
def test_what_is_no_run_behind_a_start_is_refused(name: str, value: Any, start: Path, tmp_path: Path) -> None:
    run = made_from(start, tmp_path / "next")
    (earlier,) = json.loads((run / "statement.json").read_text())["start_runs"]["runs"]
    changed = [{**earlier, name: value}]
    reseal(run, "start_runs/runs", changed)
    edit(run / "settings.json", "start_runs_found", changed)
    with pytest.raises(PrivacyError, match=r"start_runs\.runs\.0"):
        check_statement(run)


def test_a_sweep_counts_the_runs_behind_its_start_once(start: Path) -> None:
    (earlier,) = runs_behind(start, [])
    assert StartRun.model_validate(earlier.model_dump()) == earlier
    jobs = [JobCost(20, 20, 0.05, noise, 1e-4, True, "image", (earlier,)) for noise in (1.0, 2.0)]
    cost = compose(jobs)
    assert cost is not None and cost.start_runs == (earlier,)
    plans = [PrivacyPlan(0.05, 20, noise, 1.0, 1e-4, 50) for noise in (1.0, 2.0)]
    assert cost.epsilon_with_start == pytest.approx(reference(THEIRS, *plans, delta=1e-4), rel=1e-9)
    assert cost.epsilon_with_start > cost.epsilon
