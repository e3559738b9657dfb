"""Alembic's entry point. It uses the connection and transaction of `orchestrator.store.database.engine`."""

from __future__ import annotations

from alembic import context

from orchestrator.store.database.schema import METADATA, VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"], target_metadata=METADATA, version_table=VERSION_TABLE
)
context.run_migrations()
