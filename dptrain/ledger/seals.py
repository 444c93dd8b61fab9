"""What admission reads, sealed with the ledger's key, so that nothing is admitted on tables that somebody changed.

All else follows from the chain of entries; but a run cannot wait until ten thousand charges are
summed again. So every transaction that charges begins by checking seals and ends by making them:

* a run and a kind of step, which are many and read one at a time, carry a seal over their own row;
* the head carries one over the small tables (limits, snapshots, blocks, what is spent), the orders and the seals of
  the kinds of step and of the runs at work, bound to the last entry: a row that was deleted, exchanged or taken from
  another copy does not fit;
* and the head has one over which picture is in which block, which is looked at before new pictures are registered.
"""

from __future__ import annotations

import hmac
import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from sqlalchemy import Connection, Row, Table, bindparam, select, update

from ..errors import BudgetError
from .keys import mac
from .state import State, read_rows, rows_of, state_of
from .tables import head, mechanisms, runs

_PAIR = struct.Struct(">qq")
_HEAD = "SELECT count, mac, units, state FROM head"
_UNITS = "SELECT hash, id, block_id FROM units ORDER BY hash"
_ROWS = (
    "SELECT id, seal FROM runs WHERE is_open = TRUE ORDER BY id",
    "SELECT id, seal FROM mechanisms ORDER BY id",
)
_SEAL = update(head).values(state=bindparam("made"))


class Sealed(Protocol):
    """A ledger's database: its name and its key, and the end of its chain."""

    name: str
    key: bytes
    orders: tuple[float, ...]

    def head(self, connection: Connection) -> tuple[int, str]: ...


def tampered(store: Sealed, what: str) -> BudgetError:
    """Return the error for a part of the ledger that the ledger did not write."""
    return BudgetError(f"the ledger {store.name} has been tampered with ({what}): see dptrain budget verify")


def row_seal(store: Sealed, table: Table, row: Mapping[Any, Any]) -> str:
    """Return the seal over all other columns of a row."""
    values = [row[column.name] for column in table.c if column.name != "seal"]
    return mac(store.key, f"row of {table.name}", json.dumps(values).encode()).hex()


def sealed(store: Sealed, table: Table, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with its seal."""
    return {**row, "seal": row_seal(store, table, row)}


def trusted(store: Sealed, table: Table, row: Row) -> Row:
    """Return a row that was read, if its seal fits.

    Raises:
        BudgetError: It does not.
    """
    if not hmac.compare_digest(row.seal, row_seal(store, table, row._mapping)):
        raise tampered(store, f"a row of {table.name}")
    return row


def check(store: Sealed, connection: Connection) -> State:
    """Return the small tables, if they are what the last transaction left.

    Raises:
        BudgetError: The head, the end of the chain, or a table was changed by other ways.
    """
    store.head(connection)
    tables = read_rows(connection)
    if not _holds(store, connection, tables):
        raise tampered(store, "its tables")
    return state_of(tables)


def seal(store: Sealed, connection: Connection) -> None:
    """Seal what the transaction leaves."""
    connection.execute(_SEAL, {"made": _state(store, connection, _head(connection), read_rows(connection))})


def check_units(store: Sealed, connection: Connection) -> None:
    """Refuse to register pictures where those that are known were changed.

    Raises:
        BudgetError: They were.
    """
    if _head(connection)[2] != _units(store, connection):
        raise tampered(store, "its pictures")


def seal_units(store: Sealed, connection: Connection) -> None:
    """Seal which picture is in which block; the head's seal then has to follow."""
    connection.execute(update(head).values(units=_units(store, connection)))


def broken(store: Sealed, connection: Connection) -> Iterator[str]:
    """Yield what does not fit its seal, a line each."""
    row = connection.execute(select(head)).one_or_none()
    if row is None:  # which is a finding already
        return
    for table in (mechanisms, runs):
        for found in connection.execute(select(table)):
            if found.seal != row_seal(store, table, found._mapping):
                yield f"{table.name.removesuffix('s')} {found.id}: its seal does not fit"
    if not _holds(store, connection, read_rows(connection)):
        yield "the limits, snapshots or charges are not those of the last entry: their seal does not fit"
    if row.units != _units(store, connection):
        yield "the known pictures are not those of the last entry: their seal does not fit"


def _holds(store: Sealed, connection: Connection, tables: list[list[tuple[Any, ...]]]) -> bool:
    row = _head(connection)
    return hmac.compare_digest(row[3], _state(store, connection, row, tables))


def _head(connection: Connection) -> tuple[Any, ...]:
    (row,) = rows_of(connection, _HEAD)
    return row


def _state(store: Sealed, connection: Connection, row: tuple[Any, ...], tables: list[list[tuple[Any, ...]]]) -> str:
    content = [*row[:3], store.orders, *tables, *(rows_of(connection, query) for query in _ROWS)]
    return mac(store.key, "state", json.dumps(content).encode()).hex()


def _units(store: Sealed, connection: Connection) -> str:
    rows = rows_of(connection, _UNITS)
    return mac(store.key, "units", b"".join(bytes(unit) + _PAIR.pack(*pair) for unit, *pair in rows)).hex()
