"""The small tables of a ledger, read at once: all that decides whether a run is admitted.

What is decided is decided from these values, and the same values are what the head's seal covers (:mod:`.seals`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

_TABLES = (
    "SELECT id, name, unit, epsilon, delta, filter_order, limited FROM datasets ORDER BY id",
    "SELECT dataset_id, snapshot_id FROM dataset_snapshots ORDER BY dataset_id, snapshot_id",
    "SELECT id, digest FROM snapshots ORDER BY id",
    "SELECT block_id, snapshot_id FROM block_snapshots ORDER BY block_id, snapshot_id",
    "SELECT snapshot_id, mechanism_id, charged, planned FROM spent ORDER BY snapshot_id, mechanism_id",
)


class Dataset(NamedTuple):
    """One row of the datasets, without what is only shown."""

    id: int
    name: str
    unit: str
    epsilon: float | None
    delta: float | None
    filter_order: float | None
    limited: int | None

    @property
    def limit(self) -> tuple[float, float]:
        """Its budget, (epsilon, delta), where it has one."""
        assert self.epsilon is not None and self.delta is not None
        return self.epsilon, self.delta


@dataclass(frozen=True)
class State:
    """What the small tables hold.

    Attributes:
        datasets: By their numbers.
        held: The snapshots that each dataset ever had: who was taken out stays protected.
        digests: Of every snapshot, by its number.
        blocks: The snapshots that each block of units is in.
        spent: For a snapshot, steps of each kind: those charged, and those with all that runs which ended early had
            planned.
    """

    datasets: dict[int, Dataset]
    held: dict[int, set[int]]
    digests: dict[int, str]
    blocks: dict[int, set[int]]
    spent: dict[int, dict[int, tuple[int, int]]]

    def snapshot(self, digest: str) -> int | None:
        """Return the snapshot with this content."""
        return next((number for number, known in self.digests.items() if known == digest), None)

    def dataset(self, name: str) -> Dataset | None:
        """Return the dataset of this name."""
        return next((dataset for dataset in self.datasets.values() if dataset.name == name), None)

    def with_snapshot(self, snapshot: int) -> list[Dataset]:
        """Return the datasets that ever had a snapshot, those with a limit first."""
        found = [dataset for number, dataset in self.datasets.items() if snapshot in self.held.get(number, ())]
        return sorted(found, key=lambda dataset: (dataset.epsilon is None, dataset.id))

    def blocks_in(self, snapshots: Collection[int]) -> set[int]:
        """Return the blocks whose units are in any of some snapshots."""
        return {block for block, inside in self.blocks.items() if not inside.isdisjoint(snapshots)}

    def blocks_of(self, dataset: int) -> set[int]:
        """Return the blocks of a dataset."""
        return self.blocks_in(self.held.get(dataset, ()))

    def around(self, dataset: int) -> set[int]:
        """Return the snapshots that share a unit with a dataset: what is charged to them, is charged to it."""
        return set().union(*(self.blocks[block] for block in self.blocks_of(dataset)))

    def kinds(self, blocks: Collection[int]) -> set[int]:
        """Return the kinds of step that were ever charged to some blocks."""
        inside = set[int]().union(*(self.blocks[block] for block in blocks))
        return {kind for snapshot in inside for kind in self.spent.get(snapshot, ())}

    def tally(self, block: int, planned: bool = False) -> Counter[int]:
        """Return how many steps of each kind were charged to a block, or ``planned``."""
        found: Counter[int] = Counter()
        for snapshot in self.blocks[block]:
            for mechanism, steps in self.spent.get(snapshot, {}).items():
                found[mechanism] += steps[planned]
        return +found


def read_rows(connection: Connection) -> list[list[tuple[Any, ...]]]:
    """Read the small tables."""
    return [rows_of(connection, query) for query in _TABLES]


def read_state(connection: Connection) -> State:
    """Read the small tables, whoever wrote them: for what is shown."""
    return state_of(read_rows(connection))


def state_of(tables: list[list[tuple[Any, ...]]]) -> State:
    """Put together what :func:`read_rows` read."""
    datasets, dataset_snapshots, snapshots, block_snapshots, spent = tables
    state = State({row[0]: Dataset(*row) for row in datasets}, {}, dict(snapshots), {}, {})
    for dataset, snapshot in dataset_snapshots:
        state.held.setdefault(dataset, set()).add(snapshot)
    for block, snapshot in block_snapshots:
        state.blocks.setdefault(block, set()).add(snapshot)
    for snapshot, mechanism, charged, planned in spent:
        state.spent.setdefault(snapshot, {})[mechanism] = (charged, planned)
    return state


def rows_of(connection: Connection, query: str) -> list[tuple[Any, ...]]:
    """Ask the driver itself: SQLAlchemy takes ten times as long for what every transaction asks."""
    try:
        return list(map(tuple, connection.connection.cursor().execute(query).fetchall()))
    except connection.dialect.loaded_dbapi.Error as error:
        raise DBAPIError(query, None, error) from error
