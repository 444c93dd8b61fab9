"""Folders that are copied, killed, restored and resumed in any order: no step is taken that is not charged."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from dptrain import BudgetError, BudgetLedger, PrivacyPlan
from dptrain.commands.budget import _settle as settle_command
from dptrain.errors import PrivacyError, SupersededError
from dptrain.privacy.accounting import dp_sgd_event
from dptrain.run.charge import RunCharge, read_note, steps_per_lease
from dptrain.settings.schema import BudgetConfig
from dptrain.training.journal import StepJournal, steps_started

from .conftest import KEY
from .pictures import pictures

STEPS = 12
RUN = dp_sgd_event(0.05, STEPS, 1.0)
DELTA = 1e-5
HISTORIES = int(os.environ.get("DPTRAIN_HISTORIES", "0"))


class OfPictures(RunCharge):
    """Charges pictures that exist only as hashes."""

    def prepare(self) -> None:
        self._ledger = BudgetLedger(str(self.budget.url), self.budget.key)
        self._ledger.refresh_pld = lambda name: None  # type: ignore[method-assign]  # costs a second, decides nothing
        self._manifest = pictures(self._ledger, range(5))


@dataclass
class Process:
    """What a training process does with its folder and its charge, without the training."""

    folder: Path
    charge: RunCharge
    journal: StepJournal
    first: int
    took: int = 0

    @classmethod
    def start(cls, url: str, folder: Path, bands: int = 1) -> Process:
        resume = (folder / "steps.journal").exists()
        folder.mkdir(exist_ok=True)
        event = PrivacyPlan(0.05, STEPS, 1.0, 1.0, DELTA, 8, bands=bands).event()
        charge = OfPictures(BudgetConfig(url=url, key=KEY), event, DELTA, "image", {}, "pets", bands=bands, steps=STEPS)
        charge.prepare()
        journal = StepJournal(folder / "steps.journal", new=not resume)
        try:
            charge.begin(folder, resume, journal.steps)
            journal.record(charge.taken)
        except BaseException:
            journal.close()
            raise
        return cls(folder, charge, journal, journal.steps)

    def step(self) -> None:
        self.charge.lease(self.journal.steps + 1)
        self.journal.record(self.journal.steps + 1)
        self.took += 1

    def end(self) -> None:
        try:
            self.charge.settle(self.journal.steps, "stopped")
        finally:
            self.journal.close()

    def kill(self) -> None:
        self.journal.close()


def charged(url: str) -> int:
    (row,) = BudgetLedger(url, KEY).history()
    return row.charged


def settle(url: str, folder: Path) -> int:
    return settle_command(Namespace(folder=str(folder), run=None, url=url, key=KEY, json=False))


@pytest.fixture
def run(url: str, tmp_path: Path) -> Process:
    """A run at work that has taken three steps; the folder ``copy`` has seen the first of them."""
    process = Process.start(url, tmp_path / "run")
    process.step()
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    process.step()
    process.step()
    return process


def test_a_copy_goes_on_after_the_last_step_that_may_have_been_taken(run: Process, url: str, tmp_path: Path) -> None:
    run.kill()
    copy = Process.start(url, tmp_path / "copy")
    assert copy.journal.steps == 3
    while copy.journal.steps < STEPS:
        copy.step()
    copy.end()
    assert run.took + copy.took == charged(url) == STEPS


def test_of_a_run_and_its_copy_the_first_is_stopped_at_the_end_of_its_lease(
    run: Process, url: str, tmp_path: Path
) -> None:
    copy = Process.start(url, tmp_path / "copy")
    for use in (run.step, run.step):
        with pytest.raises(SupersededError, match="continued elsewhere") as caught:
            use()
        assert "\n" not in str(caught.value)
    run.end()  # nothing more to tell
    copy.step()
    copy.end()
    assert charged(url) == 4 == run.took + copy.took


def test_what_a_superseded_run_settles_takes_nothing_back(run: Process, url: str, tmp_path: Path) -> None:
    copy = Process.start(url, tmp_path / "copy")
    copy.step()
    with pytest.raises(SupersededError):
        run.end()
    assert charged(url) == STEPS
    copy.end()
    assert charged(url) == 4
    late = RunCharge(run.charge.budget, RUN, DELTA, "image", {}, "pets")
    late._ledger, late._charge = run.charge._ledger, run.charge._charge
    with pytest.raises(SupersededError):
        late.settle(3, "stopped")


def test_a_folder_is_opened_once_by_each_token(run: Process, url: str, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "copy", tmp_path / "second")
    run.kill()
    Process.start(url, tmp_path / "copy").kill()
    for folder in ("second", "run"):
        with pytest.raises(SupersededError, match="older copy"):
            Process.start(url, tmp_path / folder)


def test_after_a_clean_end_only_a_folder_with_all_its_steps_goes_on_and_once(
    run: Process, url: str, tmp_path: Path
) -> None:
    run.end()
    assert charged(url) == 3
    shutil.copytree(tmp_path / "run", tmp_path / "equal")
    with pytest.raises(SupersededError, match="older copy"):
        Process.start(url, tmp_path / "copy")
    assert Process.start(url, tmp_path / "equal").journal.steps == 3
    with pytest.raises(SupersededError, match="older copy"):
        Process.start(url, tmp_path / "run")


@pytest.mark.parametrize("at_work", [True, False])
def test_settling_a_copy_charges_what_may_have_been_taken(
    run: Process, url: str, tmp_path: Path, at_work: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    if not at_work:
        run.kill()
    assert settle(url, tmp_path / "copy") == 0
    assert "3 of 12 steps are charged; 2 of them may have been taken" in capsys.readouterr().out
    assert charged(url) == steps_started(tmp_path / "copy") == 3
    if at_work:
        with pytest.raises(SupersededError, match="was settled at 3 steps"):
            run.step()
        run.end()
    assert charged(url) == 3


def test_a_folder_whose_run_went_on_elsewhere_settles_nothing(run: Process, url: str, tmp_path: Path) -> None:
    run.kill()
    copy = Process.start(url, tmp_path / "copy")
    with pytest.raises(SupersededError, match="older copy"):
        settle(url, tmp_path / "run")
    copy.step()
    assert charged(url) == STEPS


def test_a_process_with_the_memory_of_another_gets_no_second_lease(run: Process, url: str) -> None:
    """A machine that is restored with its memory goes on where it was, beside the one it was copied from."""
    charge = run.charge._charge
    assert charge is not None
    held, leased = list(charge._held), charge.leased
    run.step()
    charge._held, charge.leased = held, leased
    with pytest.raises(SupersededError, match="continued elsewhere"):
        run.charge.lease(leased + 1)


def test_a_lost_answer_is_no_refusal(run: Process, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger had given leave, and the process never heard of it."""
    monkeypatch.setattr("dptrain.run.charge._RETRIES", (0.0,))
    real, lost = BudgetLedger.advance, iter([True, False])

    def advance(self: BudgetLedger, *args: object, **kwargs: object) -> None:
        real(self, *args, **kwargs)  # type: ignore[arg-type]
        if next(lost):
            raise BudgetError("the answer was lost")

    monkeypatch.setattr(BudgetLedger, "advance", advance)
    run.step()
    run.end()
    assert charged(url) == 4


