"""How far a run may have come, and by which process; a ledger from before is refused (``store._OLDEST``)."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("leased", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("runs", sa.Column("lease", sa.String(length=64), server_default="", nullable=False))


def downgrade() -> None:
    raise NotImplementedError("a ledger is never taken back to an earlier schema: restore a copy of it")
