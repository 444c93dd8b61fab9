"""The ledger's database: its connection, its schema, its transactions and the chain of entries."""

from __future__ import annotations

import fcntl
import hmac
import json
import os
import struct
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, insert, inspect, select, text, update
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from ..errors import BudgetError, DptrainError
from . import keys, seals
from .state import State, rows_of
from .tables import entries, head, meta, metadata

SCHEMA = "0006"  # of the tables; a change to them is a new number, and an older ledger is refused
_APPEND_ONLY = "the entries of a ledger are append-only"
_ADVISORY_LOCK = 0x6470_7472_6169_6E  # "dptrain": one writer at a time on a PostgreSQL server
_BUSY_SECONDS = 60
_NOT_ALLOWED = "42501"  # PostgreSQL: insufficient privilege
GENESIS = "0" * 64
_HEAD = "SELECT count, mac, seal FROM head"
_END = "SELECT seq, mac FROM entries ORDER BY seq DESC LIMIT 1"
_LEAST_BYTES = 512  # of an SQLite database
_UNREADABLE = (
    struct.error,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RecursionError,
)
SYNCHRONOUS = "FULL"  # a reservation is on the disk before the first step, whatever happens to the machine


_STORES: weakref.WeakSet[Store] = weakref.WeakSet()


def _after_fork() -> None:
    """A connection belongs to the process that made it: the child opens its own."""
    for store in _STORES:
        store.engine.dispose(close=False)


os.register_at_fork(after_in_child=_after_fork)


