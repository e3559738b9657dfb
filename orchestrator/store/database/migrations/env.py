"""Run by alembic, on the connection and in the transaction that `orchestrator.store.database.migrate` has begun."""

from __future__ import annotations

from alembic import context

from orchestrator.store.database.schema import METADATA, VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"], target_metadata=METADATA, version_table=VERSION_TABLE
)
context.run_migrations()
