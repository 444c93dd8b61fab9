"""Ledger files: a damaged one gives an error, or what it gave when it was whole, or ``verify`` finds it out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dp_accounting import dp_event
from hypothesis import example, given
from hypothesis import strategies as st

from dptrain import BudgetError, BudgetLedger
from dptrain.ledger.manifest import Manifest, Picture, from_pictures
from dptrain.privacy.accounting import dp_sgd_event

from .harness import answer, cases, check_message, contents, damaged
from .test_folders import command

SHARE = 0.1
RUN = dp_sgd_event(0.02, 300, 1.1)
TOO_MUCH = dp_sgd_event(0.02, 10**6, 1.1)


@pytest.fixture(autouse=True, scope="module")
def _no_waiting_for_the_disk() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dptrain.ledger.store.SYNCHRONOUS", "OFF")
        yield


def pictures(key: bytes, numbers: range) -> Manifest:
    def hashed(kind: str, number: int) -> bytes:
        return hashlib.sha256(f"{kind} {number}".encode()).digest()

    return from_pictures(key, [Picture(hashed("file", n), hashed("unit", n), hashed("labels", 0)) for n in numbers])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger with two budgets, a run that was settled, one that resumed, and one at work; all in one file."""
    home = tmp_path_factory.mktemp("ledgers")
    ledger = BudgetLedger(f"sqlite:///{home / 'whole.db'}", home / "key")
    key = ledger._store.key
    ledger.create("pets", epsilon=8.0, delta=1e-5, manifest=pictures(key, range(10)))
    ledger.create("more", epsilon=8.0, delta=1e-6, manifest=pictures(key, range(8, 30)))
    ledger.reserve(RUN, pictures(key, range(10)), run="a" * 32).settle(300)
    charge = ledger.reserve(RUN, pictures(key, range(8, 30)), run="b" * 32)
    charge.settle(100, "stopped")
    charge.resume(pictures(key, range(8, 30)), 100)
    ledger.reserve(dp_event.GaussianDpEvent(30.0), pictures(key, range(40, 50)), data_name="third", run="c" * 32)
    ledger._store.engine.dispose()
    connection = sqlite3.connect(home / "whole.db")
    assert connection.execute("PRAGMA journal_mode=DELETE").fetchone() == ("delete",)  # no log: one file
    connection.close()
    return home


def opened(file: Path, key: Path) -> BudgetLedger:
    return BudgetLedger(f"sqlite:///{file}", key, create=False)


def shown(ledger: BudgetLedger) -> list[Any]:
    return [dataclasses.replace(reading, epsilon_pld=None) for reading in ledger.show()]


def check(home: Path, file: Path) -> None:
    """Everything that reads or charges a ledger, on one that may not be whole."""
    whole = opened(home / "whole.db", home / "key")
    key = whole._store.key
    ledger, _ = answer(lambda: opened(file, home / "key"), file, "key")
    try:
        if ledger is None:
            return
        checked, _ = answer(ledger.verify, file)
        unsound = checked is None or not checked.sound
        for read in (shown, BudgetLedger.history, BudgetLedger.export):
            found, _ = answer(lambda read=read: read(ledger), file)  # type: ignore[misc]
            assert found is None or unsound or found == read(whole), read
            json.dumps(found, default=dataclasses.asdict)
        pets = pictures(key, range(10))
        for event, manifest in ((TOO_MUCH, pets), (RUN, pictures(key, range(60, 70)))):
            charge, _ = answer(lambda e=event, m=manifest: ledger.reserve(e, m))  # type: ignore[misc]
            assert charge is None or unsound or event is RUN
        answer(lambda: ledger.settle("b" * 32, 200))
        answer(lambda: ledger.find_run("a" * 32), file)
    finally:
        for each in (whole, ledger):
            if each is not None:
                each._store.engine.dispose()


@cases(SHARE * 0.35, 24)
@given(data=st.data())
def test_damaged_bytes_are_an_error_or_found_out(home: Path, data: st.DataObject) -> None:
    file = home / "damaged.db"
    file.write_bytes(data.draw(damaged((home / "whole.db").read_bytes(), most=3)))
    check(home, file)


_VALUES: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.integers(-1, 400), st.sampled_from([2**62, 0.5, float("inf"), -1.0, "", "x", "é", "[]", "{}",
    "1,2", b"",
                                                      b"\xff" * 32, "[" * 2000, "0" * 64]), st.text(max_size=4),
)  # fmt: skip


