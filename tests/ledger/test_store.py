"""The database behind a ledger: its key, its address, its schema; and what is said when one of them is wrong."""

from __future__ import annotations

import multiprocessing
import sqlite3
import stat
from pathlib import Path

import pytest
from sqlalchemy import URL, make_url, text

from dptrain import BudgetError, BudgetLedger
from dptrain.ledger.store import SYNCHRONOUS
from dptrain.privacy.accounting import dp_sgd_event

from .conftest import KEY
from .pictures import pictures

RUN = dp_sgd_event(0.02, 100, 1.1)
BY_DEFAULT = SYNCHRONOUS  # before the tests turn it off


def test_a_key_that_only_its_owner_reads_is_made_with_an_sqlite_ledger(tmp_path: Path) -> None:
    BudgetLedger(f"sqlite:///{tmp_path / 'b.db'}")
    key = tmp_path / "b.db.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert len(bytes.fromhex(key.read_text())) == 32
    assert {file.name for file in tmp_path.iterdir() if "-" not in file.name} == {"b.db", "b.db.key"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda key: key.unlink(), "is missing: put it back"),
        (lambda key: key.write_text("ab" * 32), "is not this ledger's"),
        (lambda key: key.write_text("secret"), "is not a key"),
        (lambda key: key.chmod(0o644), "can be read by everyone"),
    ],
)
def test_a_wrong_key_is_one_clear_error(tmp_path: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    url = f"sqlite:///{tmp_path / 'b.db'}"
    BudgetLedger(url)
    change(tmp_path / "b.db.key")
    with pytest.raises(BudgetError, match=message) as caught:
        BudgetLedger(url)
    assert "secret" not in str(caught.value)


def test_the_key_is_taken_from_the_argument_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path / 'b.db'}"
    BudgetLedger(url, KEY)
    assert not (tmp_path / "b.db.key").exists()
    BudgetLedger(url, bytes.fromhex(KEY))
    (tmp_path / "elsewhere").write_text(KEY)
    (tmp_path / "elsewhere").chmod(0o600)
    BudgetLedger(url, tmp_path / "elsewhere")
    monkeypatch.setenv("DPTRAIN_BUDGET_KEY", KEY)
    BudgetLedger(url)
    monkeypatch.setenv("DPTRAIN_BUDGET_KEY", "0" * 63)
    with pytest.raises(BudgetError, match="not 64 hexadecimal digits"):
        BudgetLedger(url)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite://", "in memory, which forgets"),
        ("mysql://a:secret@b/c", "is not offered"),
        ("nonsense secret", "is not a database address"),
        ("sqlite:////nowhere/at/all/b.db", "cannot be opened"),
        ("postgresql://u:secret@127.0.0.1:1/x", "cannot be used"),
    ],
)
def test_a_wrong_address_is_one_line_without_the_password(url: str, message: str) -> None:
    with pytest.raises(BudgetError, match=message) as caught:
        BudgetLedger(url, KEY)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_server_needs_a_key_and_makes_the_file_that_it_is_given(postgres_url: str, tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="--key FILE"):
        BudgetLedger(postgres_url)
    BudgetLedger(postgres_url, tmp_path / "new.key")
    with pytest.raises(BudgetError, match="is not this ledger's"):
        BudgetLedger(postgres_url, KEY)
    BudgetLedger(postgres_url, tmp_path / "new.key")


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b.db").write_text("x" * 5000)
    with pytest.raises(BudgetError, match="not a database"):
        BudgetLedger(f"sqlite:///{tmp_path / 'b.db'}")


def test_looking_at_a_ledger_makes_none(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="there is no ledger"):
        BudgetLedger(f"sqlite:///{tmp_path / 'b.db'}", create=False)
    assert list(tmp_path.iterdir()) == []


def test_a_ledger_of_a_newer_dptrain_is_not_touched(any_url: str) -> None:
    ledger = BudgetLedger(any_url, KEY)
    with ledger._store.engine.begin() as connection:
        connection.execute(text("UPDATE meta SET value = '9999' WHERE name = 'schema'"))
    with pytest.raises(BudgetError, match="newer dptrain"):
        BudgetLedger(any_url, KEY)


@pytest.mark.parametrize("schema", ["0005", "before 0006"])
def test_a_ledger_that_kept_its_charges_in_another_form_is_refused(any_url: str, schema: str) -> None:
    """None of its charges would be found, and every run would have a fresh budget."""
    ledger = BudgetLedger(any_url, KEY)
    ledger.create("pets", epsilon=3.0, delta=1e-5, manifest=pictures(ledger, range(3)))
    with ledger._store.engine.begin() as connection:
        if schema == "before 0006":  # those had no such row
            connection.execute(text("DELETE FROM meta WHERE name = 'schema'"))
        else:
            connection.execute(text(f"UPDATE meta SET value = '{schema}' WHERE name = 'schema'"))
    for open_it in (BudgetLedger, BudgetLedger.existing):
        with pytest.raises(BudgetError, match=f"older dptrain .schema {schema}.*make a new ledger") as error:
            open_it(any_url, KEY)
        assert "\n" not in str(error.value)


