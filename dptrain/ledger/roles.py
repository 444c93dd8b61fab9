"""Who may do what with a ledger on a PostgreSQL server: three group roles, each of which may do all that the last may.

* ``dptrain_reader`` reads: ``budget show``, ``history``, ``verify``, ``export``.
* ``dptrain_spender`` also registers pictures, reserves, resumes and settles: ``dptrain train``.
* ``dptrain_keeper`` also sets limits: ``budget create``.

The server refuses the rest, whatever program asks. The user who made the tables owns them.
"""

from __future__ import annotations

from sqlalchemy import Table, text

from ..errors import BudgetError
from .store import Store
from .tables import datasets, head, meta, metadata, runs, spent, units

READER, SPENDER, KEEPER = ROLES = ("dptrain_reader", "dptrain_spender", "dptrain_keeper")

# What a limit is: a spender may add a dataset without one, and never gives or changes one.
_LIMIT = {"epsilon", "delta", "limited"}
_CHANGES: dict[Table, set[str]] = {
    head: {"id"},
    units: {"id", "hash"},
    runs: {"id", "seq", "name", "snapshot_id", "mechanism_id", "delta", "planned"},
    datasets: {"id", "name", "unit", *_LIMIT},
    spent: {"snapshot_id", "mechanism_id"},
}  # every column but these; what is not listed is never changed


def statements() -> list[str]:
    """Return the SQL that makes the roles and gives them what they may do; it can be run again after an upgrade."""
    every = ", ".join(table.name for table in metadata.sorted_tables)
    everyone = ", ".join(ROLES)
    added = [table.name for table in metadata.sorted_tables if table not in (meta, head, datasets)]
    return [
        *(
            f"DO $$ BEGIN CREATE ROLE {role} NOLOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$"
            for role in ROLES
        ),
        "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
        f"REVOKE ALL ON {every} FROM PUBLIC, {everyone}",
        f"GRANT USAGE ON SCHEMA public TO {everyone}",
        f"GRANT {READER} TO {SPENDER}",
        f"GRANT {SPENDER} TO {KEEPER}",
        f"GRANT SELECT ON {every} TO {READER}",
        f"GRANT INSERT ON {', '.join(added)} TO {SPENDER}",
        f"GRANT INSERT ({_columns(datasets, _LIMIT)}) ON {datasets.name} TO {SPENDER}",
        *(f"GRANT UPDATE ({_columns(table, fixed)}) ON {table.name} TO {SPENDER}" for table, fixed in _CHANGES.items()),
        f"GRANT INSERT, UPDATE ({_columns(datasets, {'id', 'name'})}) ON {datasets.name} TO {KEEPER}",
    ]


def _columns(table: Table, without: set[str]) -> str:
    return ", ".join(column.name for column in table.columns if column.name not in without)


def grant(store: Store) -> list[str]:
    """Make the roles on the ledger's server, in one transaction; return what was run.

    Raises:
        BudgetError: The ledger is a file, or this user may not make roles or does not own the tables.
    """
    if store.file is not None:
        raise BudgetError(
            f"the ledger {store.name} is a file, and whoever can open it can do everything: roles are for PostgreSQL"
        )
    commands = statements()
    with store.write() as connection:
        for command in commands:
            connection.execute(text(command))
    return commands
