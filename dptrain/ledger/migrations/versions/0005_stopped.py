"""What runs that ended early had planned; a ledger from before is refused (``store._OLDEST``)."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("datasets", sa.Column("limited", sa.Integer(), nullable=True))
    op.add_column("datasets", sa.Column("read_charged", sa.Float(precision=53), nullable=True))
    op.create_table(
        "stopped",
        sa.Column("snapshot_id", sa.Integer(), nullable=False),
        sa.Column("mechanism_id", sa.Integer(), nullable=False),
        sa.Column("steps", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["mechanism_id"], ["mechanisms.id"], name=op.f("fk_stopped_mechanism_id_mechanisms")),
        sa.ForeignKeyConstraint(["snapshot_id"], ["snapshots.id"], name=op.f("fk_stopped_snapshot_id_snapshots")),
        sa.PrimaryKeyConstraint("snapshot_id", "mechanism_id", name=op.f("pk_stopped")),
    )


def downgrade() -> None:
    raise NotImplementedError("a ledger is never taken back to an earlier schema: restore a copy of it")
