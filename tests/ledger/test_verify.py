"""Whoever changes the database by other ways is found out."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from dptrain import BudgetError, BudgetLedger
from dptrain.privacy.accounting import dp_sgd_event

from .pictures import pictures

RUN = dp_sgd_event(0.02, 300, 1.1)


@pytest.fixture
def used(ledger: BudgetLedger) -> BudgetLedger:
    """A ledger with two budgets that share pictures, a run that was settled, one that resumed, and one at work."""
    ledger.create("pets", epsilon=8.0, delta=1e-5, manifest=pictures(ledger, range(10)))
    ledger.create("more", epsilon=8.0, delta=1e-6, manifest=pictures(ledger, range(8, 30)))
    ledger.reserve(RUN, pictures(ledger, range(10))).settle(300)
    charge = ledger.reserve(RUN, pictures(ledger, range(8, 30)))
    charge.settle(100, "stopped")
    charge.resume(pictures(ledger, range(8, 30)), 100)
    ledger.reserve(RUN, pictures(ledger, range(40, 50)), data_name="third")
    return ledger


def tamper(ledger: BudgetLedger, *statements: str) -> None:
    assert ledger._store.file is not None
    connection = sqlite3.connect(ledger._store.file)
    for trigger in ("entries_refuse_update", "entries_refuse_delete"):
        connection.execute(f"DROP TRIGGER {trigger}")
    for statement in statements:
        assert connection.execute(statement).rowcount > 0, statement
    connection.commit()
    connection.close()


def test_a_sound_ledger_is_sound(used: BudgetLedger) -> None:
    found = used.verify()
    assert found.findings == ()
    assert found.head == used.head
    assert found.entries == int(used.head.partition(":")[0])


_LAST = "(SELECT max(seq) FROM entries)"
TAMPERINGS = {
    "edited": ["UPDATE entries SET payload = replace(payload, '300', '3') WHERE kind = 'reserve' AND run IS NOT NULL"],
    "another time": ["UPDATE entries SET at = '2000-01-01T00:00:00Z' WHERE seq = 3"],
    "deleted": ["DELETE FROM entries WHERE seq = 4"],
    "tail cut off": [f"DELETE FROM entries WHERE seq = {_LAST}"],
    "tail cut off and head set back": [
        f"DELETE FROM entries WHERE seq = {_LAST}",
        f"UPDATE head SET count = {_LAST}, mac = (SELECT mac FROM entries WHERE seq = {_LAST})",
    ],
    "deleted and renumbered": ["DELETE FROM entries WHERE seq = 4", "UPDATE entries SET seq = seq - 1 WHERE seq > 4"],
    "inserted": [
        f"INSERT INTO entries SELECT {_LAST} + 1, at, kind, run, payload, mac FROM entries WHERE seq = {_LAST}"
    ],
    "reordered": [
        "UPDATE entries SET seq = 100 WHERE seq = 4",
        "UPDATE entries SET seq = 4 WHERE seq = 5",
        "UPDATE entries SET seq = 5 WHERE seq = 100",
    ],
    "all deleted": ["DELETE FROM entries"],
    "total": ["UPDATE spent SET charged = charged - 1 WHERE snapshot_id = 1"],
    "total of another snapshot": [
        "DELETE FROM spent WHERE snapshot_id = 3",
        "UPDATE spent SET snapshot_id = 3 WHERE snapshot_id = 2",
    ],
    "total deleted": ["DELETE FROM spent WHERE snapshot_id = 2"],
    "charged": ["UPDATE runs SET charged = 1 WHERE seq = (SELECT max(seq) FROM runs)"],
    "run deleted": ["DELETE FROM runs WHERE seq = (SELECT max(seq) FROM runs)"],
    "token": ["UPDATE runs SET attempt = 'x'"],
    "limit": ["UPDATE datasets SET epsilon = 80 WHERE name = 'pets'"],
    "limit taken away": ["UPDATE datasets SET epsilon = NULL WHERE name = 'pets'"],
    "when limited": ["UPDATE datasets SET limited = 1 WHERE name = 'more'"],
    "delta": ["UPDATE datasets SET delta = 0.1 WHERE name = 'pets'"],
    "order": ["UPDATE datasets SET filter_order = 1.1 WHERE name = 'pets'"],
    "renamed": ["UPDATE datasets SET name = 'x' WHERE name = 'pets'"],
    "steps not taken": ["UPDATE spent SET planned = planned + 5 WHERE snapshot_id = 1"],
    "snapshot unlinked": ["DELETE FROM dataset_snapshots WHERE dataset_id = 1"],
    "unit in a fresh block": ["UPDATE units SET block_id = 99 WHERE id = 1"],
    "unit of another picture": ["UPDATE units SET hash = zeroblob(32) WHERE id = 1"],
    "member taken out": ["DELETE FROM members WHERE unit_id = 1"],
    "labels": ["UPDATE members SET labels = zeroblob(32) WHERE unit_id = 1"],
    "file of another unit": ["UPDATE files SET unit_id = 30 WHERE unit_id = 1"],
    "block unlinked": ["DELETE FROM block_snapshots WHERE block_id = 1"],
    "curve": ["UPDATE mechanisms SET curve = replace(curve, '1', '2')"],
    "event": ["UPDATE mechanisms SET event = replace(event, '1.1', '9.1')"],
    "foreign key": ["UPDATE files SET unit_id = 12345 WHERE unit_id = 1"],
}


@pytest.mark.parametrize("kind", TAMPERINGS)
def test_every_tampering_is_found(used: BudgetLedger, kind: str) -> None:
    tamper(used, *TAMPERINGS[kind])
    found = used.verify()
    assert not found.sound
    assert all("\n" not in finding for finding in found.findings)


@pytest.mark.parametrize("kind", ["tail cut off", "tail cut off and head set back", "inserted", "all deleted"])
def test_nothing_more_is_charged_on_a_record_with_a_false_end(used: BudgetLedger, kind: str) -> None:
    tamper(used, *TAMPERINGS[kind])
    with pytest.raises(BudgetError, match="tampered"):
        used.reserve(RUN, pictures(used, range(10)))


def test_a_file_that_was_pointed_at_another_unit_is_refused_when_it_is_used(used: BudgetLedger) -> None:
    tamper(used, *TAMPERINGS["file of another unit"])
    with pytest.raises(BudgetError, match="tampered"):
        used.reserve(RUN, pictures(used, range(10)))


def test_setting_the_whole_file_back_is_found_by_a_head_kept_elsewhere(ledger: BudgetLedger, tmp_path: Path) -> None:
    ledger.create("pets", epsilon=8.0, delta=1e-5, manifest=pictures(ledger, range(10)))
    early = ledger.head
    with ledger._store.write() as connection:
        connection.exec_driver_sql("COMMIT")
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.exec_driver_sql("BEGIN")
    shutil.copy(tmp_path / "budget.db", tmp_path / "old.db")
    ledger.reserve(RUN, pictures(ledger, range(10)))
    late = ledger.head
    assert ledger.verify(expect=early).sound
    assert ledger.verify(expect=late).sound
    old = BudgetLedger(f"sqlite:///{tmp_path / 'old.db'}", tmp_path / "budget.db.key")
    assert old.verify().sound
    assert "set back" in old.verify(expect=late).findings[0]


def test_an_export_holds_every_entry_and_no_key(used: BudgetLedger) -> None:
    record = used.export()
    assert record["head"] == used.head
    assert [entry["seq"] for entry in record["entries"]] == list(range(1, used.verify().entries + 1))
    kinds = {entry["kind"] for entry in record["entries"]}
    assert kinds == {"snapshot", "budget", "order", "reserve", "settle", "resume"}
    assert used._store.key.hex() not in str(record)
