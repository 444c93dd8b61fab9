"""The rows of runs and of what they release: read with their seals, changed, and added to what is spent."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from ..errors import BudgetError
from . import curves, seals, snapshots
from .store import Store
from .tables import mechanisms, runs, spent


def run_of(store: Store, connection: Connection, run: str) -> Row:
    """Return the row of a run, its seal checked.

    Raises:
        BudgetError: There is no such run, or its row was changed by other ways.
    """
    row = connection.execute(select(runs).where(runs.c.id == run)).one_or_none()
    if row is None:
        raise BudgetError(f"the ledger {store.name} has no run {run}: is it another ledger's?")
    return seals.trusted(store, runs, row)


def add_run(store: Store, connection: Connection, row: Mapping[str, Any]) -> None:
    """Add the row of a run, and charge what it reserves."""
    connection.execute(insert(runs).values(seals.sealed(store, runs, row)))
    _charge(connection, row, row["charged"], row["charged"])


def change_run(store: Store, connection: Connection, row: Row, values: Mapping[str, Any]) -> None:
    """Write values into the row of a run, seal it anew, and charge what it costs more, or less."""
    changed = seals.sealed(store, runs, {**row._mapping, **values})
    connection.execute(update(runs).where(runs.c.id == row.id).values(**values, seal=changed["seal"]))
    charged = changed["charged"] - row.charged
    if charged:
        mechanism_of(store, connection, row)  # nothing is charged in steps of a kind that somebody changed
    _charge(connection, changed, charged, charged + not_taken(changed) - not_taken(row._mapping))


def not_taken(run: Mapping[Any, Any]) -> int:
    """Return how many of its planned steps a run that ended early did not take; 0 for any other."""
    ended_early = not run["is_open"] and 0 < run["charged"] < run["planned"]
    return int(run["planned"] - run["charged"]) if ended_early else 0


def _charge(connection: Connection, run: Mapping[Any, Any], charged: int, planned: int) -> None:
    if not charged and not planned:
        return
    here = (spent.c.snapshot_id == run["snapshot_id"]) & (spent.c.mechanism_id == run["mechanism_id"])
    sums = {"charged": spent.c.charged + charged, "planned": spent.c.planned + planned}
    if not connection.execute(update(spent).where(here).values(sums)).rowcount:
        row = {"snapshot_id": run["snapshot_id"], "mechanism_id": run["mechanism_id"]}
        connection.execute(insert(spent).values(row | {"charged": charged, "planned": planned}))


def mechanism_of(store: Store, connection: Connection, run: Row) -> Row:
    """Return the row of the step that a run takes, its seal checked."""
    row = connection.execute(select(mechanisms).where(mechanisms.c.id == run.mechanism_id)).one()
    return seals.trusted(store, mechanisms, row)


def curves_of(store: Store, connection: Connection, kinds: Collection[int]) -> dict[int, curves.Curve]:
    """Return the curves of some kinds of step, their seals checked."""
    rows = connection.execute(select(mechanisms).where(mechanisms.c.id.in_(kinds)))
    return {row.id: curves.decode(seals.trusted(store, mechanisms, row).curve) for row in rows}


def mechanism_for(store: Store, connection: Connection, text: str) -> tuple[int, curves.Curve]:
    """Return number and curve of a step, given by its event's text; one that is new is recorded."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    row = connection.execute(select(mechanisms).where(mechanisms.c.digest == digest)).one_or_none()
    if row is not None:
        return row.id, curves.decode(seals.trusted(store, mechanisms, row).curve)
    curve = curves.step_curve(text, store.orders)
    number = snapshots.next_id(connection, mechanisms.c.id)
    values = {"id": number, "digest": digest, "event": text, "curve": curves.encode(curve)}
    connection.execute(insert(mechanisms).values(seals.sealed(store, mechanisms, values)))
    return number, curve
