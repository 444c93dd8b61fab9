"""Datasets that share images: snapshots of content, and the blocks into which they cut the units.

A block is a set of units that are in exactly the same snapshots. A charge belongs to the snapshot its run could draw
from, so all units of a block were charged the same: the sum over the snapshots it is in. A new snapshot that holds part
of a block splits it, and both parts stay in the snapshots they were in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from sqlalchemy import Column, Connection, func, insert, select, update

from ..errors import BudgetError
from . import keys, seals
from .manifest import Manifest
from .state import State, read_state
from .store import Store
from .tables import block_snapshots, dataset_snapshots, datasets, files, members, snapshots, units

T = TypeVar("T")
_CHUNK = 4000  # below SQLite's and PostgreSQL's limits on parameters


def find_files(store: Store, connection: Connection, hashes: Sequence[bytes]) -> dict[bytes, bytes]:
    """Return the units of the files that are known.

    Raises:
        BudgetError: A row's seal does not fit: someone pointed a file at another unit.
    """
    found: dict[bytes, bytes] = {}
    for part in _parts(hashes):
        query = select(files.c.hash, files.c.seal, units.c.hash).join(units, files.c.unit_id == units.c.id)
        for file, seal, unit in connection.execute(query.where(files.c.hash.in_(part))):
            if bytes(seal) != seal_file(store, bytes(file), bytes(unit)):
                raise BudgetError(f"the ledger {store.name} has been tampered with (a file's unit): restore a copy")
            found[bytes(file)] = bytes(unit)
    return found


def snapshot_units(connection: Connection, snapshot: int) -> dict[bytes, bytes]:
    """Return the units of a snapshot with the hashes of their labels."""
    query = select(units.c.hash, members.c.labels).join(members, members.c.unit_id == units.c.id)
    rows = connection.execute(query.where(members.c.snapshot_id == snapshot))
    return {bytes(unit): bytes(labels) for unit, labels in rows}


def shared_units(connection: Connection, state: State, manifest: Manifest) -> dict[int, int]:
    """Return, for every dataset, how many pictures of the manifest it holds in any of its snapshots."""
    counts: dict[int, int] = {}
    by_block = list(_blocks(connection, list(manifest.units)).values())
    for dataset in state.datasets:
        inside = state.blocks_of(dataset)
        if count := sum(block in inside for block in by_block):
            counts[dataset] = count
    return counts


def holders(connection: Connection, state: State, hashes: Sequence[bytes]) -> dict[bytes, list[str]]:
    """Return those of some units that any dataset holds in any of its snapshots, with the names of these datasets."""
    names: dict[int, list[str]] = {}
    for dataset in state.datasets.values():
        for block in state.blocks_of(dataset.id):
            names.setdefault(block, []).append(dataset.name)
    return {unit: sorted(names[block]) for unit, block in _blocks(connection, hashes).items() if block in names}


def known_units(connection: Connection, hashes: Sequence[bytes]) -> set[bytes]:
    """Return those of some units that any snapshot holds."""
    return set(_unit_ids(connection, hashes))


def register(
    store: Store, connection: Connection, state: State, dataset: int, name: str, manifest: Manifest
) -> tuple[State, int]:
    """Make the manifest a snapshot of a dataset, if it is not one already; return what the tables hold then, and it."""
    snapshot = state.snapshot(manifest.digest)
    new = snapshot is None
    if snapshot is None:
        snapshot = _insert(store, connection, manifest)
    else:
        _add_files(store, connection, manifest)
    if snapshot not in state.held.get(dataset, ()):
        connection.execute(insert(dataset_snapshots).values(dataset_id=dataset, snapshot_id=snapshot))
        store.append(connection, "snapshot", {"dataset": name, "digest": manifest.digest})
        new = True
    return read_state(connection) if new else state, snapshot


def _insert(store: Store, connection: Connection, manifest: Manifest) -> int:
    seals.check_units(store, connection)
    snapshot = next_id(connection, snapshots.c.id)
    connection.execute(insert(snapshots).values(id=snapshot, digest=manifest.digest))
    known = _unit_ids(connection, list(manifest.units))
    fresh = [unit for unit in manifest.units if unit not in known]
    if fresh:
        block, first = next_id(connection, block_snapshots.c.block_id), next_id(connection, units.c.id)
        connection.execute(insert(block_snapshots).values(block_id=block, snapshot_id=snapshot))
        numbers = {unit: first + i for i, unit in enumerate(fresh)}
        connection.execute(insert(units), [{"id": n, "hash": unit, "block_id": block} for unit, n in numbers.items()])
        known |= numbers
    connection.execute(
        insert(members),
        [{"snapshot_id": snapshot, "unit_id": known[u], "labels": labels} for u, labels in manifest.units.items()],
    )
    _add_files(store, connection, manifest, known)
    if len(fresh) < len(manifest.units):
        _split(connection, snapshot)
    seals.seal_units(store, connection)
    return snapshot


def _split(connection: Connection, snapshot: int) -> None:
    """Let the known blocks join the snapshot: whole where all their units are in it, else by the part that is."""
    inside = (
        select(units.c.block_id, func.count())
        .join(members, members.c.unit_id == units.c.id)
        .where(members.c.snapshot_id == snapshot)
        .group_by(units.c.block_id)
    )
    joined = set(connection.scalars(select(block_snapshots.c.block_id).filter_by(snapshot_id=snapshot)))
    for block, count in connection.execute(inside).all():
        if block in joined:
            continue
        size = connection.scalar(select(func.count()).select_from(units).where(units.c.block_id == block))
        if count < (size or 0):
            part = next_id(connection, block_snapshots.c.block_id)
            before = connection.scalars(
                select(block_snapshots.c.snapshot_id).where(block_snapshots.c.block_id == block)
            )
            connection.execute(insert(block_snapshots), [{"block_id": part, "snapshot_id": s} for s in before.all()])
            drawn = select(members.c.unit_id).where(members.c.snapshot_id == snapshot)
            moved = update(units).where(units.c.block_id == block, units.c.id.in_(drawn))
            connection.execute(moved.values(block_id=part))
            block = part
        connection.execute(insert(block_snapshots).values(block_id=block, snapshot_id=snapshot))


def _add_files(store: Store, connection: Connection, manifest: Manifest, ids: dict[bytes, int] | None = None) -> None:
    """Remember the files that are new, so that they need no decoding the next time."""
    if not manifest.files:
        return
    known = set(find_files(store, connection, list(manifest.files)))
    fresh = {file: unit for file, unit in manifest.files.items() if file not in known}
    if fresh:
        ids = ids if ids is not None else _unit_ids(connection, list(set(fresh.values())))
        rows = [{"hash": f, "unit_id": ids[unit], "seal": seal_file(store, f, unit)} for f, unit in fresh.items()]
        connection.execute(insert(files), rows)


def _unit_ids(connection: Connection, hashes: Sequence[bytes]) -> dict[bytes, int]:
    found: dict[bytes, int] = {}
    for part in _parts(hashes):
        for number, unit in connection.execute(select(units.c.id, units.c.hash).where(units.c.hash.in_(part))):
            found[bytes(unit)] = number
    return found


def _blocks(connection: Connection, hashes: Sequence[bytes]) -> dict[bytes, int]:
    found: dict[bytes, int] = {}
    for part in _parts(hashes):
        query = select(units.c.hash, units.c.block_id).where(units.c.hash.in_(part))
        found |= {bytes(unit): block for unit, block in connection.execute(query)}
    return found


def seal_file(store: Store, file: bytes, unit: bytes) -> bytes:
    """Return what shows that a file row was written by the ledger."""
    return keys.mac(store.key, "file of unit", file, unit)[:16]


def next_id(connection: Connection, column: Column) -> int:
    """Return the next free number of a column; only within a write transaction, which no other one overlaps."""
    return int(connection.scalar(select(func.max(column))) or 0) + 1


def _parts(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), _CHUNK):
        yield items[start : start + _CHUNK]


def new_dataset(connection: Connection, name: str, unit: str) -> int:
    """Add a dataset without a limit."""
    number = next_id(connection, datasets.c.id)
    connection.execute(insert(datasets).values(id=number, name=name, unit=unit))
    return number
