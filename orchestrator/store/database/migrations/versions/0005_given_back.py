"""Allows several rows in `leases` for one attempt, since it may give back a part of its lease."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("most_workers", sa.Integer, nullable=True))
    with op.batch_alter_table("leases") as leases:  # SQLite cannot drop a constraint: the table is copied
        leases.drop_constraint("leases_by_attempt", type_="unique")
    op.create_index("leases_of_job", "leases", ["job", "attempt"])
