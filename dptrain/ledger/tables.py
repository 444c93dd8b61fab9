"""The tables of the ledger. ``entries`` is the chain; what else there is follows from it and can be recomputed.

No table holds a file name, a path of an image, a person or a machine: units, files and labels are keyed hashes.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _seal(name: str = "seal") -> Column:
    """A code under the ledger's key: see :mod:`dptrain.ledger.seals`."""
    return Column(name, String(64), nullable=False, server_default="")


def _link(name: str, target: str, primary_key: bool = False, index: bool | None = None) -> Column:
    return Column(name, ForeignKey(f"{target}.id"), nullable=False, primary_key=primary_key, index=index)


# The ledger's own constants: version of these tables, fingerprint of the key, grid of orders.
meta = Table("meta", metadata, Column("name", String(40), primary_key=True), Column("value", Text, nullable=False))

# Append-only: each row's mac covers the one before it, and the head, signed, says how many there are.
entries = Table(
    "entries",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("at", String(20), nullable=False),
    Column("kind", String(20), nullable=False),
    Column("run", String(32), index=True),
    Column("payload", Text, nullable=False),
    Column("mac", String(64), nullable=False),
)
head = Table(
    "head",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("count", Integer, nullable=False),
    Column("mac", String(64), nullable=False),
    Column("seal", String(64), nullable=False),
    _seal("state"),  # of the small tables
    _seal("units"),  # of which unit is in which block
)

# A dataset is a name for one or more snapshots; with a limit it is a budget.
datasets = Table(
    "datasets",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("name", String(200), nullable=False, unique=True),
    Column("unit", String(40), nullable=False),
    Column("epsilon", Float(53)),
    Column("delta", Float(53)),
    Column("filter_order", Float(53)),
    Column("limited", Integer),  # number of the entry that set the limit
    # The tighter reading takes seconds, and so it is kept: of which charges, and what.
    Column("pld_of", String(64)),
    Column("pld_epsilon", Float(53)),
)
snapshots = Table(
    "snapshots",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("digest", String(64), nullable=False, unique=True),
)
dataset_snapshots = Table(
    "dataset_snapshots",
    metadata,
    _link("dataset_id", "datasets", primary_key=True),
    _link("snapshot_id", "snapshots", primary_key=True, index=True),
)

# Units that are in exactly the same snapshots form a block: all of them were charged the same.
block_snapshots = Table(
    "block_snapshots",
    metadata,
    Column("block_id", Integer, primary_key=True, autoincrement=False),
    _link("snapshot_id", "snapshots", primary_key=True, index=True),
)
units = Table(
    "units",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("hash", LargeBinary(32), nullable=False, unique=True),
    Column("block_id", Integer, nullable=False, index=True),
)
files = Table(
    "files",
    metadata,
    Column("hash", LargeBinary(32), primary_key=True),
    _link("unit_id", "units", index=True),
    Column("seal", LargeBinary(16), nullable=False),
)
members = Table(
    "members",
    metadata,
    _link("snapshot_id", "snapshots", primary_key=True),
    _link("unit_id", "units", primary_key=True, index=True),
    Column("labels", LargeBinary(32), nullable=False),
)

# A kind of step: its event, and its curve so that it is computed once.
mechanisms = Table(
    "mechanisms",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("digest", String(64), nullable=False, unique=True),
    Column("event", Text, nullable=False),
    Column("curve", Text, nullable=False),
    _seal(),
)
runs = Table(
    "runs",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("seq", Integer, nullable=False, unique=True),  # of its reservation
    Column("name", String(200), nullable=False),
    _link("snapshot_id", "snapshots", index=True),
    _link("mechanism_id", "mechanisms", index=True),
    Column("delta", Float(53), nullable=False),
    Column("planned", BigInteger, nullable=False),  # steps of the whole run
    Column("charged", BigInteger, nullable=False),  # steps that count as spent now
    Column("settled", BigInteger, nullable=False),  # steps that count as taken since it was last opened or settled
    Column("leased", BigInteger, nullable=False),  # no step after this one can have been taken
    Column("is_open", Boolean, nullable=False, index=True),
    Column("attempt", String(64), nullable=False),  # keyed hash of the token that may go on with the run
    Column("lease", String(64), nullable=False),  # keyed hash of the token of the process at work
    _seal(),
)

# What was charged to the units of a snapshot, in steps of each kind. A block has spent the sum over its snapshots.
spent = Table(
    "spent",
    metadata,
    _link("snapshot_id", "snapshots", primary_key=True),
    _link("mechanism_id", "mechanisms", primary_key=True),
    Column("charged", BigInteger, nullable=False),
    Column("planned", BigInteger, nullable=False),  # the same, with all that runs which ended early had planned
)
