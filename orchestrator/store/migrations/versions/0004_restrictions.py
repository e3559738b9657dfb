"""Restrictions of tenants, tokens that expire, and the step at which a job's retry budgets were last restored."""

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
