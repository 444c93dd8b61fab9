"""Datasets that share images: snapshots of content, and the atoms into which they cut the units.

An atom is a set of units that are in exactly the same snapshots. A charge belongs to the snapshot its run could draw
from, so all units of an atom were charged the same, and one total an atom is enough. A new snapshot that holds part of
an atom splits it; the parts keep the total.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection, Table, func, insert, select, update

from ..errors import BudgetError
from . import curves, keys, seals
from .manifest import Manifest
from .store import Store
from .tables import atom_snapshots, atoms, dataset_snapshots, datasets, files, members, snapshots, units

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


def find_snapshot(connection: Connection, digest: str) -> int | None:
    """Return the snapshot with this content."""
    return connection.execute(select(snapshots.c.id).where(snapshots.c.digest == digest)).scalar()


def snapshot_units(connection: Connection, snapshot: int) -> dict[bytes, bytes]:
    """Return the units of a snapshot with the hashes of their labels."""
    query = select(units.c.hash, members.c.labels).join(members, members.c.unit_id == units.c.id)
    rows = connection.execute(query.where(members.c.snapshot_id == snapshot))
    return {bytes(unit): bytes(labels) for unit, labels in rows}


def shared_units(connection: Connection, manifest: Manifest) -> dict[int, int]:
    """Return, for every dataset, how many pictures of the manifest it holds in any of its snapshots."""
    counts: dict[int, int] = {}
    by_atom: dict[int, int] = {}
    for part in _parts(list(manifest.units)):
        query = select(units.c.atom_id, func.count()).where(units.c.hash.in_(part)).group_by(units.c.atom_id)
        for atom, count in connection.execute(query):
            by_atom[atom] = by_atom.get(atom, 0) + count
    for dataset, atom in connection.execute(dataset_atom_pairs().where(atom_snapshots.c.atom_id.in_(list(by_atom)))):
        counts[dataset] = counts.get(dataset, 0) + by_atom[atom]
    return counts


def holders(connection: Connection, hashes: Sequence[bytes]) -> dict[bytes, list[str]]:
    """Return those of some units that any dataset holds in any of its snapshots, with the names of these datasets."""
    atom_of: dict[bytes, int] = {}
    for part in _parts(hashes):
        query = select(units.c.hash, units.c.atom_id).where(units.c.hash.in_(part))
        atom_of |= {bytes(unit): atom for unit, atom in connection.execute(query)}
    names: dict[int, list[str]] = {}
    known = dict(connection.execute(select(datasets.c.id, datasets.c.name)).all())
    for dataset, atom in connection.execute(dataset_atom_pairs()):
        names.setdefault(atom, []).append(known[dataset])
    return {unit: sorted(names[atom]) for unit, atom in atom_of.items() if atom in names}


def known_units(connection: Connection, hashes: Sequence[bytes]) -> set[bytes]:
    """Return those of some units that any snapshot holds."""
    return set(_unit_ids(connection, hashes))


def dataset_atoms(connection: Connection, dataset: int) -> list[int]:
    """Return the atoms of all the snapshots a dataset ever had: who was taken out stays protected."""
    query = dataset_atom_pairs().where(dataset_snapshots.c.dataset_id == dataset)
    return [atom for _, atom in connection.execute(query)]


def dataset_atom_pairs() -> Any:
    """The query of all datasets with the atoms of all snapshots they ever had."""
    joined = dataset_snapshots.join(atom_snapshots, atom_snapshots.c.snapshot_id == dataset_snapshots.c.snapshot_id)
    return select(dataset_snapshots.c.dataset_id, atom_snapshots.c.atom_id).select_from(joined).distinct()


def register(store: Store, connection: Connection, dataset: int, name: str, manifest: Manifest) -> int:
    """Make the manifest a snapshot of a dataset, if it is not one already; return the snapshot."""
    snapshot = find_snapshot(connection, manifest.digest)
    if snapshot is None:
        snapshot = _insert(store, connection, manifest)
    else:
        _add_files(store, connection, manifest)
    pair = {"dataset_id": dataset, "snapshot_id": snapshot}
    has = select(dataset_snapshots.c.dataset_id).filter_by(**pair)
    if connection.execute(has).scalar() is None:
        connection.execute(insert(dataset_snapshots).values(pair))
        store.append(connection, "snapshot", {"dataset": name, "digest": manifest.digest})
    return snapshot


def _insert(store: Store, connection: Connection, manifest: Manifest) -> int:
    seals.check_units(store, connection)
    snapshot = next_id(connection, snapshots)
    connection.execute(insert(snapshots).values(id=snapshot, digest=manifest.digest))
    known = _unit_ids(connection, list(manifest.units))
    fresh = [unit for unit in manifest.units if unit not in known]
    if fresh:
        atom, first = next_id(connection, atoms), next_id(connection, units)
        _new_atom(store, connection, atom, curves.encode(curves.zero(store.orders)))
        connection.execute(insert(atom_snapshots).values(atom_id=atom, snapshot_id=snapshot))
        numbers = {unit: first + i for i, unit in enumerate(fresh)}
        connection.execute(insert(units), [{"id": n, "hash": unit, "atom_id": atom} for unit, n in numbers.items()])
        known |= numbers
    connection.execute(
        insert(members),
        [{"snapshot_id": snapshot, "unit_id": known[u], "labels": labels} for u, labels in manifest.units.items()],
    )
    _add_files(store, connection, manifest, known)
    if len(fresh) < len(manifest.units):
        _split(store, connection, snapshot)
    seals.seal_units(store, connection)
    return snapshot


def _new_atom(store: Store, connection: Connection, atom: int, total: str) -> None:
    connection.execute(insert(atoms).values(seals.sealed(store, atoms, {"id": atom, "total": total})))


def _split(store: Store, connection: Connection, snapshot: int) -> None:
    """Let the known atoms join the snapshot: whole where all their units are in it, else by the part that is."""
    inside = (
        select(units.c.atom_id, func.count())
        .join(members, members.c.unit_id == units.c.id)
        .where(members.c.snapshot_id == snapshot)
        .group_by(units.c.atom_id)
    )
    joined = set(connection.scalars(select(atom_snapshots.c.atom_id).filter_by(snapshot_id=snapshot)))
    for atom, count in connection.execute(inside).all():
        if atom in joined:
            continue
        size = connection.scalar(select(func.count()).select_from(units).where(units.c.atom_id == atom))
        if count < (size or 0):
            part = next_id(connection, atoms)
            whole = connection.execute(select(atoms).where(atoms.c.id == atom)).one()
            _new_atom(store, connection, part, seals.trusted(store, atoms, whole).total)
            before = connection.scalars(select(atom_snapshots.c.snapshot_id).where(atom_snapshots.c.atom_id == atom))
            connection.execute(insert(atom_snapshots), [{"atom_id": part, "snapshot_id": s} for s in before.all()])
            drawn = select(members.c.unit_id).where(members.c.snapshot_id == snapshot)
            connection.execute(update(units).where(units.c.atom_id == atom, units.c.id.in_(drawn)).values(atom_id=part))
            atom = part
        connection.execute(insert(atom_snapshots).values(atom_id=atom, snapshot_id=snapshot))


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


def seal_file(store: Store, file: bytes, unit: bytes) -> bytes:
    """Return what shows that a file row was written by the ledger."""
    return keys.mac(store.key, "file of unit", file, unit)[:16]


def next_id(connection: Connection, table: Table) -> int:
    """Return the next free number of a table; only within a write transaction, which no other one overlaps."""
    return int(connection.scalar(select(func.max(table.c.id))) or 0) + 1


def _parts(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), _CHUNK):
        yield items[start : start + _CHUNK]


def new_dataset(connection: Connection, name: str, unit: str) -> int:
    """Add a dataset without a limit."""
    number = next_id(connection, datasets)
    connection.execute(insert(datasets).values(id=number, name=name, unit=unit))
    return number
