"""What a dataset has spent, as people read it. The numbers are kept when they change, so that showing needs no sums."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, func, select, update

from ..errors import BudgetError
from . import admission, curves, filters, snapshots
from .charging import not_taken
from .store import Store
from .tables import atom_snapshots, atoms, datasets, entries, mechanisms, runs

# A loss distribution takes about a second for each kind of step, so the tighter reading is kept to a few of them.
_MOST_MECHANISMS = 8
_MOST_DISTINCT = 4


@dataclass(frozen=True)
class DatasetReading:
    """What one dataset has spent; reservations of runs that are not settled yet count in full.

    Attributes:
        name: Of the dataset.
        unit: What one record is.
        limit: Total epsilon of its budget; ``None``: recorded without a limit.
        delta: That the epsilons here are read at: the budget's, else the smallest of its runs.
        epsilon: RDP at its best order, never below dp-accounting's: of everything charged, and of all that runs which
            ended early had planned, since when they ended may have been chosen by what they showed. At most the limit.
        epsilon_charged: RDP of everything charged: what holds if it was decided beforehand when each run ends.
        epsilon_pld: The same events by their privacy loss distribution; ``None`` where it was not computed, or where a
            run ended early.
        filter_order: Order that admission looks at; ``None`` until a run fixes it.
        used: Part of the budget that the filter has let through, 1 is all of it; ``None`` without a filter.
        runs: Runs that touched any of its pictures.
        open_runs: Those of them that are not settled.
        stopped_runs: Those of them that ended early, after a step at least.
    """

    name: str
    unit: str
    limit: float | None
    delta: float | None
    epsilon: float
    epsilon_charged: float
    epsilon_pld: float | None
    filter_order: float | None
    used: float | None
    runs: int
    open_runs: int
    stopped_runs: int


@dataclass(frozen=True)
class Movement:
    """One run's charge, as the history of a dataset shows it.

    Attributes:
        at: When it was reserved, UTC.
        run, name: Identifier and name of the run.
        dataset: Whose history this is.
        status: ``open``, or why it was settled.
        planned, charged: Steps of the whole run, and those that count.
        sample_rate, noise_multiplier: Of a Gaussian step; ``None`` for another event, which ``kind`` names.
        epsilon: What the dataset had spent with this run and all before it, by RDP at ``delta``; with every planned
            step of those that ended early.
        delta: What that is read at.
    """

    at: str
    run: str
    name: str
    dataset: str
    status: str
    planned: int
    charged: int
    kind: str
    sample_rate: float | None
    noise_multiplier: float | None
    epsilon: float
    delta: float


def read_datasets(store: Store, connection: Connection, name: str | None) -> list[DatasetReading]:
    """Read one dataset, or all in the order of their names."""
    query = select(datasets).order_by(datasets.c.name)
    rows = connection.execute(query if name is None else query.where(datasets.c.name == name)).all()
    if name is not None and not rows:
        known = ", ".join(connection.scalars(select(datasets.c.name).order_by(datasets.c.name))) or "none"
        raise BudgetError(f"no dataset {name} in the ledger {store.name}; it has {known}")
    return [_reading(store, connection, row) for row in rows]


def _reading(store: Store, connection: Connection, row: Row) -> DatasetReading:
    inside = snapshots.dataset_atoms(connection, row.id)
    totals = set(connection.scalars(select(atoms.c.total).where(atoms.c.id.in_(inside))))
    touched = select(atom_snapshots.c.snapshot_id).where(atom_snapshots.c.atom_id.in_(inside))
    unsettled_too = func.count().filter(runs.c.is_open.is_not(False))
    early = runs.c.is_open.is_(False) & (runs.c.charged > 0) & (runs.c.charged < runs.c.planned)
    stopped, first = func.count().filter(early), func.min(runs.c.seq).filter(runs.c.charged > 0)
    count = select(func.count(), unsettled_too, stopped, first).where(runs.c.snapshot_id.in_(touched))
    number, unsettled, ended_early, first_charge = connection.execute(count).one()
    spent, charged = _number(row.read_epsilon) or 0.0, _number(row.read_charged) or 0.0
    limit, used = _number(row.epsilon), None
    if row.filter_order is not None:
        found, largest = admission.budget_filter(store, connection, row), curves.largest(map(curves.decode, totals))
        used = found.used(largest)
        if limit is not None and row.limited < (first_charge or math.inf):  # the order follows from limit and first run
            at_order = filters.reading_at(found, largest, row.delta)
            at_any_stop = min(at_order, limit) if used <= 1.0 else at_order
            spent = min(spent, max(at_any_stop, charged))  # charged is dp-accounting's figure, and nothing is below it
    fresh = admission.totals_digest(totals) == row.pld_of and not ended_early
    return DatasetReading(
        name=_text(row.name),
        unit=_text(row.unit),
        limit=limit,
        delta=_number(row.delta if row.delta is not None else row.read_delta),
        epsilon=spent,
        epsilon_charged=charged,
        epsilon_pld=_number(row.pld_epsilon) if fresh else None,
        filter_order=row.filter_order,
        used=used,
        runs=number,
        open_runs=unsettled,
        stopped_runs=ended_early,
    )


def _number(value: Any) -> float | None:
    """A kept number: SQLite stores a text in such a column as well."""
    if value is None:
        return None
    if not isinstance(value, int | float) or value < 0:
        raise ValueError(f"{value!r} is not a number from 0 up")
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a text")
    return value


def read_movements(store: Store, connection: Connection, name: str | None, last: int | None) -> list[Movement]:
    """Read the charges of one dataset, or of all, dataset by dataset."""
    if name is None:
        names = connection.scalars(select(datasets.c.name).order_by(datasets.c.name)).all()
        return [row for each in names for row in read_movements(store, connection, each, last)]
    read_datasets(store, connection, name)
    row = connection.execute(select(datasets).where(datasets.c.name == name)).one()
    delta = row.delta if row.delta is not None else row.read_delta or 1e-5
    holders: dict[int, set[int]] = {}  # snapshot -> the dataset's atoms in it
    inside = snapshots.dataset_atoms(connection, row.id)
    pairs = select(atom_snapshots.c.snapshot_id, atom_snapshots.c.atom_id)
    for snapshot, atom in connection.execute(pairs.where(atom_snapshots.c.atom_id.in_(inside))):
        holders.setdefault(snapshot, set()).add(atom)
    query = (
        select(runs, mechanisms.c.event, mechanisms.c.curve, entries.c.at)
        .join(mechanisms, mechanisms.c.id == runs.c.mechanism_id)
        .join(entries, entries.c.seq == runs.c.seq)
        .where(runs.c.snapshot_id.in_(list(holders)))
        .order_by(runs.c.seq)
    )
    charges = connection.execute(query).all()
    reasons = _reasons(connection)
    steps: dict[int, curves.Curve] = {}
    totals = dict.fromkeys(inside, curves.zero(store.orders))
    first = 0 if last is None else max(0, len(charges) - last)
    found = []
    for index, run in enumerate(charges):
        if run.mechanism_id not in steps:
            steps[run.mechanism_id] = curves.decode(run.curve)
        curve = steps[run.mechanism_id]
        for atom in holders[run.snapshot_id]:
            totals[atom] = curves.add(totals[atom], curve, run.charged + not_taken(run._mapping))
        if index >= first:
            spent = max(curves.epsilon(total, store.orders, delta) for total in set(totals.values()))
            found.append(_movement(run, name, "open" if run.is_open else reasons[run.id], spent, delta))
    return found


def _reasons(connection: Connection) -> dict[str, str]:
    query = select(entries.c.run, entries.c.payload).where(entries.c.kind == "settle").order_by(entries.c.seq)
    return {run: json.loads(payload)["reason"] for run, payload in connection.execute(query)}


def _movement(run: Row, dataset: str, status: str, spent: float, delta: float) -> Movement:
    kind, rate, noise = describe_event(json.loads(run.event)["event"])
    for value in (run.at, run.id, run.name, status):
        _text(value)
    for value in (run.planned, run.charged, rate, noise):
        _number(value)
    return Movement(
        run.at, run.id, run.name, dataset, status, run.planned, run.charged, kind, rate, noise, spent, delta
    )


def describe_event(event: dict[str, Any]) -> tuple[str, float | None, float | None]:
    """Return kind, sample rate and noise multiplier of an event's plain form."""
    rate, inner = 1.0, event
    if event["class"] == "PoissonSampledDpEvent":
        rate, inner = event["sampling_probability"], event["event"]
    if inner["class"] == "GaussianDpEvent":
        return ("Poisson Gaussian" if inner is not event else "Gaussian"), rate, inner["noise_multiplier"]
    return str(event["class"]).removesuffix("DpEvent"), None, None