class Store:
    """One ledger's database. It survives a fork (data loaders do that) and the restart of a server."""

    def __init__(self, url: str, key: bytes | str | Path | None = None, create: bool = True) -> None:
        """Open a ledger, or make it.

        Args:
            url: ``sqlite:///file.db`` or ``postgresql://user@host/name``.
            key: 32 bytes, their hexadecimal digits, or a file that holds those; see :mod:`dptrain.ledger.keys`.
            create: Whether an SQLite file that is not there is made.

        Raises:
            BudgetError: It cannot be reached, is no ledger, is of another dptrain, or the key is missing or wrong.
        """
        self.url = _parse(url)
        self.address = self.url.render_as_string(hide_password=True)
        self.name = self.address
        self.file = _sqlite_file(self.url)
        if self.file is not None:
            # Rendered, since a name may hold what means something in an address.
            self.name, self.address = _shown(self.file), _address(self.file).render_as_string()
            if not create and not self.file.exists():
                raise BudgetError(f"there is no ledger at {self.file}: give its address, --url or budget.url")
        with self._translated():
            self.engine = self._engine()
            _STORES.add(self)
            self._prepare(key, create)

    def _engine(self) -> Engine:
        if self.file is None:
            return create_engine(self.url, pool_size=1, pool_pre_ping=True, connect_args={"connect_timeout": 10})
        # One connection stays open: the last one to close an SQLite file writes its whole log back.
        engine = create_engine(
            _address(self.file),
            pool_size=1,
            connect_args={"timeout": _BUSY_SECONDS, "check_same_thread": False},
        )

        @event.listens_for(engine, "connect")
        def configure(connection: Any, _: Any) -> None:
            connection.isolation_level = None  # the transactions are begun below, not by the driver
            for pragma in ("foreign_keys=ON", f"synchronous={SYNCHRONOUS}"):
                connection.execute(f"PRAGMA {pragma}")

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            writes = connection.get_execution_options().get("write")
            connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

        return engine

    def _prepare(self, key: bytes | str | Path | None, create: bool) -> None:
        beside = None if self.file is None else Path(f"{self.file}.key")
        with self._alone():
            if self.file is not None and not self.file.exists():
                with self.engine.connect() as connection:
                    connection.exec_driver_sql("COMMIT")
                    connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            self._refuse_emptied(beside, create)
            known = self._known()
            self.key = keys.find_key(key, beside, known["key"] if known else None)
            self.orders = _orders(known or self._make())

    def _known(self) -> dict[str, str]:
        """Return what a ledger says of itself; nothing where there is none yet.

        Raises:
            BudgetError: The database is another program's, or a ledger of another dptrain.
        """
        with self.read() as connection:
            tables = inspect(connection).get_table_names()
            if meta.name in tables:
                known = dict(connection.execute(select(meta.c.name, meta.c.value)).all())
                schema = known.get("schema", "before 0006")
            elif "alembic_version" in tables or (tables and self.file is not None):
                raise BudgetError(f"{self.name} is another program's database, not a ledger: give another file")
            else:
                return {}
        if schema.isdigit() and schema > SCHEMA:
            raise BudgetError(f"the ledger {self.name} was made by a newer dptrain (schema {schema}): upgrade dptrain")
        if schema != SCHEMA:
            raise BudgetError(
                f"the ledger {self.name} was made by an older dptrain (schema {schema}), which kept its charges in "
                "another form: make a new ledger, with what its budgets have left as limits"
            )
        return known

    def _make(self) -> dict[str, str]:
        from ..privacy.rdp import ORDERS

        first = {"schema": SCHEMA, "key": keys.fingerprint(self.key), "orders": json.dumps(ORDERS)}
        with self.write() as connection:
            if meta.name in inspect(connection).get_table_names():  # another process was quicker, on a server
                found = dict(connection.execute(select(meta.c.name, meta.c.value)).all())
                if found["key"] != first["key"]:
                    raise BudgetError("the ledger has just been made with another key: give that one")
                return found
            metadata.create_all(connection)
            for statement in _append_only(self.file is not None):
                connection.execute(text(statement))
            connection.execute(insert(meta), [{"name": name, "value": value} for name, value in first.items()])
            connection.execute(insert(head).values(id=1, count=0, mac=GENESIS, seal=self._seal(0, GENESIS)))
            self.orders = _orders(first)
            seals.seal_units(self, connection)
            seals.seal(self, connection)
        return first

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let one process at a time make an SQLite ledger; a lock on the folder leaves no file behind."""
        if self.file is None:
            yield
            return
        try:
            handle = os.open(self.file.parent, os.O_RDONLY)
        except OSError as error:
            raise BudgetError(f"the ledger {self.file} cannot be opened ({error.strerror})") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _refuse_emptied(self, beside: Path | None, create: bool) -> None:
        """A ledger that was cut off must not pass for a new one, whose budgets are all unspent; SQLite lets it."""
        if self.file is None or not self.file.exists():
            return
        size = self.file.stat().st_size
        known = not create or (beside is not None and beside.exists())
        if 0 < size < _LEAST_BYTES or (size == 0 and known and not Path(f"{self.file}-wal").exists()):
            raise BudgetError(
                f"the ledger {self.name} is empty or was cut off: restore a copy, or delete it and its key to begin "
                "anew"
            )

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state of the ledger."""
        with self._translated(), self.engine.connect() as connection, connection.begin():
            if self.file is None:
                connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that no other writer overlaps; what it raises takes everything back."""
        with self._translated(), self.engine.connect().execution_options(write=True) as connection, connection.begin():
            if self.file is None:
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
            yield connection

    @contextmanager
    def change(self) -> Iterator[tuple[Connection, State]]:
        """A write transaction that believes no table without its seal, and seals what it leaves.

        Raises:
            BudgetError: The database was changed by other ways.
        """
        with self.write() as connection:
            yield connection, seals.check(self, connection)
            seals.seal(self, connection)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            reason = " ".join(str(getattr(error, "orig", None) or error).split())
            if getattr(getattr(error, "orig", None), "sqlstate", None) == _NOT_ALLOWED:
                raise BudgetError(
                    f"{self.url.username or 'this user'} may not do that in the ledger {self.name} ({reason[:100]}): "
                    "ask who keeps it for a role that may; see dptrain budget roles"
                ) from error
            if "database is locked" in reason:
                reason = f"locked: another process has been writing to it for {_BUSY_SECONDS:g} s; try again after it"
            raise BudgetError(f"the ledger {self.name} cannot be used: {reason[:300]}") from error
        except DptrainError:
            raise
        except _UNREADABLE as error:  # a value of the tables is not what the ledger writes there
            reason = str(error)[:200] if isinstance(error, ValueError) else type(error).__name__
            raise BudgetError(
                f"the ledger {self.name} is damaged, or was changed by other ways ({reason}): see dptrain budget "
                "verify, and restore a copy"
            ) from error

    def append(self, connection: Connection, kind: str, payload: Mapping[str, Any], run: str | None = None) -> int:
        """Add an entry to the chain, within :meth:`change`, which has looked at its head; return its number."""
        ((count, last, _),) = rows_of(connection, _HEAD)
        row = {
            "seq": count + 1,
            "at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "kind": kind,
            "run": run,
            "payload": json.dumps(payload, sort_keys=True, separators=(",", ":"), allow_nan=False),
        }
        code = self.chained(last, row)
        connection.execute(insert(entries).values(row | {"mac": code}))
        connection.execute(update(head).values(count=count + 1, mac=code, seal=self._seal(count + 1, code)))
        return count + 1

    def chained(self, last: str, row: Mapping[Any, Any]) -> str:
        """Return the mac of an entry that follows the one whose mac is ``last``."""
        fields = [last, *(str(row[name] or "") for name in ("seq", "at", "kind", "run", "payload"))]
        return keys.mac(self.key, "entry", *(field.encode() for field in fields)).hex()

    def head(self, connection: Connection) -> tuple[int, str]:
        """Return the number of entries and the last one's mac, and see that both are there.

        Raises:
            BudgetError: The head is missing or forged, or the last entry is not the one it names.
        """
        found = rows_of(connection, _HEAD)
        count, last, seal = found[0] if found else (0, "", "")
        if not hmac.compare_digest(seal, self._seal(count, last)):
            raise seals.tampered(self, "its head")
        end = rows_of(connection, _END)
        if (end[0] if end else (0, GENESIS)) != (count, last):
            raise seals.tampered(self, "its end")
        return count, last

    def _seal(self, count: int, last: str) -> str:
        return keys.mac(self.key, "head", str(count).encode(), last.encode()).hex()


def _append_only(is_file: bool) -> list[str]:
    """Return the SQL by which the database itself refuses to change an entry."""
    if is_file:
        return [
            f"CREATE TRIGGER entries_refuse_{action.lower()} BEFORE {action} ON entries "
            f"BEGIN SELECT RAISE(ABORT, '{_APPEND_ONLY}'); END"
            for action in ("UPDATE", "DELETE")
        ]
    return [
        "CREATE FUNCTION entries_refuse() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{_APPEND_ONLY}'; END $$",
        "CREATE TRIGGER entries_refuse BEFORE UPDATE OR DELETE OR TRUNCATE ON entries "
        "FOR EACH STATEMENT EXECUTE FUNCTION entries_refuse()",
    ]


def _orders(known: Mapping[str, str]) -> tuple[float, ...]:
    return tuple(float(order) for order in json.loads(known["orders"]))


def _address(file: Path) -> URL:
    return URL.create("sqlite", database=str(file))


def _shown(file: Path) -> str:
    return str(file.relative_to(Path.cwd())) if file.is_relative_to(Path.cwd()) else str(file)


def sqlite_file(url: str) -> Path | None:
    """Return the file of a ledger's address, there or not; ``None`` for a server."""
    return _sqlite_file(_parse(url))


