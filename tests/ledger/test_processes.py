"""Many processes on one ledger: none takes what another has taken, and whatever is killed stays charged."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from dptrain import BudgetError, BudgetLedger
from dptrain.ledger import curves, events
from dptrain.privacy.accounting import dp_sgd_event, epsilon
from dptrain.run.charge import NOTE, RunCharge, read_note
from dptrain.run.folder import RunFolder
from dptrain.settings.schema import BudgetConfig

from .conftest import KEY
from .pictures import pictures

FORK = multiprocessing.get_context("fork")
DELTA = 1e-5
STEPS = 12
RUN = dp_sgd_event(0.05, STEPS, 1.0)

# pytest runs a few dozen; DPTRAIN_INTERLEAVINGS=1000 runs them all (minutes).
INTERLEAVINGS = int(os.environ.get("DPTRAIN_INTERLEAVINGS", "40"))


def total_for(runs: int) -> float:
    """A budget into which exactly so many runs fit."""
    one, more = (epsilon(dp_sgd_event(0.05, STEPS * n, 1.0), DELTA) for n in (runs, runs + 1))
    return (one + more) / 2


def race(url: str, barrier: object, won: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    ledger = BudgetLedger(url, KEY)
    try:
        ledger.reserve(RUN, pictures(ledger, range(20)))
    except BudgetError as error:
        assert "do not fit the budget pets" in str(error), error
        return
    with won.get_lock():  # type: ignore[attr-defined]
        won.value += 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("fitting", [1, 5])
def test_of_sixteen_processes_exactly_as_many_win_as_fit(any_url: str, fitting: int) -> None:
    ledger = BudgetLedger(any_url, KEY)
    ledger.create("pets", epsilon=total_for(fitting), delta=DELTA, manifest=pictures(ledger, range(20)))
    barrier, won = FORK.Barrier(16), FORK.Value("i", 0)
    processes = [FORK.Process(target=race, args=(any_url, barrier, won)) for _ in range(16)]
    join_all(processes)
    assert won.value == fitting
    assert ledger.show("pets")[0].runs == fitting
    assert ledger.verify().sound


def open_and_charge(url: str, barrier: object, number: int) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    ledger = BudgetLedger(url, KEY)
    ledger.reserve(RUN, pictures(ledger, range(number, number + 9)), data_name=f"data {number}").settle(number)


def test_sixteen_processes_can_make_a_ledger_together(any_url: str) -> None:
    """With datasets that overlap, so that every one of them splits the blocks of others."""
    barrier = FORK.Barrier(16)
    join_all([FORK.Process(target=open_and_charge, args=(any_url, barrier, n)) for n in range(16)])
    ledger = BudgetLedger(any_url, KEY)
    assert sum(entry["kind"] == "settle" for entry in ledger.export()["entries"]) == 16
    assert ledger.verify().findings == ()


def join_all(processes: list[BaseProcess]) -> None:
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0


# What a training process does with its folder and its charge, without the training.


class OfPictures(RunCharge):
    """Charges pictures that exist only as hashes."""

    def prepare(self) -> None:
        self._ledger = BudgetLedger(str(self.budget.url), self.budget.key)
        self._ledger.refresh_pld = lambda name: None  # type: ignore[method-assign]  # costs a second, decides nothing
        self._manifest = pictures(self._ledger, range(20))


def train(url: str, path: Path, seed: int) -> None:
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(SystemExit(0)))
    pause = random.Random(seed)
    resume = (path / "steps.journal").exists()
    folder = RunFolder(path, resume)
    spending = OfPictures(BudgetConfig(url=url), RUN, DELTA, "image", (), "pets")
    spending.prepare()
    with folder.opened("", {}):
        try:
            spending.begin(path, resume, folder.journal.steps)
            folder.journal.record(spending.taken)
            for step in range(folder.journal.steps, STEPS):
                spending.lease(step + 1)
                folder.journal.record(step + 1)
                with (path.parent / f"{path.name}.released").open("ab") as stream:
                    stream.write(b".")
                time.sleep(pause.random() * 0.004)
        except BudgetError:
            pass
        finally:
            folder.keep = not spending.settle(folder.journal.steps, "stopped")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A ledger with a budget for two runs, to be copied: making one takes a while."""
    folder = tmp_path_factory.mktemp("fresh")
    ledger = BudgetLedger(f"sqlite:///{folder / 'budget.db'}")
    ledger.create("pets", epsilon=total_for(2), delta=DELTA, manifest=pictures(ledger, range(20)))
    ledger._store.engine.dispose()
    yield folder
    shutil.rmtree(folder)


