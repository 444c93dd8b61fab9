"""Alembic's entry: runs on the connection that the ledger hands over, inside its transaction."""

from alembic import context

from dptrain.ledger.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
