"""What admission reads, sealed with the ledger's key, so that nothing is admitted on tables that somebody changed.

The chain of entries is the record, and all else follows from it; but a run cannot wait until ten thousand charges are
summed again. So every transaction that charges begins by checking seals and ends by making them:

* a total, a kind of step and a run carry a seal over their own row;
* the head carries one over the small tables (limits, snapshots, what is in which, the seals of the totals and of the
  runs at work) and the orders, bound to the last entry: a row that was deleted, exchanged or taken from an earlier copy
  does not fit;
* and one over which picture is in which atom, which is looked at before new pictures are registered.
"""

from __future__ import annotations

import hmac
import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from sqlalchemy import Connection, Row, Table, bindparam, select, text, update
from sqlalchemy.exc import DBAPIError

from ..errors import BudgetError
from .keys import mac
from .tables import atom_snapshots, atoms, dataset_snapshots, datasets, head, mechanisms, runs, snapshots, units

_PAIR = struct.Struct(">qq")
_STATE = tuple(
    str(query)
    for query in (
        select(
            *(datasets.c[name] for name in ("id", "name", "unit", "epsilon", "delta", "filter_order", "capacity")),
            dataset_snapshots.c.snapshot_id,
        ).outerjoin(dataset_snapshots, dataset_snapshots.c.dataset_id == datasets.c.id),
        select(snapshots.c.id, snapshots.c.digest, atom_snapshots.c.atom_id, atoms.c.seal)
        .outerjoin(atom_snapshots, atom_snapshots.c.snapshot_id == snapshots.c.id)
        .outerjoin(atoms, atoms.c.id == atom_snapshots.c.atom_id),
        text("SELECT id, seal FROM runs WHERE is_open = TRUE"),
    )
)
_HEAD = str(select(head.c.count, head.c.mac, head.c.units, head.c.state))
_SEAL = update(head).values(state=bindparam("made"))
_UNITS = str(select(units.c.hash, units.c.id, units.c.atom_id).order_by(units.c.hash))


class Sealed(Protocol):
    """A ledger's database: its name and its key, and the end of its record."""

    name: str
    key: bytes
    orders: tuple[float, ...]

    def head(self, connection: Connection) -> tuple[int, str]: ...


class _Head(NamedTuple):
    entries: int
    last: str
    units: str
    state: str


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


def check(store: Sealed, connection: Connection) -> None:
    """Refuse to go on where the tables are not what the last transaction left.

    Raises:
        BudgetError: The head, the end of the record, or a table was changed by other ways.
    """
    store.head(connection)
    if not _holds(store, connection):
        raise tampered(store, "its tables")


def seal(store: Sealed, connection: Connection) -> None:
    """Seal what the transaction leaves."""
    connection.execute(_SEAL, {"made": _state(store, connection, _head(connection))})


def check_units(store: Sealed, connection: Connection) -> None:
    """Refuse to register pictures where those that are known were changed.

    Raises:
        BudgetError: They were.
    """
    if _head(connection).units != _units(store, connection):
        raise tampered(store, "its pictures")


def seal_units(store: Sealed, connection: Connection) -> None:
    """Seal which picture is in which atom; the head's seal then has to follow."""
    connection.execute(update(head).values(units=_units(store, connection)))


def broken(store: Sealed, connection: Connection) -> Iterator[str]:
    """Yield what does not fit its seal, a line each."""
    row = connection.execute(select(head)).one_or_none()
    if row is None:  # which is a finding already
        return
    for table in (atoms, mechanisms, runs):
        for found in connection.execute(select(table)):
            if found.seal != row_seal(store, table, found._mapping):
                yield f"{table.name.removesuffix('s')} {found.id}: its seal does not fit"
    if not _holds(store, connection):
        yield "the limits, snapshots or totals are not those of the last entry: their seal does not fit"
    if row.units != _units(store, connection):
        yield "the known pictures are not those of the last entry: their seal does not fit"


def _holds(store: Sealed, connection: Connection) -> bool:
    row = _head(connection)
    return hmac.compare_digest(row.state, _state(store, connection, row))


def _head(connection: Connection) -> _Head:
    (row,) = rows_of(connection, _HEAD)
    return _Head(*row)


def _state(store: Sealed, connection: Connection, row: _Head) -> str:
    tables = [sorted(map(repr, rows_of(connection, query))) for query in _STATE]
    return mac(store.key, "state", json.dumps([row.entries, row.last, row.units, store.orders, *tables]).encode()).hex()


def _units(store: Sealed, connection: Connection) -> str:
    rows = rows_of(connection, _UNITS)
    return mac(store.key, "units", b"".join(bytes(unit) + _PAIR.pack(*pair) for unit, *pair in rows)).hex()


def rows_of(connection: Connection, query: str) -> list[tuple[Any, ...]]:
    """Ask the driver itself: SQLAlchemy takes ten times as long for what every transaction asks."""
    try:
        return list(map(tuple, connection.connection.cursor().execute(query).fetchall()))
    except connection.dialect.loaded_dbapi.Error as error:
        raise DBAPIError(query, None, error) from error
