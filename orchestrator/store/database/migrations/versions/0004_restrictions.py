"""Adds restrictions of tenants, expiry of tokens, deadlines of drains, and columns of jobs.

Leases get their number of workers as a column, so that usage of tenants can be summed in SQL.
"""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

HAS_ENDED = sa.text("ended_s IS NOT NULL")
NEEDS_OTHERS = sa.text("\"after\" <> '' AND state <> 'succeeded'")
_BATCH = 10_000  # leases that are read at once


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
    op.add_column("leases", sa.Column("workers", sa.Integer, nullable=False, server_default=sa.text("0")))
    _count_workers(op.get_bind())


def _count_workers(connection: sa.Connection) -> None:
    """Write the number of workers of each lease. A placement that cannot be read counts as 0, as before."""
    leases = sa.table("leases", sa.column("number"), sa.column("placement"), sa.column("workers"))
    some = sa.select(leases.c.number, leases.c.placement).order_by(leases.c.number).limit(_BATCH)
    write = sa.update(leases).where(leases.c.number == sa.bindparam("of")).values(workers=sa.bindparam("found"))
    last = -1
    while rows := connection.execute(some.where(leases.c.number > last)).all():
        connection.execute(write, [{"of": number, "found": _workers(placement)} for number, placement in rows])
        last = rows[-1][0]


def _workers(placement: str) -> int:
    try:
        return sum(int(workers) for _, workers in json.loads(placement)) if placement else 0
    except (ValueError, TypeError):
        return 0
