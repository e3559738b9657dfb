"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")
ID = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    _make_queue()
    _make_jobs()
    _make_history()
    _make_registry()


def _make_queue() -> None:
    queue = op.create_table(
        "queue",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("last_change", sa.BigInteger, nullable=False),
        sa.Column("last_job", sa.BigInteger, nullable=False),
        sa.Column("last_event", sa.BigInteger, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("holder", sa.Text),
        sa.Column("url", sa.Text),
        sa.Column("expires_s", sa.Double),
    )
    op.bulk_insert(queue, [{"id": 1, "last_change": 0, "last_job": 0, "last_event": 0, "epoch": 0}])


def _make_jobs() -> None:
    op.create_table(
        "tenants",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("weight", sa.Double, nullable=False),
        sa.Column("guaranteed", sa.Text, nullable=False),
        sa.Column("limit", sa.Text, nullable=False),
        sa.Column("changed_s", sa.Double, nullable=False),
    )
    op.create_table(
        "jobs",
        sa.Column("number", BIG, primary_key=True, autoincrement=False),
        sa.Column("job_id", ID, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, sa.ForeignKey("tenants.name"), nullable=False),
        sa.Column("submitted_by", sa.Text, nullable=False),
        sa.Column("num_workers", sa.Integer, nullable=False),
        sa.Column("cpus_per_worker", sa.Integer, nullable=False),
        sa.Column("gpus_per_worker", sa.Integer, nullable=False),
        sa.Column("accelerator_type", sa.Text),
        sa.Column("priority", sa.BigInteger, nullable=False),
        sa.Column("after", sa.Text, nullable=False),
        sa.Column("not_before_s", sa.Double),
        sa.Column("max_runtime_s", sa.Double),
        sa.Column("preemptible", sa.Boolean, nullable=False),
        sa.Column("submitted_s", sa.Double, nullable=False),
        sa.Column("wanted", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("placement", sa.Text, nullable=False),
        sa.Column("waiting_since_s", sa.Double, nullable=False),
        sa.Column("waited_s", sa.Double, nullable=False),
        sa.Column("started_s", sa.Double),
        sa.Column("attained_s", sa.Double, nullable=False),
        sa.Column("ended_s", sa.Double),
        sa.Column("remaining_s", sa.Double),
        sa.Column("interruptions", sa.Integer, nullable=False),
        sa.Column("interruption_cost_s", sa.Double, nullable=False),
        sa.Column("retries", sa.Text, nullable=False),
        sa.Column("run", sa.Text),
        sa.Column("step", sa.BigInteger, nullable=False),
        sa.Column("total_steps", sa.BigInteger),
        sa.Column("metrics", sa.Text, nullable=False),
        sa.Column("changed", sa.BigInteger, nullable=False),
    )
    op.create_index("jobs_by_id", "jobs", ["job_id"], unique=True, postgresql_include=["number"])
    op.create_index("jobs_by_change", "jobs", ["changed"], unique=True)
    op.create_index("jobs_by_state", "jobs", ["state", "number", "job_id"])
    op.create_index("jobs_by_tenant", "jobs", ["tenant", "state", "number", "job_id"])
    op.create_table(
        "specs",
        sa.Column("number", BIG, sa.ForeignKey("jobs.number"), primary_key=True, autoincrement=False),
        sa.Column("spec", sa.Text, nullable=False),
    )
    op.create_table(
        "keys",
        sa.Column("scope", sa.Text, primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("first_job", sa.BigInteger, nullable=False),
        sa.Column("jobs", sa.Integer, nullable=False),
        sa.Column("created_s", sa.Double, nullable=False),
    )


def _make_history() -> None:
    op.create_table(
        "leases",
        sa.Column("number", BIG, primary_key=True, autoincrement=False),
        sa.Column("job", sa.BigInteger, sa.ForeignKey("jobs.number"), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("placement", sa.Text, nullable=False),
        sa.Column("granted_s", sa.Double, nullable=False),
        sa.Column("released_s", sa.Double),
        sa.UniqueConstraint("job", "attempt", name="leases_by_attempt"),
    )
    op.create_index("leases_by_release", "leases", ["released_s"])
    op.create_table(
        "events",
        sa.Column("number", BIG, primary_key=True, autoincrement=False),
        sa.Column("at_s", sa.Double, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("job_id", sa.Text),
        sa.Column("data", sa.Text, nullable=False),
    )
    op.create_index("events_by_job", "events", ["job_id", "number"])


def _make_registry() -> None:
    op.create_table(
        "node_rules",
        sa.Column("node_id", sa.Text, primary_key=True),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("order", sa.Text, nullable=False),
        sa.Column("by", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("since_s", sa.Double, nullable=False),
    )
    op.create_table(
        "tokens",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text),
        sa.Column("created_s", sa.Double, nullable=False),
        sa.Column("revoked_s", sa.Double),
    )
    op.create_table(
        "facts",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
