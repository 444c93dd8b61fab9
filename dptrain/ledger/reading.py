"""What a dataset has spent, as people read it."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, func, select, update

from ..errors import BudgetError
from . import admission, curves, filters
from .events import describe_event, event_from_json
from .run_rows import curves_of, not_taken
from .state import Dataset, State, read_state
from .store import Store
from .tables import datasets, entries, mechanisms, runs

# A loss distribution takes about a second for each kind of step, so the tighter reading is kept to a few of them.
_MOST_MECHANISMS = 8
_MOST_DISTINCT = 4


@dataclass(frozen=True)
class DatasetReading:
    """What one dataset has spent; reservations of runs that are not settled yet count in full.

    Attributes:
        name: Of the dataset.
        unit: What one unit is.
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
    state = read_state(connection)
    return [_reading(store, connection, state, dataset) for dataset in _chosen(store, state, name)]


def _chosen(store: Store, state: State, name: str | None) -> list[Dataset]:
    found = sorted(state.datasets.values(), key=lambda dataset: _text(dataset.name))
    if name is None:
        return found
    if state.dataset(name) is None:
        known = ", ".join(dataset.name for dataset in found) or "none"
        raise BudgetError(f"no dataset {name} in the ledger {store.name}; it has {known}")
    return [dataset for dataset in found if dataset.name == name]


def _reading(store: Store, connection: Connection, state: State, dataset: Dataset) -> DatasetReading:
    unsettled_too = func.count().filter(runs.c.is_open.is_not(False))
    early = runs.c.is_open.is_(False) & (runs.c.charged > 0) & (runs.c.charged < runs.c.planned)
    stopped, first = func.count().filter(early), func.min(runs.c.seq).filter(runs.c.charged > 0)
    count = select(func.count(), unsettled_too, stopped, first, func.min(runs.c.delta))
    around = runs.c.snapshot_id.in_(state.around(dataset.id))
    number, unsettled, ended_early, first_charge, least_delta = connection.execute(count.where(around)).one()
    delta = _number(dataset.delta if dataset.delta is not None else least_delta)
    blocks = state.blocks_of(dataset.id)
    steps = curves_of(store, connection, state.kinds(blocks))
    parts = admission.spent_by(state, steps, blocks)
    charged = _largest(store, parts, delta)
    spent = _largest(store, admission.spent_by(state, steps, blocks, planned=True), delta)
    limit, used = _number(dataset.epsilon), None
    if limit is not None and dataset.filter_order is not None:
        found = filters.Filter.at(dataset.filter_order, store.orders, *dataset.limit)
        used = found.used(parts)
        if dataset.limited is not None and dataset.limited < (
            first_charge or math.inf
        ):  # the order follows from limit and first run
            at_order = filters.reading_at(found, found.spent(parts), dataset.limit[1])
            at_any_stop = min(at_order, limit) if used <= 1.0 else at_order
            spent = min(spent, max(at_any_stop, charged))  # charged is dp-accounting's figure, and nothing is below it
    pld_of, pld_epsilon = connection.execute(_PLD.where(datasets.c.id == dataset.id)).one()
    fresh = pld_of == _digest(state, blocks) and not ended_early
    return DatasetReading(
        name=_text(dataset.name),
        unit=_text(dataset.unit),
        limit=limit,
        delta=delta,
        epsilon=spent,
        epsilon_charged=charged,
        epsilon_pld=_number(pld_epsilon) if fresh else None,
        filter_order=dataset.filter_order,
        used=used,
        runs=number,
        open_runs=unsettled,
        stopped_runs=ended_early,
    )


_PLD = select(datasets.c.pld_of, datasets.c.pld_epsilon)


def _largest(store: Store, blocks: Iterable[curves.Parts], delta: float | None) -> float:
    """What the block that has spent most has spent; nothing is charged where there is no delta."""
    if delta is None:
        return 0.0
    return max(
        (curves.epsilon(curves.total(parts, store.orders), store.orders, delta) for parts in blocks), default=0.0
    )


def _digest(state: State, blocks: Iterable[int]) -> str:
    """What the charges of some blocks are known by."""
    tallies = sorted({tuple(sorted(state.tally(block).items())) for block in blocks})
    return hashlib.sha256(json.dumps(tallies).encode()).hexdigest()


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
    state = read_state(connection)
    reasons = _reasons(connection)
    found = []
    for dataset in _chosen(store, state, name):
        found += _movements(store, connection, state, dataset, reasons, last)
    return found


def _movements(
    store: Store, connection: Connection, state: State, dataset: Dataset, reasons: dict[str, str], last: int | None
) -> list[Movement]:
    query = (
        select(runs, mechanisms.c.event, entries.c.at)
        .join(mechanisms, mechanisms.c.id == runs.c.mechanism_id)
        .join(entries, entries.c.seq == runs.c.seq)
        .where(runs.c.snapshot_id.in_(state.around(dataset.id)))
        .order_by(runs.c.seq)
    )
    charges = connection.execute(query).all()
    delta = dataset.delta if dataset.delta is not None else min((run.delta for run in charges), default=1e-5)
    steps = curves_of(store, connection, {run.mechanism_id for run in charges})
    tallies = {block: Counter[int]() for block in state.blocks_of(dataset.id)}
    first = 0 if last is None else max(0, len(charges) - last)
    found = []
    for index, run in enumerate(charges):
        for block, tally in tallies.items():
            if run.snapshot_id in state.blocks[block]:
                tally[run.mechanism_id] += run.charged + not_taken(run._mapping)
        if index >= first:
            different = {frozenset((+tally).items()) for tally in tallies.values()}
            parts = [[(count, steps[kind]) for kind, count in tally] for tally in different]
            status = "open" if run.is_open else reasons[run.id]
            found.append(_movement(run, dataset.name, status, _largest(store, parts, delta), delta))
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


def refresh_pld(store: Store, name: str) -> None:
    """Compute the tighter reading of a dataset and keep it, where it is quick and the events have one."""
    with store.read() as connection:
        reading = read_datasets(store, connection, name)[0]
        state = read_state(connection)
        events = dict(connection.execute(select(mechanisms.c.id, mechanisms.c.event)).all())
    (dataset,) = _chosen(store, state, name)
    if reading.epsilon_pld is not None or reading.delta is None or reading.stopped_runs:
        return
    blocks = state.blocks_of(dataset.id)
    tallies = {frozenset((events[kind], steps) for kind, steps in state.tally(block).items()) for block in blocks}
    spent = _pld(tallies, reading)
    if spent is not None:
        with store.write() as connection:
            values = {"pld_of": _digest(state, blocks), "pld_epsilon": spent}
            connection.execute(update(datasets).where(datasets.c.id == dataset.id).values(values))


def _pld(tallies: Iterable[frozenset[tuple[str, int]]], reading: DatasetReading) -> float | None:
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
        parts = [dp_event.SelfComposedDpEvent(event_from_json(event), steps) for event, steps in sorted(tally)]
        try:
            spent = max(spent, accounting.epsilon(dp_event.ComposedDpEvent(parts), reading.delta, "pld"))
        except Exception:  # dp-accounting has no loss distribution for some events, and says so in several ways
            return None
    return spent * (1.0 + curves.ROUNDING) if math.isfinite(spent) else None