@cases(SHARE * 0.35, 24)
@given(data=st.data())
def test_a_value_that_is_not_the_ledgers_is_an_error_or_found_out(home: Path, data: st.DataObject) -> None:
    file = home / "changed.db"
    shutil.copy(home / "whole.db", file)
    connection = sqlite3.connect(file)
    for (trigger,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        connection.execute(f"DROP TRIGGER {trigger}")
    tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
    table = data.draw(st.sampled_from(tables))
    columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
    rows = [row[0] for row in connection.execute(f"SELECT rowid FROM {table}")]
    row = data.draw(st.sampled_from(rows))
    try:
        if data.draw(st.integers(0, 5)):
            column, value = data.draw(st.sampled_from(columns)), data.draw(_VALUES)
            connection.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (value, row))
        else:
            connection.execute(f"DELETE FROM {table} WHERE rowid = ?", (row,))
    except sqlite3.IntegrityError:
        pass
    connection.commit()
    connection.close()
    check(home, file)


@cases(SHARE * 0.15, 60)
@given(content=st.one_of(damaged(b"1f" * 32 + b"\n"), st.binary(max_size=70), st.text(max_size=64).map(str.encode)))
def test_a_damaged_key_opens_nothing(home: Path, content: bytes) -> None:
    whole = (home / "key").read_bytes()
    (home / "other").write_bytes(content)
    (home / "other").chmod(0o600)
    before = contents(home)
    ledger, refused = answer(lambda: opened(home / "whole.db", home / "other"), "key", "other")
    assert (ledger is None) == (content.split() != whole.split()), refused
    assert contents(home) == before


_URLS = st.one_of(
    st.sampled_from(["sqlite:///", "sqlite://", "sqlite:///:memory:", "sqlite:///" + "x" * 300, "sqlite:///a\0b", "",
    "x",
                     "postgresql://h:port/x", "postgresql://[/x", "mysql://h/x", "sqlite:///no/such/folder/x.db", "5",
                     "sqlite:///folder", "sqlite:///pipe", "sqlite+aiosqlite:///x", "file:x", "sqlite:///\ud800",
                     "sqlite:///dev?mode=ro", "sqlite:///%00", "sqlite:////proc/self/mem", "~/x.db",
                     "sqlite:///~/x.db"]),
    st.text(max_size=12), st.text(max_size=8).map(lambda text: f"sqlite:///{text}"),
    st.text(max_size=8).map(lambda text: f"mysql://{text}"),
)  # fmt: skip


@cases(SHARE * 0.15, 60)
@given(url=_URLS)
def test_an_address_is_a_file_or_refused(tmp_path_factory: pytest.TempPathFactory, url: str) -> None:
    folder = tmp_path_factory.mktemp("addresses")
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        found, _ = answer(lambda: BudgetLedger(url, create=False))
        assert found is None
        assert set(contents(folder)) == {"folder", "pipe"}


@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize("other", ["its own tables", "its own revisions", "empty with a key"])
def test_another_programs_database_is_refused_and_left_alone(tmp_path: Path, other: str, create: bool) -> None:
    """mlflow.db for budget.db is soon typed; and a ledger that was cut to nothing is no new one."""
    file = tmp_path / "other.db"
    connection = sqlite3.connect(file)
    if other == "empty with a key":
        BudgetLedger(f"sqlite:///{file}")._store.engine.dispose()
        file.write_bytes(b"")
    else:
        connection.execute("CREATE TABLE notes (text)")
        if other == "its own revisions":
            connection.execute("CREATE TABLE alembic_version (version_num)")
            connection.execute("INSERT INTO alembic_version VALUES ('0a1b2c3d4e5f')")
    connection.commit()
    connection.close()
    for left in ("other.db-wal", "other.db-shm"):
        (tmp_path / left).unlink(missing_ok=True)
    before = contents(tmp_path)
    with pytest.raises(BudgetError) as caught:
        BudgetLedger(f"sqlite:///{file}", create=create)
    check_message(str(caught.value), file)
    assert contents(tmp_path) == before
    status, message = command(["budget", "show", "--url", f"sqlite:///{file}"])
    assert status == 2
    check_message(message, file)


@example(name="a?b.db")
@example(name="a#b%20.db")
@cases(0.0001, 5)
@given(name=st.sampled_from(["a b.db", "ä.db", "a&b=c.db", ":memory"]))
def test_a_ledger_is_kept_in_the_file_of_that_name(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    from sqlalchemy import URL

    folder = tmp_path_factory.mktemp("names")
    url = URL.create("sqlite", database=str(folder / name)).render_as_string()
    ledger, refused = answer(lambda: BudgetLedger(url))
    if ledger is not None:
        assert ledger.show() == [] and (Path(str(ledger._store.file)).exists()), refused
        assert (
            sorted(path.name.split(".db")[0] for path in folder.iterdir())[0]
            == str(ledger._store.file).rpartition("/")[2].split(".db")[0]
        )
