"""``dptrain budget``: what it prints, what it refuses, how it ends."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dptrain import BudgetLedger
from dptrain.commands.main import main
from dptrain.privacy.accounting import dp_sgd_event
from dptrain.run.charge import RunCharge
from dptrain.settings.schema import BudgetConfig
from dptrain.training.journal import StepJournal

from ..conftest import MakeDataset
from .pictures import pictures

RUN = dp_sgd_event(0.02, 300, 1.1)


@pytest.fixture
def used(ledger: BudgetLedger, url: str, monkeypatch: pytest.MonkeyPatch) -> BudgetLedger:
    monkeypatch.setenv("DPTRAIN_BUDGET_URL", url)
    ledger.create("pets", epsilon=8.0, delta=1e-5, manifest=pictures(ledger, range(9)))
    ledger.reserve(RUN, pictures(ledger, range(9)), name="[bold]first").settle(300)
    ledger.reserve(RUN, pictures(ledger, range(9)), name="second")
    return ledger


def answer(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> str:
    assert main(["budget", *arguments]) == status
    captured = capsys.readouterr()
    return captured.err if status == 2 else captured.out


def test_a_budget_is_made_for_the_train_split_of_a_data_yaml(
    make_dataset: MakeDataset, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_dataset()
    limits = ("--data", str(data), "--epsilon", "8", "--delta", "1e-5", "--url", url)
    made = json.loads(answer(capsys, "create", "pets", *limits, "--json"))["datasets"]
    assert [(row["name"], row["limit"], row["epsilon"]) for row in made] == [("pets", 8.0, 0.0)]
    assert "has a budget already" in answer(capsys, "create", "pets", *limits, status=2)


def test_a_wrong_limit_is_told_before_anything_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"sqlite:///{tmp_path / 'b.db'}"
    said = answer(capsys, *f"create --data x.yaml --epsilon -1 --delta 1e-5 --url {url}".split(), status=2)
    assert said == "dptrain: error: epsilon=-1.0 must be a finite number above 0\n"
    assert list(tmp_path.iterdir()) == []


def test_show_is_a_table_for_people_and_json_for_machines(
    used: BudgetLedger, capsys: pytest.CaptureFixture[str]
) -> None:
    text = answer(capsys, "show")
    assert "pets" in text
    assert " 8 " in text
    row = json.loads(answer(capsys, "show", "pets", "--pld", "--json"))["datasets"][0]
    assert (row["name"], row["runs"], row["open_runs"]) == ("pets", 2, 1)
    assert 0 < row["epsilon_pld"] < row["epsilon"]
    assert "it has pets" in answer(capsys, "show", "cats", status=2)


def test_history_lists_the_runs_and_draws_them(
    used: BudgetLedger, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = answer(capsys, "history", "--plot", str(tmp_path / "spending.png"))
    assert "[bold]first" in text
    assert "open" in text
    assert (tmp_path / "spending.png").read_bytes()[:4] == b"\x89PNG"
    rows = json.loads(answer(capsys, "history", "pets", "--last", "1", "--json"))["runs"]
    assert [row["name"] for row in rows] == ["second"]
    assert "--last=0" in answer(capsys, "history", "--last", "0", status=2)
    assert "is not a .png" in answer(capsys, "history", "--plot", "x.exe", status=2)


def test_verify_ends_with_a_status_of_its_own_if_the_ledger_is_not_sound(
    used: BudgetLedger, capsys: pytest.CaptureFixture[str]
) -> None:
    head = json.loads(answer(capsys, "verify", "--json"))["head"]
    assert "sound; head" in answer(capsys, "verify", "--expect", head)
    assert "NOT SOUND" in answer(capsys, "verify", "--expect", "3:abc", status=3)


def test_export_writes_the_whole_record(used: BudgetLedger, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert json.loads(answer(capsys, "export"))["head"] == used.head
    answer(capsys, "export", "--output", str(tmp_path / "record.json"))
    assert json.loads((tmp_path / "record.json").read_text())["entries"]


@pytest.fixture
def killed(used: BudgetLedger, tmp_path: Path, url: str) -> Path:
    """The folder of a run that was killed after 7 steps."""
    folder = tmp_path / "run"
    folder.mkdir()
    spending = RunCharge(BudgetConfig(url=url), RUN, 1e-5, "image", {}, "pets")
    spending._ledger, spending._manifest = used, pictures(used, range(9))
    spending.begin(folder)
    journal = StepJournal(folder / "steps.journal")
    journal.record(7)
    journal.close()
    return folder


def test_a_killed_run_is_settled_at_the_steps_in_its_journal(killed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "7 of 300 steps are charged" in answer(capsys, "settle", str(killed))
    assert "7 of 300 steps are charged" in answer(capsys, "settle", str(killed))


def test_a_run_at_work_is_not_settled_by_others(killed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = StepJournal(killed / "steps.journal", new=False)
    assert "another process is training" in answer(capsys, "settle", str(killed), status=2)
    journal.close()


def test_a_lost_run_is_charged_in_full_for_good(
    killed: Path, used: BudgetLedger, capsys: pytest.CaptureFixture[str]
) -> None:
    run = used.history("pets")[-1].run
    assert "300 of 300 steps are charged" in answer(capsys, "settle", "--run", run[:10])
    answer(capsys, "settle", str(killed))
    assert used.history("pets")[-1].charged == 300
    assert "matches no run" in answer(capsys, "settle", "--run", "12345678", status=2)
    assert "give the run's folder" in answer(capsys, "settle", status=2)


def test_a_folder_without_a_charge_is_named(
    tmp_path: Path, used: BudgetLedger, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "budget.json is missing" in answer(capsys, "settle", str(tmp_path), status=2)


def test_showing_a_budget_needs_no_accountant_and_little_time(used: BudgetLedger, url: str) -> None:
    code = (
        "import sys; from dptrain.commands.main import main; main(['budget', 'show']); "
        "print([name for name in ('torch', 'scipy', 'dp_accounting', 'alembic', 'cv2') if name in sys.modules])"
    )
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    assert time.perf_counter() - begin < 10  # the bar, 1 s, is benchmarks/ledger.py's


def test_the_page_for_the_owner_has_every_dataset_and_escapes_its_names(
    used: BudgetLedger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    used.reserve(RUN, pictures(used, range(20, 25)), name="<script>alert(1)</script>").settle(7)
    said = answer(capsys, "show", "--html", str(tmp_path / "page.html"))
    assert said == f"written: {tmp_path / 'page.html'} (for the data's owner; do not publish it)\n"
    page = (tmp_path / "page.html").read_text()
    assert (
        "<h2>pets</h2>" in page
        and "of 8, at delta 1e-05" in page
        and "7/300" in page
        and "2 runs, 1 of them open" in page
    )
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page
    assert page.count("<svg") == 2 and "Do not publish it" in page
    assert not re.search(r"(?:src|href)=\"(?!#)", page), "nothing is loaded"
    one = answer(capsys, "show", "pets", "--html", str(tmp_path / "one.html"))
    assert one.startswith("written") and (tmp_path / "one.html").read_text().count("<h2>") == 1