def test_no_step_is_taken_without_the_ledgers_leave(run: Process, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dptrain.run.charge._RETRIES", (0.0,))
    with monkeypatch.context() as patch:
        patch.setattr(BudgetLedger, "advance", lambda *_, **__: (_ for _ in ()).throw(BudgetError("gone")))
        with pytest.raises(BudgetError, match="step 4 is not taken without a lease from the ledger: gone"):
            run.step()
    run.end()
    assert charged(url) == 3
    assert Process.start(url, run.folder).journal.steps == 3


def test_a_crash_between_the_folders_token_and_the_ledgers_can_be_resumed(
    run: Process, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.kill()
    for after in (False, True):
        real = BudgetLedger.resume

        def die(self: BudgetLedger, *args: object, after: bool = after, real: object = real, **kwargs: object) -> None:
            if after:
                real(self, *args, **kwargs)  # type: ignore[operator]
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(BudgetLedger, "resume", die)
            Process.start(url, run.folder)
    assert Process.start(url, run.folder).journal.steps == 3


def test_a_ledger_that_knows_of_fewer_steps_than_the_folder_was_set_back(
    run: Process, url: str, tmp_path: Path
) -> None:
    with run.charge._ledger._store.write() as connection:  # type: ignore[union-attr]
        connection.exec_driver_sql("COMMIT")
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.exec_driver_sql("BEGIN")
    shutil.copy(tmp_path / "budget.db", tmp_path / "old.db")
    run.step()
    run.kill()
    run.charge._ledger._store.engine.dispose()  # type: ignore[union-attr]
    for file in tmp_path.glob("budget.db-*"):
        file.unlink()
    (tmp_path / "old.db").replace(tmp_path / "budget.db")
    with pytest.raises(BudgetError, match="knows of 3: it was set back to an earlier copy"):
        Process.start(url, run.folder)
    settle(url, run.folder)
    assert charged(url) == 4
    assert Process.start(url, run.folder).journal.steps == 4


def test_leases_follow_from_the_planned_steps_alone() -> None:
    assert [steps_per_lease(planned) for planned in (1, 99, 100, 101, 5000)] == [1, 1, 1, 2, 50]


def test_a_tuning_is_charged_as_a_whole_from_the_start(url: str, tmp_path: Path) -> None:
    charge = OfPictures(BudgetConfig(url=url, key=KEY), RUN, DELTA, "image", {}, "pets", whole=True)
    charge.prepare()
    charge.begin(tmp_path)
    BudgetLedger(url, KEY).settle(read_note(tmp_path)["run"], 0, "killed")
    assert charged(url) == STEPS


@pytest.mark.parametrize("clean", [True, False])
def test_correlated_steps_are_charged_by_the_round_and_resumed_at_the_next(
    clean: bool, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A copy of the folder cannot take a round's steps once more on the charge of the round."""
    process = Process.start(url, tmp_path / "run", bands=5)
    for _ in range(6):
        process.step()
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    process.step()
    process.end() if clean else process.kill()
    (row,) = BudgetLedger(url, KEY).history()
    assert (row.sample_rate, row.noise_multiplier, row.planned) == (0.25, 1.0, 3)
    assert row.charged == (2 if clean else 3)
    copy = Process.start(url, tmp_path / "copy", bands=5)
    assert copy.journal.steps == 10
    copy.step()
    assert copy.charge._charge is not None and copy.charge._charge.leased == 3
    copy.kill()
    assert settle(url, tmp_path / "copy") == 0 and steps_started(tmp_path / "copy") == STEPS
    assert charged(url) == 3


class Folders(RuleBasedStateMachine):
    """Processes and folders of one run, in any order of what can happen to them."""

    base: Path
    template: Path
    bands = 1
    numbers = itertools.count()

    @initialize(per_lease=st.sampled_from([1, 3, 5]), before=st.integers(0, 3), after=st.integers(1, 3))
    def begin(self, per_lease: int, before: int, after: int) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr("dptrain.run.charge._LEASES", max(1, STEPS // self.bands // per_lease))
        self.home = self.base / f"folders{next(self.numbers)}"
        self.home.mkdir()
        shutil.copy(self.template, self.home / "budget.db")
        self.url = f"sqlite:///{self.home / 'budget.db'}"
        self.folders = [self.home / "0"]
        self.alive: dict[Path, Process] = {}
        self.taken = 0
        self.done: set[int] = set()
        self.lineage: dict[Path, int] = {self.folders[0]: 0}  # steps that led to what is in a folder
        self.start(self.folders[0])
        for count in (before, after):  # a copy of either moment, and the run is still at work
            self.step(0, count)
            self.copy(0)
        self.step(0, 1)

    def start(self, folder: Path) -> None:
        try:
            self.alive[folder] = Process.start(self.url, folder, self.bands)
        except BudgetError as error:
            assert "\n" not in str(error)

    def folder(self, number: int) -> Path:
        return self.folders[number % len(self.folders)]

    @rule(number=st.integers(0, 9), count=st.integers(1, 4))
    def step(self, number: int, count: int) -> None:
        folder = self.folder(number)
        for _ in range(count):
            process = self.alive.get(folder)
            if process is None or process.journal.steps >= STEPS:
                return
            try:
                process.step()
            except SupersededError:
                self.end(number)
                return
            assert process.journal.steps not in self.done, "a step was taken twice"
            self.done.add(process.journal.steps)
            self.taken += 1
            self.lineage[folder] += 1

    @precondition(lambda self: len(self.folders) < 5)
    @rule(number=st.integers(0, 9))
    def copy(self, number: int) -> None:
        folder, copy = self.folder(number), self.home / str(len(self.folders))
        shutil.copytree(folder, copy)
        self.folders.append(copy)
        self.lineage[copy] = self.lineage[folder]

    @rule(number=st.integers(0, 9))
    def resume(self, number: int) -> None:
        if self.folder(number) not in self.alive:
            self.start(self.folder(number))

    @rule(number=st.integers(0, 9))
    def kill(self, number: int) -> None:
        process = self.alive.pop(self.folder(number), None)
        if process is not None:
            process.kill()

    @rule(number=st.integers(0, 9))
    def end(self, number: int) -> None:
        process = self.alive.pop(self.folder(number), None)
        if process is not None:
            with contextlib.suppress(SupersededError):
                process.end()

    @rule(number=st.integers(0, 9), other=st.integers(0, 9))
    def restore(self, number: int, other: int) -> None:
        """One folder takes the place of another."""
        folder, copy = self.folder(number), self.folder(other)
        if folder != copy and folder not in self.alive:
            shutil.rmtree(folder)
            shutil.copytree(copy, folder)
            self.lineage[folder] = self.lineage[copy]

    @rule(number=st.integers(0, 9))
    def settle(self, number: int) -> None:
        try:
            settle(self.url, self.folder(number))
        except (BudgetError, PrivacyError) as error:
            assert "older copy" in str(error) or "another process is training" in str(error), error

    @invariant()
    def every_step_is_charged_and_stated(self) -> None:
        if not hasattr(self, "home"):
            return
        spent = charged(self.url)
        assert spent <= -(-STEPS // self.bands) and self.taken <= min(STEPS, spent * self.bands), (
            "steps were taken that nobody is charged for"
        )
        # Each step was taken once at most, so that no unit was drawn more often than its rounds are charged.
        assert max(self.done, default=0) <= spent * self.bands, "a step was taken of a round that is not charged"
        for folder in self.folders:
            assert self.lineage[folder] <= steps_started(folder), "a folder would state fewer steps than led to it"

    def teardown(self) -> None:
        if not hasattr(self, "home"):
            return
        for process in self.alive.values():
            process.kill()
        assert BudgetLedger(self.url, KEY).verify().findings == ()
        self.patch.undo()
        shutil.rmtree(self.home)


@pytest.mark.parametrize("bands", [1, 5])
def test_no_order_of_copies_kills_and_resumes_takes_a_step_that_is_not_charged(tmp_path: Path, bands: int) -> None:
    BudgetLedger(f"sqlite:///{tmp_path / 'template.db'}", KEY)._store.engine.dispose()
    machine = type("Machine", (Folders,), {"base": tmp_path, "template": tmp_path / "template.db", "bands": bands})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=HISTORIES or 25,
            stateful_step_count=30,
            derandomize=not HISTORIES,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