RUNS = 4
ACTIONS = st.lists(
    st.tuples(st.sampled_from(["start", "start", "kill", "kill", "stop", "finish"]), st.integers(0, RUNS - 1),
              st.floats(0, 0.06), st.integers(0, 2**16)),
    min_size=6, max_size=16,
)  # fmt: skip


@settings(
    max_examples=INTERLEAVINGS,
    deadline=None,
    database=None,
    phases=[Phase.generate],  # what happens depends on the scheduler: there is nothing to shrink
    suppress_health_check=list(HealthCheck),
)
@given(actions=ACTIONS)
def test_nothing_is_lost_or_spent_twice_however_runs_start_die_resume_and_finish(
    fresh: Path, tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[str, int, float, int]]
) -> None:
    folder = tmp_path_factory.mktemp("interleaving")
    shutil.copytree(fresh, folder, dirs_exist_ok=True)
    url = f"sqlite:///{folder / 'budget.db'}"
    alive: dict[int, BaseProcess] = {}
    try:
        for action, number, pause, seed in actions:
            process = alive.get(number)
            if action == "start" and (process is None or not process.is_alive()):
                alive[number] = FORK.Process(target=train, args=(url, folder / f"run{number}", seed))
                alive[number].start()
            elif process is not None and action == "kill":
                process.kill()
                process.join()
            elif process is not None and action == "stop":
                process.terminate()
            elif process is not None and action == "finish":
                process.join(60)
            time.sleep(pause)
    finally:
        for process in alive.values():
            process.kill()
            process.join()
    check(BudgetLedger(url), folder)
    shutil.rmtree(folder)


def check(ledger: BudgetLedger, folder: Path) -> None:
    assert ledger.verify().findings == ()
    notes = {read_note(path)["run"]: path for path in folder.glob(f"run*/{NOTE}") for path in [path.parent.parent]}
    charged = {row.run: row.charged for row in ledger.history("pets")}
    for path in folder.glob("run?"):
        started, released = size(path / "steps.journal"), size(folder / f"{path.name}.released")
        assert released <= started <= STEPS, "a step left the process before it was counted, or too many were taken"
        if started:
            run = read_note(path)["run"]
            assert started <= charged[run] <= STEPS, "steps were taken that nobody is charged for"
    reading = ledger.show("pets")[0]
    assert (reading.used or 0.0) <= 1.0, "the budget is overdrawn"
    for run in charged:  # what was killed is settled at its lease, a step at most; without a folder it never began
        ledger.settle(run, size(notes[run] / "steps.journal") if run in notes else 0, "killed")
    steps = 0
    for row in ledger.history("pets"):
        started = size(notes[row.run] / "steps.journal") if row.run in notes else 0
        assert started <= row.charged <= started + 1, "more is charged than may have been taken"
        steps += row.charged
    one = curves.step_curve(events.event_to_json(events.split_steps(RUN)[0]), ledger._store.orders)
    spent = curves.epsilon(curves.total([(steps, one)], ledger._store.orders), ledger._store.orders, DELTA)
    assert ledger.show("pets")[0].epsilon_charged == spent, "the dataset has not spent what its runs are charged"
    assert ledger.verify().findings == ()


def size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0
