"""What a sweep keeps on disk, what it costs, and how it goes on: all without training."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import dp_accounting as dp
import pytest
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from dptrain.errors import ConfigError
from dptrain.run.sweep.cost import JobCost, compose, read_cost
from dptrain.run.sweep.jobs import BEGUN, FAILED, FINISHED, NOT_STARTED, SweepJob, SweepRecord
from dptrain.run.sweep.pictures import PICTURES, draw
from dptrain.run.sweep.table import mlflow_table, read_table, summary, write_table
from dptrain.support.words import shown

PRIVACY = {"sample_rate": 0.1, "delta": 1e-5}


def job(number: int, noise: float, **more: Any) -> SweepJob:
    return SweepJob(number, {"privacy.noise_multiplier": str(noise)}, {"privacy.noise_multiplier": noise, **more})


def run_folder(
    folder: Path, steps: int, noise: float, finished: bool = True, mAP: float | None = 0.5, delta: float = 1e-5
) -> None:
    folder.mkdir(parents=True)
    (folder / "steps.journal").write_bytes(b"." * steps)
    privacy = {**PRIVACY, "noise_multiplier": noise, "delta": delta}
    (folder / "settings.json").write_text(json.dumps({"steps": 10, "seed": None, "privacy": privacy}))
    (folder / "statement.json").write_text(json.dumps({"status": "finished" if finished else "running"}))
    if mAP is not None:
        names = [f"metrics/{name}B" for name in ("precision", "recall", "mAP50", "mAP50-95")]
        with (folder / "results.csv").open("w", newline="") as stream:
            writer = csv.writer(stream)
            spent = [["dp/epsilon", "dp/epsilon_claimed", "dp/delta"], [0, 1, delta], [1, 1, delta]]
            rows = [["step", *names], [0, 0, 0, 0, 0], [steps, 0.6, 0.6, mAP, mAP / 2]]
            writer.writerows([*row, *more] for row, more in zip(rows, spent, strict=True))


@pytest.fixture
def record(tmp_path: Path) -> SweepRecord:
    """Finished, stopped on the way, failed before a step, never started."""
    record = SweepRecord(tmp_path, tuple(job(n, noise) for n, noise in enumerate((4.0, 5.0, 6.0, 8.0))))
    record.write()
    run_folder(tmp_path / "0", 10, 4.0)
    run_folder(tmp_path / "1", 4, 5.0, finished=False)
    record.tell_failure(2, "noise_multiplier=6.0", ConfigError("no such data"))
    return record


def reference(events: list[tuple[float, float, int]], delta: float) -> float:
    account = RdpAccountant(neighboring_relation=dp.NeighboringRelation.ADD_OR_REMOVE_ONE)
    for rate, noise, steps in events:
        step = dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(noise))
        account.compose(dp.SelfComposedDpEvent(step, steps))
    return float(account.get_epsilon(delta))


def test_every_state_is_read_from_the_disk(record: SweepRecord) -> None:
    assert [record.state(n) for n in record.numbers()] == [FINISHED, BEGUN, FAILED, NOT_STARTED]
    again = SweepRecord.read(record.folder)
    assert again == record


def test_the_composed_epsilon_counts_every_planned_step_of_unfinished_jobs_too(record: SweepRecord) -> None:
    """When to stop a job may have been chosen by looking at it."""
    table = read_table(record)
    assert table.cost is not None
    assert table.cost.epsilon == pytest.approx(reference([(0.1, 4.0, 10), (0.1, 5.0, 10)], 1e-5), rel=1e-9)
    taken = reference([(0.1, 4.0, 10), (0.1, 5.0, 4)], 1e-5)
    assert table.cost.epsilon_of_steps == pytest.approx(taken, rel=1e-9)
    assert table.cost.epsilon_of_steps < table.cost.epsilon
    assert f"(epsilon {shown(table.cost.epsilon_of_steps)} if it was decided beforehand)" in table.price()
    assert [row.flat()["epsilon_pld"] is None for row in table.rows[:2]] == [False, True]
    assert table.cost.epsilon_pld is None and "PLD" not in table.price()
    assert table.cost.epsilon > max(row.cost.epsilon() for row in table.rows if row.cost)
    assert table.finished == 1
    assert "composition of 2 runs" in table.price()


def test_a_sweep_stopped_before_its_last_jobs_costs_what_all_of_them_would(tmp_path: Path) -> None:
    """Whether the third job began may have been decided by what the first two came to."""
    settings = {
        "model": "a.pt", "data": "a.yaml", "steps": 10, "privacy.noise_multiplier": 4.0, "privacy.delta": 1e-5,
        "privacy.sample_rate": 0.1, "privacy.expected_batch_size": 10,
    }  # fmt: skip
    record = SweepRecord(tmp_path, tuple(SweepJob(n, {}, settings) for n in range(3)))
    assert read_table(record).cost is None
    run_folder(tmp_path / "0", 10, 4.0)
    run_folder(tmp_path / "1", 10, 4.0)
    cost = read_table(record).cost
    assert cost is not None and cost.ended_early and cost.epsilon_pld is None
    assert cost.epsilon == pytest.approx(reference([(0.1, 4.0, 30)], 1e-5), rel=1e-9)
    assert cost.epsilon_of_steps == pytest.approx(reference([(0.1, 4.0, 20)], 1e-5), rel=1e-9)
    run_folder(tmp_path / "2", 10, 4.0)
    whole = read_table(record).cost
    assert whole is not None and not whole.ended_early and 0 < (whole.epsilon_pld or 0) < whole.epsilon


def test_different_deltas_compose_at_the_largest_and_it_is_said(tmp_path: Path) -> None:
    for number, delta in enumerate((1e-5, 1e-4)):
        run_folder(tmp_path / str(number), 10, 4.0, delta=delta)
    table = read_table(SweepRecord(tmp_path, (job(0, 1.0), job(1, 1.0))))
    assert table.cost is not None
    assert table.cost.delta == 1e-4
    assert "the jobs have different deltas" in table.price()


def test_a_seed_makes_the_cost_void(tmp_path: Path) -> None:
    run_folder(tmp_path / "0", 10, 4.0)
    text = (tmp_path / "0" / "settings.json").read_text().replace('"seed": null', '"seed": 3')
    (tmp_path / "0" / "settings.json").write_text(text)
    table = read_table(SweepRecord(tmp_path, (job(0, 1.0),)))
    assert table.price().endswith("VOID: a seed was set")


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.floats(0.001, 1.0), st.floats(0.4, 20.0), st.integers(1, 500)), min_size=1, max_size=3),
    st.sampled_from([1e-3, 1e-5, 1e-7]),
)
def test_the_composition_is_never_below_dp_accountings_own(
    events: list[tuple[float, float, int]], delta: float
) -> None:
    cost = compose([JobCost(steps, steps, rate, noise, delta, True) for rate, noise, steps in events])
    assert cost is not None
    expected = reference(events, delta)
    assert cost.epsilon >= expected * (1 - 1e-9)
    if math.isfinite(cost.epsilon):
        assert float(shown(cost.epsilon)) >= expected * (1 - 1e-9) - 1e-11


def test_no_step_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    assert read_cost(tmp_path / "0") is None
    assert compose([]) is None
    assert "nothing was spent" in read_table(SweepRecord(tmp_path, (job(0, 1.0),))).price()


def test_the_table_has_a_row_for_every_job(record: SweepRecord) -> None:
    table = read_table(record)
    write_table(table, record.folder)
    with (record.folder / "sweep.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["state"] for row in rows] == [FINISHED, BEGUN, FAILED, NOT_STARTED]
    assert [row["privacy.noise_multiplier"] for row in rows] == ["4.0", "5.0", "6.0", "8.0"]
    assert [row["mAP50"] for row in rows] == ["0.5", "0.5", "", ""]
    assert json.loads((record.folder / "summary.json").read_text()) == summary(table)
    assert not any("." in name for name in mlflow_table(table)), "MLflow shows such a column empty"


def test_pictures_have_a_point_for_every_evaluated_job_and_need_no_network(record: SweepRecord) -> None:
    files = draw(read_table(record), record.folder, "model on data")
    assert [file.name for file in files] == list(PICTURES)
    page = files[1].read_text()
    assert "publishing all of it costs epsilon" in page
    assert '<script src="http' not in page
    assert "job 1, begun" in page
    assert "job 2" not in page


def test_nothing_is_drawn_without_evaluations(tmp_path: Path) -> None:
    run_folder(tmp_path / "0", 10, 4.0, mAP=None)
    assert draw(read_table(SweepRecord(tmp_path, (job(0, 1.0),))), tmp_path, "x") == []


def test_a_sweep_that_goes_on_must_have_its_own_jobs(record: SweepRecord) -> None:
    jobs = list(record.jobs)
    record.refuse_changed(jobs)
    with pytest.raises(ConfigError, match=r"job 2: privacy.noise_multiplier=1.2 differs .* which has 6.0"):
        record.refuse_changed([*jobs[:2], job(2, 1.2), jobs[3]])
    with pytest.raises(ConfigError, match=r"job 0: steps=4 differs .* which has None"):
        record.refuse_changed([job(0, 4.0, steps=4), *jobs[1:]])
    with pytest.raises(ConfigError, match=r"job 4 \(noise_multiplier=2.0\) is not in the sweep"):
        record.refuse_changed([*jobs, job(4, 2.0)])
    with pytest.raises(ConfigError, match=r"job 3 \(noise_multiplier=8.0\) is missing here"):
        record.refuse_changed(jobs[:3])


def test_a_damaged_record_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(ConfigError, match=r"sweep\.json cannot be read"):
        SweepRecord.read(tmp_path)
    (tmp_path / "sweep.json").write_text('{"format": 1, "parent_run": null, "jobs": [], "study": null}')
    with pytest.raises(ConfigError, match=r"sweep\.json: format=1 is not 3"):
        SweepRecord.read(tmp_path)


def test_why_a_job_failed_stays_in_the_owners_folder(tmp_path: Path) -> None:
    """An error names private files, and jobs/ lies among the tables that are published."""
    record = SweepRecord(tmp_path, (job(0, 4.0),))
    record.tell_failure(0, "noise_multiplier=4.0", ConfigError("images/anna_b.png cannot be decoded"))
    public = [file for file in tmp_path.rglob("*") if file.is_file() and file.parent.name != "owner"]
    assert [file.name for file in public] == ["0.json"]
    assert json.loads(public[0].read_text()) == {
        "state": FAILED, "label": "noise_multiplier=4.0", "failure": "refused",
    }  # fmt: skip
    assert "anna_b" in (tmp_path / "owner" / "job_0_error.txt").read_text()
    assert (tmp_path / "owner").stat().st_mode & 0o077 == 0
    record.tell_failure(0, "noise_multiplier=4.0", RuntimeError("x"))
    assert record.outcome(0)["failure"] == "unforeseen"
    record.tell(0, FINISHED, label="noise_multiplier=4.0")
    assert not (tmp_path / "owner" / "job_0_error.txt").exists()
