"""Seals over what admission reads. They need the key, so the ledger makes them right after."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table, column in (
        ("head", "state"),
        ("head", "units"),
        ("atoms", "seal"),
        ("mechanisms", "seal"),
        ("runs", "seal"),
    ):
        op.add_column(table, sa.Column(column, sa.String(length=64), server_default="", nullable=False))


def downgrade() -> None:
    raise NotImplementedError("a ledger is never taken back to an earlier schema: restore a copy of it")
