"""Which budgets a run must fit, whether it does, and what would fit instead."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select, update

from ..errors import BudgetError
from ..support.words import counted, shown
from . import curves, events, filters, run_rows, seals
from .curves import Curve, Parts
from .filters import Filter
from .state import Dataset, State
from .store import Store
from .tables import datasets, runs


@dataclass(frozen=True)
class Request:
    """Steps that ask to be charged: a whole run, or what a resumed one still needs."""

    step: Any
    curve: Curve
    steps: int
    run: str
    snapshot: int


@dataclass(frozen=True)
class _Refusal:
    """A budget without room: what its blocks have spent; no filter where its first run would still choose the order."""

    dataset: Dataset
    filter: Filter | None
    before: list[Parts]

    def largest(self, orders: Sequence[float], more: Parts = ()) -> Curve:
        return curves.largest(curves.total([*parts, *more], orders) for parts in self.before)


def admit(store: Store, connection: Connection, state: State, request: Request, required: bool = False) -> None:
    """Let a request pass if every budget that shares a unit with it has room; fix the order of those without one.

    Args:
        required: Also refuse a run with a unit that no budget limits.

    Raises:
        BudgetError: It does not fit; the message says what is spent and what would fit.
    """
    drawn, limited = state.blocks_in([request.snapshot]), set[int]()
    steps = run_rows.curves_of(store, connection, state.kinds(drawn))
    refusals: list[_Refusal] = []
    for dataset in state.datasets.values():
        shared = state.blocks_of(dataset.id) & drawn
        if dataset.epsilon is None or not shared:
            continue
        limited |= shared
        before = spent_by(state, steps, shared)
        after = [[*parts, (request.steps, request.curve)] for parts in before]
        found = budget_filter(store, connection, state, dataset, request)
        if _fits(found, after, store, dataset):
            continue
        fresh = dataset.filter_order is None and not has_charges(state, dataset.id)
        refusals.append(_Refusal(dataset, None if fresh else found, before))
    if refusals:
        raise BudgetError(_refusal(store, refusals, request))
    if required and limited != drawn:
        raise BudgetError(
            "budget.required=true, and no budget with a limit covers these images: "
            f"dptrain budget create --data DATA.YAML --epsilon 8 --delta 1e-5 --url {store.address} sets one"
        )


def spent_by(state: State, steps: Mapping[int, Curve], blocks: Collection[int], planned: bool = False) -> list[Parts]:
    """Return what was charged to some blocks, or ``planned``, each different spending once; ``steps``: the curves."""
    tallies = {frozenset(state.tally(block, planned).items()) for block in blocks}
    return [[(count, steps[kind]) for kind, count in sorted(tally)] for tally in tallies]


def budget_filter(
    store: Store, connection: Connection, state: State, dataset: Dataset, request: Request | None = None
) -> Filter:
    """Return the filter of a budget; one whose order is still open is fixed now, by the first run ever charged to it.

    Without such a run, ``request`` is the first. Its plan was made before anything of the data was seen, so that the
    order depends on no result.
    """
    epsilon, delta = dataset.limit
    if dataset.filter_order is not None:
        return Filter.at(dataset.filter_order, store.orders, epsilon, delta)
    first = _first_charge(store, connection, state, dataset.id)
    if first is None:
        assert request is not None
        run, plan = request.run, (request.steps, request.curve)
    else:
        run, plan = first
    found = Filter.fix(curves.total([plan], store.orders), store.orders, epsilon, delta)
    connection.execute(update(datasets).where(datasets.c.id == dataset.id).values(filter_order=found.order))
    store.append(connection, "order", {"dataset": dataset.name, "order": found.order, "first_run": run})
    return found


def has_charges(state: State, dataset: int) -> bool:
    """Whether anything is charged to a unit of the dataset."""
    return any(state.tally(block) for block in state.blocks_of(dataset))


def _first_charge(
    store: Store, connection: Connection, state: State, dataset: int
) -> tuple[str, tuple[int, Curve]] | None:
    """Return the first run charged to a unit of the dataset, with its planned steps and the curve of one.

    The runs are many and sealed one by one, so that one could be missing: they must add up to what is spent.
    """
    around = state.around(dataset)
    query = select(runs).where(runs.c.snapshot_id.in_(around)).order_by(runs.c.seq)
    charged = [row for row in connection.execute(query) if seals.trusted(store, runs, row).charged > 0]
    tally: Counter[tuple[int, int]] = Counter()
    for row in charged:
        tally[row.snapshot_id, row.mechanism_id] += row.charged
    spent = {(at, kind): steps[0] for at in around for kind, steps in state.spent.get(at, {}).items() if steps[0]}
    if tally != spent:
        raise seals.tampered(store, "its runs")
    if not charged:
        return None
    first = charged[0]
    return first.id, (first.planned, run_rows.curves_of(store, connection, [first.mechanism_id])[first.mechanism_id])


def _fits(found: Filter, after: Sequence[Parts], store: Store, dataset: Dataset) -> bool:
    if not found.admits(after):
        return False
    # Where all have a bound at the filter's order, the best order's reading is at most that one's.
    if all(math.isfinite(curve[found.index]) for parts in after for _, curve in parts):
        return True
    total = curves.largest(curves.total(parts, store.orders) for parts in after)
    return filters.reads_within(total, store.orders, *dataset.limit)


def _refusal(store: Store, refusals: Sequence[_Refusal], request: Request) -> str:
    first = refusals[0]
    found, (epsilon, delta) = first.filter, first.dataset.limit
    spent = curves.epsilon(first.largest(store.orders), store.orders, delta)
    more = [(request.steps, request.curve)]
    # What is left is what the filter still lets through; without one yet, all of it.
    if found is None:
        reached = shown(curves.epsilon(first.largest(store.orders, more), store.orders, delta))
    else:
        divergence = found.spent([[*parts, *more] for parts in first.before])
        reached = f"{shown(curves.epsilon((divergence,), (found.order,), delta))} at its order {found.order:g}"
    left = max(0.0, epsilon - spent) if found is None or found.room(first.before) > 0 else 0.0
    parts = events.gaussian_step(request.step)
    what = counted(request.steps, "step") if parts or request.steps > 1 else type(request.step).__name__
    what += f" at noise multiplier {parts[1]:g} and sample rate {parts[0]:g}" if parts else ""
    return (
        f"{what} do not fit the budget {first.dataset.name}: epsilon {shown(spent)} of {epsilon:g} is spent (RDP, "
        f"delta {delta:g}), {math.floor(left * 1000) / 1000:g} is left, and this run would bring it to {reached}; "
        + _instead(store, refusals, request)
    )


def _instead(store: Store, refusals: Sequence[_Refusal], request: Request) -> str:
    noise: float | None = 0.0
    fewer: int | None = request.steps
    for refusal in refusals:
        found = refusal.filter
        if found is None:
            offer = filters.offer_afresh(*refusal.dataset.limit, request.step, request.steps)
        else:
            divergence = curves.divergence([(1, request.curve)], found.index)
            room = found.room(refusal.before)
            offer = filters.offer_within(room, found.order, request.step, divergence, request.steps)
        noise = None if noise is None or offer.noise_multiplier is None else max(noise, offer.noise_multiplier)
        fewer = None if fewer is None or offer.steps is None else min(fewer, offer.steps)
    fewer, noise = _surely(store, refusals, request, fewer, noise)
    offers = [f"{counted(fewer, 'step')} at this noise"] if fewer else []
    offers += [f"noise multiplier {noise:g} for {counted(request.steps, 'step')}"] if noise else []
    return f"{' or '.join(offers)} would fit" if offers else "nothing fits any more"


def _surely(
    store: Store, refusals: Sequence[_Refusal], request: Request, fewer: int | None, noise: float | None
) -> tuple[int | None, float | None]:
    """Hold the offers against everything that admission asks; those that a fresh budget is offered always fit."""

    def passes(curve: Curve, steps: int) -> bool:
        return all(
            refusal.filter is None
            or _fits(refusal.filter, [[*parts, (steps, curve)] for parts in refusal.before], store, refusal.dataset)
            for refusal in refusals
        )

    def passes_with(sigma: float) -> bool:
        event = events.with_noise(request.step, sigma)
        return passes(curves.step_curve(events.event_to_json(event), store.orders), request.steps)

    if fewer and not passes(request.curve, fewer):
        fewer = filters.most(lambda count: passes(request.curve, count), fewer) or None
    return fewer, filters.more_noise(noise, passes_with) if noise else None
