"""Pictures are known however they are turned. No table changes; a ledger from before is refused (``store._OLDEST``)."""

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    pass


def downgrade() -> None:
    raise NotImplementedError("a ledger is never taken back to an earlier schema: restore a copy of it")