def test_the_database_itself_refuses_to_change_an_entry(any_ledger: BudgetLedger) -> None:
    any_ledger.reserve(RUN, pictures(any_ledger, range(3)))
    for statement in ("UPDATE entries SET at = 'x'", "DELETE FROM entries"):
        with (
            pytest.raises(BudgetError, match="append-only"),
            any_ledger._store.write() as connection,
        ):
            connection.execute(text(statement))


def test_an_sqlite_ledger_survives_a_crash_of_the_machine_and_many_readers(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dptrain.ledger.store.SYNCHRONOUS", BY_DEFAULT)
    ledger = BudgetLedger(url)
    with ledger._store.read() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert connection.execute(text("PRAGMA synchronous")).scalar() == 2  # FULL
        assert connection.execute(text("PRAGMA foreign_keys")).scalar() == 1


def test_a_forked_process_uses_a_connection_of_its_own(any_ledger: BudgetLedger) -> None:
    """Data loaders fork in the middle of a run, with the ledger open."""
    manifest = pictures(any_ledger, range(3))
    any_ledger.reserve(RUN, manifest, data_name="pets")
    process = multiprocessing.get_context("fork").Process(target=any_ledger.reserve, args=(RUN, manifest))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    any_ledger.reserve(RUN, manifest)
    assert any_ledger.show("pets")[0].runs == 3
    assert any_ledger.verify().sound


def test_a_ledger_keeps_no_path_no_name_of_a_file_and_no_password(postgres_url: str, tmp_path: Path) -> None:
    ledger = BudgetLedger(postgres_url.replace("dptrain@", "dptrain:secret@"), KEY)
    assert "secret" not in ledger.address
    ledger.reserve(RUN, pictures(ledger, range(3)))
    assert "secret" not in str(ledger.export())


@pytest.mark.parametrize("revisions", [False, True])
def test_another_programs_database_is_refused_and_gets_no_tables(tmp_path: Path, revisions: bool) -> None:
    file = tmp_path / "mlflow.db"
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE experiments (name)")
        if revisions:
            connection.execute("CREATE TABLE alembic_version (version_num)")
            connection.execute("INSERT INTO alembic_version VALUES ('0a1b2c3d4e5f')")
    connection.close()
    before = file.read_bytes()
    with pytest.raises(BudgetError, match="another program's database"):
        BudgetLedger(f"sqlite:///{file}")
    assert file.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


def test_a_ledger_that_was_cut_to_nothing_is_not_a_new_one(tmp_path: Path) -> None:
    """All its budgets would be unspent."""
    url = f"sqlite:///{tmp_path / 'b.db'}"
    BudgetLedger(url)._store.engine.dispose()
    for name in ("b.db-wal", "b.db-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    for left in (b"", b"S", b"SQLite format 3\0"):
        (tmp_path / "b.db").write_bytes(left)
        with pytest.raises(BudgetError, match=r"b\.db is empty or was cut off"):
            BudgetLedger(url)
        assert (tmp_path / "b.db").read_bytes() == left


def test_a_question_mark_in_a_name_belongs_to_the_name(tmp_path: Path) -> None:
    (tmp_path / "a?b").mkdir()
    file = tmp_path / "a?b" / "x%20y.db"
    url = URL.create("sqlite", database=str(file)).render_as_string()
    if make_url(url).database != str(file):
        pytest.skip("this SQLAlchemy has no address for such a file")
    ledger = BudgetLedger(url)
    assert ledger.show() == [] and file.exists()
    assert BudgetLedger(ledger.address, create=False).head == ledger.head


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE meta SET value = '{' WHERE name = 'orders'",
        "DELETE FROM meta WHERE name = 'orders'",
        "UPDATE head SET seal = 'é'",
        "UPDATE spent SET charged = 'x'",
        "UPDATE datasets SET epsilon = 'much'",
        "UPDATE datasets SET filter_order = 1.0001",
        "UPDATE runs SET charged = 'x'",
        "UPDATE entries SET payload = '['",
        "UPDATE meta SET value = 7 WHERE name = 'schema'",
    ],
)
def test_a_value_that_the_ledger_never_writes_is_one_line(tmp_path: Path, change: str) -> None:
    url = f"sqlite:///{tmp_path / 'b.db'}"
    ledger = BudgetLedger(url)
    ledger.create("pets", epsilon=8.0, delta=1e-5, manifest=pictures(ledger, range(3)))
    ledger.reserve(RUN, pictures(ledger, range(3)))
    ledger._store.engine.dispose()
    with sqlite3.connect(tmp_path / "b.db") as connection:
        for (trigger,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {trigger}")
        connection.execute(change)
    connection.close()
    with pytest.raises(BudgetError) as caught:
        again = BudgetLedger(url)
        again.show()
        again.history()
        again.export()
        again.reserve(RUN, pictures(again, range(3)))
    assert "b.db" in str(caught.value) and "\n" not in str(caught.value)
