"""Adds to jobs: the numbers of workers that an elastic job can have."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("sizes", sa.Text, nullable=False, server_default=sa.text("''")))
