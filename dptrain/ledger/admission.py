"""Which budgets a run must fit, whether it does, and what would fit instead."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, bindparam, func, select, update

from ..errors import BudgetError
from ..support.words import counted, shown
from . import curves, filters, seals, snapshots
from .curves import Curve
from .store import Store
from .tables import atom_snapshots, atoms, dataset_snapshots, datasets, mechanisms, runs, stopped


@dataclass(frozen=True)
class Request:
    """Steps that ask to be charged: a whole run, or what a resumed one still needs."""

    step: Any
    curve: Curve
    steps: int
    run: str


def snapshot_atoms(store: Store, connection: Connection, snapshot: int) -> dict[int, Curve]:
    """Return the atoms of a snapshot with what is charged to each."""
    rows = connection.execute(_OF_SNAPSHOT, {"snapshot": snapshot})
    return {row.id: curves.decode(seals.trusted(store, atoms, row).total) for row in rows}


def _totals(store: Store, connection: Connection, inside: Collection[int]) -> dict[int, str]:
    rows = connection.execute(_OF_ATOMS, {"inside": list(inside)})
    return {row.id: seals.trusted(store, atoms, row).total for row in rows}


# Made once: to put a statement together takes as long as to run it.
_OF_ATOMS = select(atoms).where(atoms.c.id.in_(bindparam("inside", expanding=True)))
_OF_SNAPSHOT = (
    select(atoms)
    .join(atom_snapshots, atom_snapshots.c.atom_id == atoms.c.id)
    .where(atom_snapshots.c.snapshot_id == bindparam("snapshot"))
)
_TOUCHED = snapshots.dataset_atom_pairs().where(atom_snapshots.c.atom_id.in_(bindparam("inside", expanding=True)))
_HELD = snapshots.dataset_atom_pairs().where(dataset_snapshots.c.dataset_id.in_(bindparam("inside", expanding=True)))


_NOT_TAKEN = (
    select(atom_snapshots.c.atom_id, stopped.c.mechanism_id, func.sum(stopped.c.steps))
    .join(stopped, stopped.c.snapshot_id == atom_snapshots.c.snapshot_id)
    .where(
        stopped.c.steps > 0,
        atom_snapshots.c.atom_id.in_(
            snapshots.dataset_atom_pairs()
            .with_only_columns(atom_snapshots.c.atom_id)
            .where(dataset_snapshots.c.dataset_id.in_(bindparam("inside", expanding=True)))
        ),
    )
    .group_by(atom_snapshots.c.atom_id, stopped.c.mechanism_id)
)


def touched_datasets(connection: Connection, atom_ids: Collection[int]) -> dict[int, set[int]]:
    """Return the datasets that share any of the atoms, each with those it shares."""
    found: dict[int, set[int]] = {}
    for dataset, atom in connection.execute(_TOUCHED, {"inside": list(atom_ids)}):
        found.setdefault(dataset, set()).add(atom)
    return found


def admit(
    store: Store, connection: Connection, totals: Mapping[int, Curve], request: Request, required: bool = False
) -> None:
    """Let a request pass if every budget that shares a unit with it has room; fix the order of those without one.

    Args:
        totals: The atoms that the run could draw from, with what is charged to each so far.
        required: Also refuse a run with a unit that no budget limits.

    Raises:
        BudgetError: It does not fit; the message says what is spent and what would fit.
    """
    limited: set[int] = set()
    refusals: list[tuple[Row, filters.Filter | None, Curve]] = []
    touched = touched_datasets(connection, totals)
    budgets = select(datasets).where(datasets.c.id.in_(list(touched)), datasets.c.epsilon.is_not(None))
    for row in connection.execute(budgets.order_by(datasets.c.id)).all():
        number, shared = row.id, touched[row.id]
        limited |= shared
        before = curves.largest(totals[atom] for atom in shared)
        after = curves.add(before, request.curve, request.steps)
        found = budget_filter(store, connection, row, request)
        if _fits(found, after, store, row):
            continue
        fresh = row.filter_order is None and not has_charges(store, connection, number)
        refusals.append((row, None if fresh else found, before))
    if refusals:
        raise BudgetError(_refusal(store, connection, refusals, request))
    if required and limited != totals.keys():
        raise BudgetError(
            "budget.required=true, and no budget with a limit covers these images: "
            f"dptrain budget create --data DATA.YAML --epsilon 8 --delta 1e-5 --url {store.address} sets one"
        )


def budget_filter(store: Store, connection: Connection, row: Row, request: Request | None = None) -> filters.Filter:
    """Return the filter of a budget; one whose order is still open is fixed now, by the first run ever charged to it.

    Without such a run, ``request`` is the first. Its plan was made before anything of the data was seen, so that the
    order depends on no result.
    """
    if row.filter_order is not None:
        index = store.orders.index(row.filter_order)
        return filters.Filter(index, row.filter_order, int(row.capacity, 16))
    first = _first_charge(store, connection, row.id)
    if first is None:
        assert request is not None
        run, curve = request.run, curves.add(curves.zero(store.orders), request.curve, request.steps)
    else:
        run, curve = first
    found = filters.Filter.fix(curve, store.orders, row.epsilon, row.delta)
    values = {"filter_order": found.order, "capacity": format(found.capacity, "x")}
    connection.execute(update(datasets).where(datasets.c.id == row.id).values(values))
    store.append(connection, "order", {"dataset": row.name, "order": found.order, "first_run": run})
    return found


def has_charges(store: Store, connection: Connection, dataset: int) -> bool:
    """Whether anything was ever charged to a unit of the dataset."""
    return _first_charge(store, connection, dataset) is not None


def _first_charge(store: Store, connection: Connection, dataset: int) -> tuple[str, Curve] | None:
    """Return the first run charged to a unit of the dataset, with the curve of its plan.

    The runs are many and sealed one by one, so that one could be missing: they must add up to the totals.
    """
    inside = snapshots.dataset_atoms(connection, dataset)
    pairs = select(atom_snapshots.c.atom_id, atom_snapshots.c.snapshot_id).where(atom_snapshots.c.atom_id.in_(inside))
    holders: dict[int, list[int]] = {}
    for atom, snapshot in connection.execute(pairs):
        holders.setdefault(snapshot, []).append(atom)
    query = select(runs).where(runs.c.snapshot_id.in_(list(holders))).order_by(runs.c.seq)
    charged = [row for row in connection.execute(query) if seals.trusted(store, runs, row).charged > 0]
    kinds = select(mechanisms).where(mechanisms.c.id.in_({row.mechanism_id for row in charged}))
    steps = {row.id: curves.decode(seals.trusted(store, mechanisms, row).curve) for row in connection.execute(kinds)}
    tally: Counter[tuple[int, int]] = Counter()
    for row in charged:
        for atom in holders[row.snapshot_id]:
            tally[atom, row.mechanism_id] += row.charged
    sums = dict.fromkeys(inside, curves.zero(store.orders))
    for (atom, kind), count in tally.items():
        sums[atom] = curves.add(sums[atom], steps[kind], count)
    if sums != {atom: curves.decode(total) for atom, total in _totals(store, connection, inside).items()}:
        raise seals.tampered(store, "its runs")
    if not charged:
        return None
    first = charged[0]
    return first.id, tuple(first.planned * value for value in steps[first.mechanism_id])


def _refusal(
    store: Store,
    connection: Connection,
    refusals: Sequence[tuple[Row, filters.Filter | None, Curve]],
    request: Request,
) -> str:
    row, found, before = refusals[0]
    after = curves.add(before, request.curve, request.steps)
    spent = curves.epsilon(before, store.orders, row.delta)
    # What is left is what the filter still lets through; without one yet, all of it.
    if found is None:
        reached = shown(curves.epsilon(after, store.orders, row.delta))
    else:
        index = found.index
        at_order = curves.epsilon((curves.bound(after[index]),), (found.order,), row.delta)
        reached = f"{shown(at_order)} at its order {found.order:g}"
    left = max(0.0, row.epsilon - spent) if found is None or found.room(before) > 0 else 0.0
    parts = filters.gaussian_step(request.step)
    what = counted(request.steps, "step") if parts or request.steps > 1 else type(request.step).__name__
    what += f" at noise multiplier {parts[1]:g} and sample rate {parts[0]:g}" if parts else ""
    return (
        f"{what} do not fit the budget {row.name}: epsilon {shown(spent)} of {row.epsilon:g} is spent (RDP, delta "
        f"{row.delta:g}), {math.floor(left * 1000) / 1000:g} is left, and this run would bring it to {reached}; "
        + _instead(store, refusals, request)
    )


def _instead(store: Store, refusals: Sequence[tuple[Row, filters.Filter | None, Curve]], request: Request) -> str:
    noise: float | None = 0.0
    fewer: int | None = request.steps
    for row, found, before in refusals:
        if found is None:
            offer = filters.offer_afresh(row.epsilon, row.delta, request.step, request.steps)
        else:
            divergence = curves.bound(request.curve[found.index])
            orders = store.orders[found.index : found.index + 10]
            offer = filters.offer_within(found.room(before), orders, request.step, divergence, request.steps)
        noise = None if noise is None or offer.noise_multiplier is None else max(noise, offer.noise_multiplier)
        fewer = None if fewer is None or offer.steps is None else min(fewer, offer.steps)
    fewer, noise = _surely(store, refusals, request, fewer, noise)
    offers = [f"{counted(fewer, 'step')} at this noise"] if fewer else []
    offers += [f"noise multiplier {noise:g} for {counted(request.steps, 'step')}"] if noise else []
    return f"{' or '.join(offers)} would fit" if offers else "nothing fits any more"


def _fits(found: filters.Filter, after: Curve, store: Store, row: Row) -> bool:
    return found.admits(after) and filters.reads_within(after, store.orders, row.epsilon, row.delta)


def _surely(
    store: Store,
    refusals: Sequence[tuple[Row, filters.Filter | None, Curve]],
    request: Request,
    fewer: int | None,
    noise: float | None,
) -> tuple[int | None, float | None]:
    """Hold the offers against everything that admission asks; those that a fresh budget is offered always fit."""

    def passes(curve: Curve, steps: int) -> bool:
        return all(
            found is None or _fits(found, curves.add(before, curve, steps), store, row)
            for row, found, before in refusals
        )

    def passes_with(sigma: float) -> bool:
        event = filters.with_noise(request.step, sigma)
        return passes(curves.step_curve(curves.event_to_json(event), store.orders), request.steps)

    if fewer and not passes(request.curve, fewer):
        fewer = filters.most(lambda count: passes(request.curve, count), fewer) or None
    return fewer, filters.more_noise(noise, passes_with) if noise else None


def refresh_readings(store: Store, connection: Connection, numbers: Collection[int], delta: float | None) -> None:
    """Compute what the datasets have spent, so that whoever shows it needs no accountant.

    Two figures: with every planned step of the runs that ended early, and with the steps that were charged.
    """
    totals_of = dataset_totals(store, connection, numbers)
    planned_of = planned_totals(store, connection, numbers)
    changed: list[dict[str, Any]] = []
    spent_by: dict[tuple[str, float], float] = {}  # datasets share atoms

    def spent(totals: Collection[str], delta: float) -> float:
        for total in totals:
            if (total, delta) not in spent_by:
                spent_by[total, delta] = curves.epsilon(curves.decode(total), store.orders, delta)
        return max(spent_by[total, delta] for total in totals)

    for row in connection.execute(select(datasets).where(datasets.c.id.in_(list(numbers)))).all():
        totals = totals_of[row.id]
        known = [value for value in (row.read_delta, delta) if value is not None]
        at = row.delta if row.delta is not None else min(known, default=1e-5)
        found = {"charged": spent(totals, at), "spent": spent(planned_of.get(row.id, totals), at)}
        changed.append({"dataset": row.id, "of": totals_digest(totals), "at": at, **found})
    columns = {"read_of": "of", "read_delta": "at", "read_epsilon": "spent", "read_charged": "charged"}
    query = update(datasets).where(datasets.c.id == bindparam("dataset"))
    connection.execute(query.values({column: bindparam(name) for column, name in columns.items()}), changed)


def planned_totals(store: Store, connection: Connection, numbers: Collection[int]) -> dict[int, set[str]]:
    """Return the totals of some datasets with all that was planned, also by runs that ended early; only of those
    datasets that have such runs.
    """
    missing: dict[int, Counter[int]] = {}  # atom -> kind of step -> steps
    for atom, kind, steps in connection.execute(_NOT_TAKEN, {"inside": list(numbers)}):
        missing.setdefault(atom, Counter())[kind] = int(steps)
    if not missing:
        return {}
    kinds = {kind for tally in missing.values() for kind in tally}
    rows = connection.execute(select(mechanisms.c.id, mechanisms.c.curve).where(mechanisms.c.id.in_(kinds)))
    steps_of = {number: curves.decode(curve) for number, curve in rows}
    held: dict[int, set[int]] = {}
    for dataset, atom in connection.execute(_HELD, {"inside": list(numbers)}):
        held.setdefault(dataset, set()).add(atom)
    found: dict[int, set[str]] = {}
    for dataset, inside in held.items():
        if not inside & missing.keys():
            continue
        found[dataset] = set()
        for atom, text in _totals(store, connection, inside).items():
            total = curves.decode(text)
            for kind, steps in missing.get(atom, {}).items():
                total = curves.add(total, steps_of[kind], steps)
            found[dataset].add(curves.encode(total))
    return found


def dataset_totals(store: Store, connection: Connection, numbers: Collection[int]) -> dict[int, set[str]]:
    """Return what is charged to the atoms of some datasets, each different total once."""
    inside: dict[int, set[int]] = {}
    for dataset, atom in connection.execute(_HELD, {"inside": list(numbers)}):
        inside.setdefault(dataset, set()).add(atom)
    totals = _totals(store, connection, set().union(*inside.values()))
    return {dataset: {totals[atom] for atom in held} for dataset, held in inside.items()}


def totals_digest(totals: Collection[str]) -> str:
    """Return what the totals of a dataset's atoms are known by."""
    return hashlib.sha256("\n".join(sorted(totals)).encode()).hexdigest()
