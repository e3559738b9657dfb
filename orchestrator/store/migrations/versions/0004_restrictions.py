"""Restrictions of tenants, expiry of tokens, deadlines of drains, labels of jobs, what restored their retry budgets."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("tenants", sa.Column("restrictions", sa.Text, nullable=False, server_default=sa.text("''")))
    op.add_column("tokens", sa.Column("expires_s", sa.Double, nullable=True))
    op.add_column("jobs", sa.Column("restored_at_step", sa.BigInteger, nullable=False, server_default=sa.text("0")))
    op.add_column("jobs", sa.Column("labels", sa.Text, nullable=False, server_default=sa.text("''")))
    op.add_column("node_rules", sa.Column("deadline_s", sa.Double, nullable=True))
