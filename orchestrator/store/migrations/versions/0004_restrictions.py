"""Restrictions of tenants, expiry of tokens, deadlines of drains, labels of jobs, what restored their retry budgets."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

HAS_ENDED = sa.text("ended_s IS NOT NULL")
NEEDS_OTHERS = sa.text("\"after\" <> '' AND state <> 'succeeded'")


def upgrade() -> None:
    op.add_column("tenants", sa.Column("restrictions", sa.Text, nullable=False, server_default=sa.text("''")))
    op.add_column("tokens", sa.Column("expires_s", sa.Double, nullable=True))
    op.add_column("jobs", sa.Column("restored_at_step", sa.BigInteger, nullable=False, server_default=sa.text("0")))
    op.add_column("jobs", sa.Column("labels", sa.Text, nullable=False, server_default=sa.text("''")))
    op.add_column("node_rules", sa.Column("deadline_s", sa.Double, nullable=True))
    op.create_table(
        "usage",
        sa.Column("month", sa.Text, primary_key=True),
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("gpu_s", sa.Double, nullable=False),
        sa.Column("cpu_s", sa.Double, nullable=False),
        sa.Column("jobs", sa.BigInteger, nullable=False),
    )
    for name, key, condition in (("jobs_by_end", "ended_s", HAS_ENDED), ("jobs_after", "after", NEEDS_OTHERS)):
        op.create_index(name, "jobs", [key], sqlite_where=condition, postgresql_where=condition)
    op.create_index("keys_by_job", "keys", ["first_job"])