def _sqlite_file(url: URL) -> Path | None:
    if url.get_backend_name() != "sqlite":
        return None
    name = url.render_as_string(hide_password=True)
    if not url.database or url.database == ":memory:":
        raise BudgetError(f"{name} is a ledger in memory, which forgets: give a file, sqlite:///budget.db")
    try:
        file = Path(url.database).absolute()
        if file.exists() and not file.is_file():
            raise BudgetError(
                f"{file} is not a regular file, so it cannot be a ledger: give another, --url or budget.url"
            )
    except (OSError, ValueError) as error:
        raise BudgetError(f"{name} is not a file name ({error}): give sqlite:///budget.db") from error
    return file


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
        parsed.render_as_string()  # raises for what no address can hold
    except (ArgumentError, ValueError):
        raise BudgetError(
            "budget.url is not a database address (not shown, it may hold a password): "
            "give sqlite:///budget.db or postgresql://user@host/name"
        ) from None
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite", "postgresql+psycopg"):
        raise BudgetError(
            f"a ledger on {parsed.drivername} is not offered: give sqlite:///budget.db or postgresql://user@host/name"
        )
    if parsed.drivername == "postgresql+psycopg":
        try:
            import psycopg  # noqa: F401
        except (ImportError, NoSuchModuleError):
            raise BudgetError("a ledger on PostgreSQL needs its driver: pip install 'dptrain[postgres]'") from None
    return parsed
