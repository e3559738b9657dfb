"""Changes the index of jobs that wait for others: its key was the list of parents, and PostgreSQL refuses long keys."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

NEEDS_OTHERS = sa.text("\"after\" <> '' AND state <> 'succeeded'")


def upgrade() -> None:
    op.drop_index("jobs_after", "jobs")
    op.create_index("jobs_after", "jobs", ["number"], sqlite_where=NEEDS_OTHERS, postgresql_where=NEEDS_OTHERS)
