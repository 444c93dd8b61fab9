"""The rows of runs and of what they release: read with their seals, changed, and added to what images have spent."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Row, bindparam, insert, select, update

from ..errors import BudgetError
from . import admission, curves, seals, snapshots
from .store import Store
from .tables import atoms, mechanisms, runs, stopped


def run_of(store: Store, connection: Connection, run: str) -> Row:
    """Return the row of a run, its seal checked.

    Raises:
        BudgetError: There is no such run, or its row was changed by other ways.
    """
    row = connection.execute(select(runs).where(runs.c.id == run)).one_or_none()
    if row is None:
        raise BudgetError(f"the ledger {store.name} has no run {run}: is it another ledger's?")
    return seals.trusted(store, runs, row)


def change_run(store: Store, connection: Connection, row: Row, values: Mapping[str, Any]) -> None:
    """Write values into the row of a run, and seal it anew."""
    changed = seals.sealed(store, runs, {**row._mapping, **values})
    connection.execute(update(runs).where(runs.c.id == row.id).values(**values, seal=changed["seal"]))
    _count_stopped(connection, row, not_taken(changed) - not_taken(row._mapping))


def not_taken(run: Mapping[Any, Any]) -> int:
    """Return how many of its planned steps a run that ended early did not take; 0 for any other."""
    ended_early = not run["is_open"] and 0 < run["charged"] < run["planned"]
    return int(run["planned"] - run["charged"]) if ended_early else 0


def _count_stopped(connection: Connection, run: Row, steps: int) -> None:
    if not steps:
        return
    here = (stopped.c.snapshot_id == run.snapshot_id) & (stopped.c.mechanism_id == run.mechanism_id)
    if not connection.execute(update(stopped).where(here).values(steps=stopped.c.steps + steps)).rowcount:
        row = {"snapshot_id": run.snapshot_id, "mechanism_id": run.mechanism_id, "steps": steps}
        connection.execute(insert(stopped).values(row))


def mechanism_of(store: Store, connection: Connection, run: Row) -> Row:
    """Return the row of the step that a run takes, its seal checked."""
    row = connection.execute(select(mechanisms).where(mechanisms.c.id == run.mechanism_id)).one()
    return seals.trusted(store, mechanisms, row)


def mechanism_for(store: Store, connection: Connection, text: str) -> tuple[int, curves.Curve]:
    """Return number and curve of a step, given by its event's text; one that is new is recorded."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    row = connection.execute(select(mechanisms).where(mechanisms.c.digest == digest)).one_or_none()
    if row is not None:
        return row.id, curves.decode(seals.trusted(store, mechanisms, row).curve)
    curve = curves.step_curve(text, store.orders)
    number = snapshots.next_id(connection, mechanisms)
    values = {"id": number, "digest": digest, "event": text, "curve": curves.encode(curve)}
    connection.execute(insert(mechanisms).values(seals.sealed(store, mechanisms, values)))
    return number, curve


def charge(
    store: Store,
    connection: Connection,
    totals: Mapping[int, curves.Curve],
    curve: curves.Curve,
    steps: int,
    delta: float,
) -> None:
    """Add steps to the atoms that a run can draw from, or take them back."""
    changed = []
    for number, total in totals.items():
        text = curves.encode(curves.add(total, curve, steps))
        code = seals.row_seal(store, atoms, {"id": number, "total": text})
        changed.append({"atom": number, "sum": text, "code": code})
    values: dict[str, Any] = {"total": bindparam("sum"), "seal": bindparam("code")}
    connection.execute(update(atoms).where(atoms.c.id == bindparam("atom")).values(values), changed)
    admission.refresh_readings(store, connection, admission.touched_datasets(connection, totals), delta)
