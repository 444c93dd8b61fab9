"""Training runs and their charges: reserved before the first step, settled however the run ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import dptrain
from dptrain import BudgetError, BudgetLedger, PrivacyPlan
from dptrain.datasets.identity import pictures_in
from dptrain.detection.data import load_data
from dptrain.run import job as run_module
from dptrain.run.charge import UNRECORDED, RunCharge, read_note
from dptrain.settings.schema import BudgetConfig

from ..conftest import MakeDataset, run_options

PLAN = PrivacyPlan(0.5, 4, 1.0, 1.0, 1e-3, 3)


def options(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    usual = {
        "plan": PLAN,
        "validation": "off",
        "tracking": {"enabled": False},
        "budget": {"url": f"sqlite:///{tmp_path / 'budget.db'}"},
    }
    return run_options(tmp_path, **{**usual, **changes})


def spent(tmp_path: Path) -> Any:
    return BudgetLedger(f"sqlite:///{tmp_path / 'budget.db'}").show()[0]


def test_a_run_is_charged_and_says_so(
    make_dataset: MakeDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dptrain.train(data=make_dataset(), **options(tmp_path))
    reading = spent(tmp_path)
    assert (reading.runs, reading.open_runs, reading.limit) == (1, 0, None)
    assert reading.epsilon == pytest.approx(PLAN.epsilon())
    owner = json.loads((tmp_path / "out/owner/dataset_budget.json").read_text())
    assert (owner["spent"], owner["runs"], owner["name"], owner["notices"]) == (reading.epsilon, 1, reading.name, [])
    assert owner["head"].partition(":")[0] == str(3 + PLAN.steps)  # a lease a step, and this run's settlement
    assert (tmp_path / "out/owner").stat().st_mode & 0o077 == 0, "others on the machine can read it"
    assert "budget: recorded in " in capsys.readouterr().out


def test_a_run_that_does_not_fit_leaves_nothing_behind(make_dataset: MakeDataset, tmp_path: Path) -> None:
    data = make_dataset()
    ledger = BudgetLedger(f"sqlite:///{tmp_path / 'budget.db'}")
    ledger.create("d", epsilon=1.0, delta=1e-3, manifest=ledger.manifest(load_data(data).train))
    head = ledger.head
    with pytest.raises(BudgetError, match="do not fit the budget d"):
        dptrain.train(data=data, **options(tmp_path))
    assert ledger.head == head
    assert not (tmp_path / "out").exists()


def test_a_stopped_run_frees_what_it_did_not_start_and_its_resume_takes_it_again(
    make_dataset: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_dataset()
    taken = run_module.Progress.update

    def stop_at_two(self: Any, step: int) -> None:
        taken(self, step)
        if step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run_module.Progress, "update", stop_at_two)
        dptrain.train(data=data, **options(tmp_path))
    assert spent(tmp_path).epsilon_charged == pytest.approx(PLAN.epsilon(steps=2))
    dptrain.train(data=data, **options(tmp_path, resume=True))
    assert spent(tmp_path).epsilon == pytest.approx(PLAN.epsilon())
    assert spent(tmp_path).runs == 1


def test_a_run_that_fails_before_its_first_step_costs_nothing(
    make_dataset: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module.Run, "_tracker", lambda self: (_ for _ in ()).throw(dptrain.TrackingError("no")))
    with pytest.raises(dptrain.TrackingError):
        dptrain.train(data=make_dataset(), **options(tmp_path))
    assert (spent(tmp_path).epsilon, spent(tmp_path).open_runs) == (0.0, 0)
    assert not (tmp_path / "out").exists()


def test_an_unreachable_ledger_stops_the_run_before_it_begins(make_dataset: MakeDataset, tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="cannot be opened"):
        dptrain.train(data=make_dataset(), **options(tmp_path, budget={"url": "sqlite:////nowhere/budget.db"}))
    assert not (tmp_path / "out").exists()


def test_without_a_ledger_the_statement_says_so_and_required_refuses(make_dataset: MakeDataset, tmp_path: Path) -> None:
    data = make_dataset()
    result = dptrain.train(data=data, **options(tmp_path, budget={"url": None}))
    assert UNRECORDED in result.statement["deviations"]
    assert result.statement["dataset_budget"] is None
    required = {"url": None, "required": True}
    with pytest.raises(BudgetError, match="cannot be combined"):
        dptrain.train(data=data, **options(tmp_path, output_dir=str(tmp_path / "b"), budget=required))


# The charge of a folder, without training.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def spending(tmp_path: Path, images: tuple[Path, ...], **budget: Any) -> RunCharge:
    found = RunCharge(
        BudgetConfig(**{"url": f"sqlite:///{tmp_path / 'budget.db'}", **budget}),
        PLAN.event(),
        1e-3,
        "image",
        pictures_in(images),
        "d",
    )
    found.prepare()
    return found


@pytest.fixture
def images(make_dataset: MakeDataset) -> tuple[Path, ...]:
    return load_data(make_dataset()).train


def test_a_resume_with_changed_images_is_refused(folder: Path, tmp_path: Path, images: tuple[Path, ...]) -> None:
    spending(tmp_path, images).begin(folder)
    with pytest.raises(BudgetError, match="1 image removed"):
        spending(tmp_path, images[1:]).begin(folder, resume=True, steps=1)


def test_a_resume_in_another_ledger_is_refused(folder: Path, tmp_path: Path, images: tuple[Path, ...]) -> None:
    spending(tmp_path, images).begin(folder)
    other = f"sqlite:///{tmp_path / 'other.db'}"
    with pytest.raises(BudgetError, match=r"give the one it began with, budget\.url=sqlite:///.*budget\.db"):
        spending(tmp_path, images, url=other).begin(folder, resume=True, steps=1)
    with pytest.raises(BudgetError, match="is charged in a ledger"):
        spending(tmp_path, images, url=None).begin(folder, resume=True, steps=1)


def test_a_reservation_that_died_before_it_was_made_is_made_by_the_resume(
    folder: Path, tmp_path: Path, images: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder knows its charge before the ledger does."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(BudgetLedger, "reserve", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        spending(tmp_path, images).begin(folder)
    run = read_note(folder)["run"]
    spending(tmp_path, images).begin(folder, resume=True, steps=0)
    assert read_note(folder)["run"] == run
    assert BudgetLedger(f"sqlite:///{tmp_path / 'budget.db'}").history()[0].run == run


def test_a_resume_that_was_refused_can_be_tried_again(folder: Path, tmp_path: Path, images: tuple[Path, ...]) -> None:
    first = spending(tmp_path, images)
    first.begin(folder)
    first.lease(1)
    for _ in range(3):
        with pytest.raises(BudgetError):
            spending(tmp_path, images[1:]).begin(folder, resume=True, steps=1)
    spending(tmp_path, images).begin(folder, resume=True, steps=1)


def test_a_ledger_that_goes_away_does_not_lose_the_run(
    folder: Path,
    tmp_path: Path,
    images: tuple[Path, ...],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("dptrain.run.charge._RETRIES", (0.01,))
    charge = spending(tmp_path, images)
    charge.begin(folder)
    with monkeypatch.context() as patch:
        patch.setattr(BudgetLedger, "settle", lambda *_, **__: (_ for _ in ()).throw(BudgetError("gone")))
        assert charge.settle(3, "finished") is False
    assert "until you run dptrain budget settle on this run's folder" in caplog.text
    assert charge.settle(3, "finished") is True


def test_the_folders_note_holds_no_password(
    folder: Path, postgres_url: str, images: tuple[Path, ...], tmp_path: Path
) -> None:
    url = postgres_url.replace("dptrain@", "dptrain:secret@")
    spending(tmp_path, images, url=url, key=str(tmp_path / "key")).begin(folder)
    assert "secret" not in (folder / "owner/budget.json").read_text()
    assert json.loads((folder / "owner/budget.json").read_text())["key"] == str(tmp_path / "key")
