"""Whoever changes what admission reads gets no run admitted."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dptrain import BudgetError, BudgetLedger
from dptrain.ledger.tables import metadata
from dptrain.privacy.accounting import dp_sgd_event

from .conftest import KEY
from .pictures import pictures

RUN = dp_sgd_event(0.02, 100, 1.1)
OPEN, SETTLED = "a" * 32, "b" * 32


def fill(ledger: BudgetLedger) -> None:
    """A budget with a settled run and one at work, a dataset without a limit, and a budget whose order is open."""
    ledger.create("pets", epsilon=8.0, delta=1e-5, manifest=pictures(ledger, range(10)))
    ledger.reserve(RUN, pictures(ledger, range(10)), run=SETTLED).settle(60, "stopped")
    ledger.reserve(RUN, pictures(ledger, range(10)), run=OPEN, leased=40)
    ledger.reserve(RUN, pictures(ledger, range(20, 30)), data_name="third").settle(100)
    ledger.create("late", epsilon=8.0, delta=1e-5, manifest=pictures(ledger, range(40, 50)))


OPERATIONS: dict[str, Callable[[BudgetLedger], object]] = {
    "reserve": lambda ledger: ledger.reserve(RUN, pictures(ledger, range(10))),
    "changed images": lambda ledger: ledger.reserve(RUN, pictures(ledger, range(11))),
    "first run of a budget": lambda ledger: ledger.reserve(RUN, pictures(ledger, [*range(40, 50), 20])),
    "settle": lambda ledger: ledger.settle(OPEN, 50, "stopped"),
    "create": lambda ledger: ledger.create("more", epsilon=1.0, delta=1e-5, manifest=pictures(ledger, range(5))),
}
# Which of them refuse where a column was changed; nothing else of the database decides what is admitted.
ALL = set(OPERATIONS)
NEW = {"changed images", "first run of a budget", "create"}
REFUSE: dict[str, set[str]] = {
    **dict.fromkeys(metadata.tables, ALL),
    "units": NEW,
    "runs": {"first run of a budget", "create", "settle"},
}
NOT_READ = {
    "head.id",  # there is one row
    *(f"datasets.{name}" for name in ("pld_of", "pld_epsilon")),  # shown only
    *(f"entries.{name}" for name in ("at", "kind", "run", "payload")),  # the record, which verify reads
    *(f"members.{name}" for name in ("snapshot_id", "unit_id", "labels")),  # what changed, in words
    *(f"files.{name}" for name in ("hash", "unit_id", "seal")),  # what is not found is decoded; see test_verify.py
    "mechanisms.digest",  # a kind of step that is not found is computed anew
}
READ = [f"{table}.{column.name}" for table in metadata.tables for column in metadata.tables[table].c]
READ = sorted(set(READ) - NOT_READ)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("sealed") / "whole.db"
    ledger = BudgetLedger(f"sqlite:///{file}", KEY)
    fill(ledger)
    ledger._store.engine.dispose()
    connection = sqlite3.connect(file)
    assert connection.execute("PRAGMA journal_mode=DELETE").fetchone() == ("delete",)
    for (trigger,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        connection.execute(f"DROP TRIGGER {trigger}")
    connection.close()
    return file


def flipped(value: Any) -> Any:
    """The value with one bit of it turned over."""
    if isinstance(value, bytes):
        return bytes([value[0] ^ 1]) + value[1:]
    if isinstance(value, str):
        return chr(ord(value[0]) ^ 1) + value[1:] if value else "1"
    if isinstance(value, float):
        return value * (1 + 2**-40)
    return (value or 0) ^ (1 if value in (0, 1) else 1 << 20)


def changed(whole: Path, *statements: str, table: str = "", column: str = "") -> BudgetLedger:
    """A copy of the ledger that somebody changed."""
    file = whole.with_name("changed.db")
    shutil.copy(whole, file)
    connection = sqlite3.connect(file)
    for statement in statements:
        assert connection.execute(statement).rowcount > 0, statement
    if column:
        connection.create_function("flipped", 1, flipped)
        assert connection.execute(f"UPDATE {table} SET {column} = flipped({column})").rowcount > 0
    connection.commit()
    connection.close()
    return BudgetLedger(f"sqlite:///{file}", KEY)


def refused(ledger: BudgetLedger) -> set[str]:
    """The operations that are not admitted."""
    found = set()
    for name, operation in OPERATIONS.items():
        try:
            operation(ledger)
        except BudgetError as error:
            assert "\n" not in str(error) and "changed.db" in str(error), error
            found.add(name)
    return found


def sound(ledger: BudgetLedger) -> bool:
    try:
        return ledger.verify().sound
    except BudgetError:
        return False


def test_an_honest_ledger_goes_on(whole: Path) -> None:
    ledger = changed(whole)
    assert refused(ledger) == set()
    assert ledger.verify().findings == ()


@pytest.mark.parametrize("name", READ)
def test_a_flipped_bit_in_what_admission_reads_admits_nothing(whole: Path, name: str) -> None:
    table, _, column = name.partition(".")
    try:
        ledger = changed(whole, table=table, column=column)
    except BudgetError:
        assert table == "meta"  # it is not even opened
        return
    assert refused(ledger) >= REFUSE[table]
    assert not sound(ledger)


@pytest.mark.parametrize("name", sorted(NOT_READ))
def test_what_admission_does_not_read_lets_nothing_more_in(whole: Path, name: str) -> None:
    table, _, column = name.partition(".")
    ledger = changed(whole, table=table, column=column)
    with pytest.raises(BudgetError):
        ledger.reserve(dp_sgd_event(0.02, 10**5, 1.1), pictures(ledger, range(10)))


@pytest.mark.parametrize(
    ("statement", "operations"),
    [
        ("UPDATE meta SET value = replace(value, '2.5', '2.6') WHERE name = 'orders'", ALL),
        ("DELETE FROM dataset_snapshots WHERE dataset_id = 1", ALL),
        ("DELETE FROM block_snapshots WHERE block_id = 1", ALL),
        ("UPDATE spent SET charged = (SELECT min(charged) FROM spent)", ALL),
        ("UPDATE spent SET snapshot_id = 3 WHERE snapshot_id = 1", ALL),
        ("DELETE FROM spent WHERE snapshot_id = 1", ALL),
        ("UPDATE head SET state = ''", ALL),
        ("UPDATE units SET block_id = 3 WHERE id = 1", NEW),
        ("DELETE FROM units WHERE id = 1", NEW),
        ("DELETE FROM runs WHERE name = '' AND is_open = 0", {"first run of a budget", "create"}),
    ],
)
def test_rows_that_are_gone_or_exchanged_admit_nothing(whole: Path, statement: str, operations: set[str]) -> None:
    ledger = changed(whole, statement)
    assert refused(ledger) >= operations
    assert not sound(ledger)


def test_a_kind_of_step_from_another_copy_admits_nothing(whole: Path) -> None:
    """In a copy, the same number stands for a step with more noise, under a seal that fits."""
    other = BudgetLedger(f"sqlite:///{shutil.copy(whole, whole.with_name('other.db'))}", KEY)
    other.reserve(dp_sgd_event(0.02, 100, 50.0), pictures(other, range(10)))
    other._store.engine.dispose()
    ledger = changed(whole)
    ledger.reserve(dp_sgd_event(0.02, 100, 2.0), pictures(ledger, range(10)))
    ledger._store.engine.dispose()
    with sqlite3.connect(ledger._store.file or "") as connection:
        connection.execute(f"ATTACH '{whole.with_name('other.db')}' AS other")
        assert connection.execute("REPLACE INTO main.mechanisms SELECT * FROM other.mechanisms").rowcount == 2
    connection.close()
    again = BudgetLedger(ledger.address, KEY)
    assert refused(again) == ALL and not sound(again)


@pytest.mark.parametrize("table", ["spent", "runs"])
def test_rows_of_an_earlier_copy_admit_nothing(whole: Path, table: str) -> None:
    """With their own seals: a total from before a run, and a run that was settled, open once more to be paid back."""
    early = whole.with_name("early.db")
    shutil.copy(whole, early)
    ledger = changed(whole)
    ledger.settle(OPEN, 60, "stopped")
    ledger._store.engine.dispose()
    with sqlite3.connect(ledger._store.file or "") as connection:
        connection.execute(f"ATTACH '{early}' AS early")
        connection.execute(f"REPLACE INTO main.{table} SELECT * FROM early.{table}")
    connection.close()
    again = BudgetLedger(ledger.address, KEY)
    assert refused(again) == ALL and not sound(again)
