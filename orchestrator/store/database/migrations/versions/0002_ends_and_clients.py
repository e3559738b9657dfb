"""Adds to jobs: follow-ups of the end, the time at which the driver was last heard, and the client."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

UNFOLLOWED = sa.text("on_end <> '' AND followed <> changed AND ended_s IS NOT NULL")
OF_A_CLIENT = sa.text("client > '' AND ended_s IS NULL")


def upgrade() -> None:
    for column in (
        sa.Column("on_end", sa.Text, nullable=False, server_default=sa.text("''")),
        sa.Column("followed", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("heard_s", sa.Double),
        sa.Column("client", sa.Text),
    ):
        op.add_column("jobs", column)
    for name, key, condition in (
        ("jobs_unfollowed", "followed", UNFOLLOWED),
        ("jobs_of_clients", "client", OF_A_CLIENT),
    ):
        op.create_index(name, "jobs", [key], sqlite_where=condition, postgresql_where=condition)
