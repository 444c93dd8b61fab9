"""Which dataset a set of pictures is. Names are for people: what a run may spend is decided by its pictures."""

from __future__ import annotations

import difflib

from sqlalchemy import Connection

from ..errors import BudgetError
from . import snapshots
from .manifest import Manifest
from .state import State


def check_unit(unit: str) -> None:
    """Refuse a privacy unit that no plan has."""
    from ..privacy.units import UNITS

    if unit not in UNITS:
        raise BudgetError(f"unit={unit!r} is not one of {', '.join(UNITS)}")


def check_manifest(connection: Connection, state: State, manifest: Manifest, unit: str) -> dict[int, int]:
    """Refuse what cannot be added up: charges of one picture under two units, or under two ways to make groups.

    A run that protects images costs a group of m of them up to m times as much, and one that protects groups changes by
    up to two groups where one image more makes another group of one: neither is a charge of the other kind.

    Returns:
        For every dataset that shares pictures with the manifest, how many.

    Raises:
        BudgetError: The manifest is not of this unit, a picture was charged under the other, or it is known in another
            group.
    """
    _check_kind(manifest, unit)
    shared = snapshots.shared_units(connection, state, manifest)
    for number in shared:
        name, known = state.datasets[number].name, state.datasets[number].unit
        if known != unit:
            raise BudgetError(
                f"{name} holds some of these pictures and protects one {known}, and this run protects one {unit}: what "
                f"they cost does not add up, so take privacy.unit={known}, or pictures that {name} has not"
            )
    known_pictures = snapshots.known_units(connection, list(manifest.memberships))
    memberships = [manifest.memberships[picture] for picture in known_pictures]
    moved = len(memberships) - len(snapshots.known_units(connection, memberships))
    if moved:
        raise BudgetError(
            f"{moved} of these pictures are known in another group, or under another name of it: what a group has "
            "spent is then not known; name and make the groups as in the runs before"
        )
    return shared


def _check_kind(manifest: Manifest, unit: str) -> None:
    if manifest.unit != unit:
        raise BudgetError(f"unit={unit} and the manifest is of {manifest.unit}s: make it with the group of every image")


def check_name(name: str) -> None:
    """Refuse a name that cannot be typed or shown."""
    if not name.strip() or len(name) > 200 or not name.isprintable():
        raise BudgetError(f"name={name[:40]!r} is not a name: give 1 to 200 printable characters")


def dataset_to_limit(connection: Connection, state: State, name: str, unit: str, manifest: Manifest) -> int:
    """Return the dataset that gets a limit, a new one where the name is free.

    Raises:
        BudgetError: The name has a limit, or is used for pictures of which this dataset has none; or the pictures were
            charged under another unit.
    """
    check_name(name)
    shared = check_manifest(connection, state, manifest, unit)
    row = state.dataset(name)
    if row is None:
        return snapshots.new_dataset(connection, name, unit)
    if row.epsilon is not None:
        raise BudgetError(
            f"{name} has a budget already, epsilon {row.epsilon:g} at delta {row.delta:g}, and a limit is not moved "
            "once runs may rely on it"
        )
    if row.id not in shared:
        raise BudgetError(f"{name} is known, with none of these pictures: give this dataset another name")
    return row.id


def dataset_for(
    connection: Connection, state: State, manifest: Manifest, name: str | None, data_name: str, unit: str
) -> tuple[int, str, tuple[str, ...]]:
    """Return the dataset to charge, its name, and what is worth saying of how it was found.

    Without a name: the one with exactly this content (one with a limit first); else, of those that share pictures with
    it, the one called ``data_name`` or the one that holds at least half of them; else a new one.

    Raises:
        BudgetError: There is no dataset of the name asked for, it holds none of these pictures, or they were charged
            under another unit.
    """
    _check_kind(manifest, unit)
    snapshot = state.snapshot(manifest.digest)
    known = [] if snapshot is None else state.with_snapshot(snapshot)
    for dataset in known:
        if name in (None, dataset.name):  # every other dataset was held against these pictures when it was made
            return dataset.id, dataset.name, ()
    shared = check_manifest(connection, state, manifest, unit)
    by_name = {row.name: row.id for row in state.datasets.values()}
    if name is not None:
        if name not in by_name:
            near = difflib.get_close_matches(name, by_name, n=1)
            hint = f"did you mean {near[0]}?" if near else "dptrain budget create makes one"
            raise BudgetError(f"budget.name={name} is not in the ledger: {hint}")
        if by_name[name] not in shared:
            raise BudgetError(
                f"budget.name={name} holds none of these pictures: leave budget.name out, or make a budget for them"
            )
        chosen = name
    elif by_name.get(data_name) in shared:
        chosen = data_name
    else:
        half = [key for key, number in by_name.items() if 2 * shared.get(number, 0) >= len(manifest.units)]
        if not half:
            return _new(connection, data_name, unit, taken=set(by_name))
        chosen = max(half, key=lambda key: shared[by_name[key]])
    changes = manifest.changes_since(_latest_units(connection, state, by_name[chosen]))
    return by_name[chosen], chosen, (f"{chosen} is not what it was: {changes}",)


def _latest_units(connection: Connection, state: State, dataset: int) -> dict[bytes, bytes]:
    return snapshots.snapshot_units(connection, max(state.held.get(dataset, ()), default=0))


def _new(connection: Connection, data_name: str, unit: str, taken: set[str]) -> tuple[int, str, tuple[str, ...]]:
    check_name(data_name)
    name, number = data_name, 2
    while name in taken:
        name, number = f"{data_name}-{number}", number + 1
    notes: tuple[str, ...] = ()
    if name != data_name:
        notes = (
            f"the ledger knows {data_name} with other pictures, so these are {name}; if they are the same photos "
            "resized or compressed anew, their spending adds up and the ledger cannot see it",
        )
    return snapshots.new_dataset(connection, name, unit), name, notes