def refresh_pld(store: Store, name: str) -> None:
    """Compute the tighter reading of a dataset and keep it, where it is quick and the events have one."""
    with store.read() as connection:
        reading = read_datasets(store, connection, name)[0]
        number = connection.scalar(select(datasets.c.id).where(datasets.c.name == name))
        inside = snapshots.dataset_atoms(connection, int(number or 0))
        totals = set(connection.scalars(select(atoms.c.total).where(atoms.c.id.in_(inside))))
        tallies = {tuple(sorted(_tally(connection, atom).items())) for atom in inside}
    if reading.epsilon_pld is not None or reading.delta is None or reading.stopped_runs:
        return
    spent = _pld(tallies, reading)
    if spent is not None:
        with store.write() as connection:
            values = {"pld_of": admission.totals_digest(totals), "pld_epsilon": spent}
            connection.execute(update(datasets).where(datasets.c.id == number).values(values))


def _tally(connection: Connection, atom: int) -> dict[str, int]:
    """Return how often each kind of step was charged to an atom."""
    query = (
        select(mechanisms.c.event, func.sum(runs.c.charged))
        .join(mechanisms, mechanisms.c.id == runs.c.mechanism_id)
        .join(atom_snapshots, atom_snapshots.c.snapshot_id == runs.c.snapshot_id)
        .where(atom_snapshots.c.atom_id == atom, runs.c.charged > 0)
        .group_by(mechanisms.c.event)
    )
    return {event: int(steps) for event, steps in connection.execute(query)}


def _pld(tallies: Iterable[tuple[tuple[str, int], ...]], reading: DatasetReading) -> float | None:
    from dp_accounting import dp_event

    from ..privacy import accounting

    kept = [tally for tally in tallies if tally]
    kinds = {event for tally in kept for event, _ in tally}
    if not math.isfinite(reading.epsilon) or reading.epsilon > accounting.PLD_UP_TO_EPSILON:
        return None
    if max((steps for tally in kept for _, steps in tally), default=0) > accounting.PLD_UP_TO_STEPS:
        return None
    if len(kinds) > _MOST_MECHANISMS or len(kept) > _MOST_DISTINCT:
        return None
    assert reading.delta is not None
    spent = 0.0
    for tally in kept:
        parts = [dp_event.SelfComposedDpEvent(curves.event_from_json(event), steps) for event, steps in tally]
        try:
            spent = max(spent, accounting.epsilon(dp_event.ComposedDpEvent(parts), reading.delta, "pld"))
        except Exception:  # dp-accounting has no loss distribution for some events, and says so in several ways
            return None
    return spent * (1.0 + curves.ROUNDING) if math.isfinite(spent) else None
