"""Check a ledger: the chain of entries, and that everything else in the database follows from it."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, select, text

from ..errors import BudgetError
from . import curves, seals, snapshots
from .manifest import digest_of
from .reading import read_datasets
from .run_rows import not_taken
from .store import GENESIS, Store
from .tables import (
    block_snapshots,
    dataset_snapshots,
    datasets,
    entries,
    files,
    mechanisms,
    members,
    runs,
    spent,
    units,
)
from .tables import snapshots as snapshots_table

EXPORT_FORMAT = 1


@dataclass(frozen=True)
class Verification:
    """What a check found.

    Attributes:
        entries: Number of entries looked at.
        head: The signed end; keep it elsewhere to notice a ledger that was set back as a whole.
        findings: What does not hold, a line each; empty for a sound ledger.
    """

    entries: int
    head: str
    findings: tuple[str, ...]

    @property
    def sound(self) -> bool:
        return not self.findings


@dataclass
class _Chain:
    """What the entries say there must be."""

    datasets: dict[str, dict[str, Any]] = field(default_factory=dict)
    pairs: set[tuple[str, str]] = field(default_factory=set)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)

    def take(self, row: Row, payload: dict[str, Any]) -> None:
        if row.kind == "snapshot":
            self.datasets.setdefault(payload["dataset"], {})
            self.pairs.add((payload["dataset"], payload["digest"]))
        elif row.kind == "budget":
            limit = {name: payload[name] for name in ("epsilon", "delta", "unit")} | {"limited": row.seq}
            self.datasets.setdefault(payload["dataset"], {}).update(limit)
        elif row.kind == "order":
            self.datasets.setdefault(payload["dataset"], {}).update(filter_order=payload["order"])
        elif row.kind == "reserve":
            self.runs[row.run] = {
                "seq": row.seq,
                "name": payload["name"][:200],
                "digest": payload["snapshot"],
                "event": payload["event"],
                "delta": payload["delta"],
                "planned": payload["steps"],
                "charged": payload["steps"],
                "settled": 0,
                "leased": payload["leased"],
                "is_open": True,
                "attempt": payload["attempt"],
                "lease": payload["attempt"],
            }
        elif row.kind == "lease":
            self.runs[row.run].update(leased=payload["until"], lease=payload["lease"])
        elif row.kind == "resume":
            run, taken, attempt = self.runs[row.run], payload["taken"], payload["attempt"]
            run.update(charged=run["charged"] + payload["steps"], settled=taken, leased=taken, is_open=True)
            run.update(attempt=attempt, lease=attempt)
        elif row.kind == "settle":
            steps = payload["steps"]
            self.runs[row.run].update(charged=steps, settled=steps, leased=steps, is_open=False)
        else:
            raise KeyError(row.kind)


def verify(store: Store, expect: str | None = None) -> Verification:
    """Check everything; ``expect`` is a head noted earlier, which the chain must still contain."""
    with store.read() as connection:
        findings, chain, last, count = _chain(store, connection, expect)
        findings += _head(store, connection)
        for check in (_datasets, _runs, _mechanisms, _spent, _contents, _files, _foreign_keys):
            findings += check(store, connection, chain)
        findings += seals.broken(store, connection)
    return Verification(count, f"{count}:{last[:32]}", tuple(findings))


def _chain(store: Store, connection: Connection, expect: str | None) -> tuple[list[str], _Chain, str, int]:
    findings: list[str] = []
    chain, last, count = _Chain(), GENESIS, 0
    wanted, _, wanted_mac = (expect or "").partition(":")
    seen = wanted == "0"
    for row in connection.execute(select(entries).order_by(entries.c.seq)):
        count += 1
        if row.seq != count:
            findings.append(f"entry {count} is missing: it was deleted, or the ones after it renumbered")
            count = row.seq
        if store.chained(last, dict(row._mapping)) != row.mac:
            findings.append(f"entry {row.seq} ({row.kind}) is not what was written there: edited, inserted or moved")
        last = row.mac
        seen = seen or (wanted == str(row.seq) and bool(wanted_mac) and row.mac.startswith(wanted_mac))
        try:
            chain.take(row, json.loads(row.payload))
        except (KeyError, TypeError, ValueError):
            findings.append(f"entry {row.seq} ({row.kind}) cannot be followed")
    if expect is not None and not seen:
        findings.append(f"the head {expect} is not in the chain: the ledger was set back, or it is another one")
    return findings, chain, last, count


def _head(store: Store, connection: Connection) -> Iterator[str]:
    try:
        store.head(connection)
    except BudgetError:
        yield "the signed head does not fit: entries were cut off, added or exchanged at the end"


def _datasets(store: Store, connection: Connection, chain: _Chain) -> Iterator[str]:
    rows = {row.name: row for row in connection.execute(select(datasets))}
    for name in rows.keys() ^ chain.datasets.keys():
        yield f"dataset {name} is {'not in the chain' if name in rows else 'in the chain and not in the tables'}"
    for name in rows.keys() & chain.datasets.keys():
        row, said = rows[name], chain.datasets[name]
        for column in ("epsilon", "delta", "filter_order", "limited"):
            if getattr(row, column) != said.get(column):
                yield f"dataset {name}: {column} is {getattr(row, column)}, and the chain says {said.get(column)}"
        if row.unit != said.get("unit", row.unit):
            yield f"dataset {name}: unit is {row.unit}, and the chain says {said['unit']}"
    query = select(datasets.c.name, snapshots_table.c.digest).select_from(dataset_snapshots)
    joined = query.join(datasets, datasets.c.id == dataset_snapshots.c.dataset_id).join(
        snapshots_table, snapshots_table.c.id == dataset_snapshots.c.snapshot_id
    )
    for name, _ in {tuple(pair) for pair in connection.execute(joined)} ^ chain.pairs:
        yield f"dataset {name}: its snapshots are not those in the chain"


def _runs(store: Store, connection: Connection, chain: _Chain) -> Iterator[str]:
    query = (
        select(runs, mechanisms.c.event, snapshots_table.c.digest)
        .join(mechanisms, mechanisms.c.id == runs.c.mechanism_id)
        .join(snapshots_table, snapshots_table.c.id == runs.c.snapshot_id)
    )
    rows = {row.id: row for row in connection.execute(query)}
    for run in rows.keys() ^ chain.runs.keys():
        yield f"run {run} is {'not in the chain' if run in rows else 'in the chain and not in the tables'}"
    for run in rows.keys() & chain.runs.keys():
        for column, said in chain.runs[run].items():
            if getattr(rows[run], column) != said:
                yield f"run {run}: {column} is not what the chain says"


def _mechanisms(store: Store, connection: Connection, chain: _Chain) -> Iterator[str]:
    for row in connection.execute(select(mechanisms)):
        if hashlib.sha256(row.event.encode()).hexdigest() != row.digest:
            yield f"mechanism {row.id}: its event was changed"
            continue
        try:
            computed, kept = curves.step_curve(row.event, store.orders), curves.decode(row.curve)
        except (BudgetError, ValueError):
            yield f"mechanism {row.id}: its curve cannot be computed again"
            continue
        # Another version of the accountant may differ in the last digits.
        if len(kept) != len(computed) or not all(map(_near, kept, computed)):
            yield f"mechanism {row.id}: its curve is not what dp-accounting computes for its event"


def _near(a: float, b: float) -> bool:
    return a == b or math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-15)


def _spent(store: Store, connection: Connection, chain: _Chain) -> Iterator[str]:
    """Add up what was charged to every snapshot again, from the chain: whole numbers, so they must be equal."""
    charged, planned = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for run in chain.runs.values():
        charged[run["digest"], run["event"]] += run["charged"]
        planned[run["digest"], run["event"]] += run["charged"] + not_taken(run)
    query = (
        select(snapshots_table.c.digest, mechanisms.c.event, spent.c.charged, spent.c.planned)
        .join(snapshots_table, snapshots_table.c.id == spent.c.snapshot_id)
        .join(mechanisms, mechanisms.c.id == spent.c.mechanism_id)
    )
    rows = {(digest, event): steps for digest, event, *steps in connection.execute(query)}
    for key in rows.keys() | charged.keys():
        if rows.get(key, [0, 0]) != [charged[key], planned[key]]:
            yield f"snapshot {key[0][:16]}: what is spent is not the sum of its charges"


def _contents(store: Store, connection: Connection, chain: _Chain) -> Iterator[str]:
    """Check which pictures a snapshot holds, and that every unit is in the block of exactly its snapshots."""
    content: dict[int, dict[bytes, bytes]] = defaultdict(dict)
    inside: dict[int, set[int]] = defaultdict(set)
    rows = list(connection.execute(select(units)))
    hashes = {row.id: bytes(row.hash) for row in rows}
    for row in connection.execute(select(members)):
        if row.unit_id in hashes:
            content[row.snapshot_id][hashes[row.unit_id]] = bytes(row.labels)
        inside[row.unit_id].add(row.snapshot_id)
    for row in connection.execute(select(snapshots_table)):
        if digest_of(store.key, content[row.id]) != row.digest:
            yield f"snapshot {row.id}: its pictures or labels are not those of its digest"
    of_block: dict[int, set[int]] = defaultdict(set)
    for row in connection.execute(select(block_snapshots)):
        of_block[row.block_id].add(row.snapshot_id)
    wrong = {row.block_id for row in rows if inside[row.id] != of_block[row.block_id]}
    for block in sorted(wrong):
        yield f"block {block}: it holds units of other snapshots than its own"


def _files(store: Store, connection: Connection, chain: _Chain) -> Iterator[str]:
    query = select(files.c.hash, files.c.seal, units.c.hash).join(units, units.c.id == files.c.unit_id)
    wrong = sum(
        bytes(seal) != snapshots.seal_file(store, bytes(file), bytes(unit))
        for file, seal, unit in connection.execute(query)
    )
    if wrong:
        yield f"{wrong} of the known files point to another unit than they did"


def _foreign_keys(store: Store, connection: Connection, chain: _Chain) -> Iterator[str]:
    if store.file is not None:  # a server never lets them break
        for table in sorted({row[0] for row in connection.execute(text("PRAGMA foreign_key_check"))}):
            yield f"table {table}: a row points to one that is not there"


def export(store: Store) -> dict[str, Any]:
    """Return the chain and the readings as plain data. Hashes stay keyed, and the key is not part of it."""
    with store.read() as connection:
        count, last = store.head(connection)
        rows = [dict(row._mapping) for row in connection.execute(select(entries).order_by(entries.c.seq))]
        readings = [asdict(reading) for reading in read_datasets(store, connection, None)]
        for row in rows:
            if not all(isinstance(value, str | int | None) for value in row.values()):
                raise TypeError(f"entry {row['seq']!r} holds what no entry does")
            row["payload"] = json.loads(row["payload"])
    return {
        "format": EXPORT_FORMAT,
        "head": f"{count}:{last[:32]}",
        "orders": list(store.orders),
        "datasets": readings,
        "entries": rows,
    }
