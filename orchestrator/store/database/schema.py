"""The tables, as of the newest revision. `migrations` makes them; a test holds the two against each other.

What has structure is JSON in TEXT, which both databases have, and '' where it is empty: most rows have none, and
nothing is parsed for them. What is removed, and when, is in `pruning`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_type_hints

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    text,
)
from sqlalchemy.types import TypeEngine

from cluster.capacity.gang import Gang
from orchestrator.queue.records import Job

REVISION = "0005"  # the newest one of `migrations/versions`
VERSION_TABLE = "fleetune_schema"

METADATA = MetaData()
BIG = BigInteger().with_variant(Integer, "sqlite")  # only an INTEGER key is the row's own number in SQLite
ID = Text().with_variant(Text(collation="C"), "postgresql")  # ordered by bytes, so that a prefix is a range

# Conditions of partial indices. SQLite takes such an index only where a statement has the same words.
ENDED_UNFOLLOWED = "on_end <> '' AND followed <> changed AND ended_s IS NOT NULL"
OF_A_CLIENT = "client > '' AND ended_s IS NULL"
NEEDS_OTHERS = "\"after\" <> '' AND state <> 'succeeded'"  # it waits for them, or will where it is retried
HAS_ENDED = "ended_s IS NOT NULL"

# One row. Every write begins by taking its numbers here, and so holds this row until it has committed: writers go one
# after the other, numbers are committed in their order, and whoever reads up to a number has missed none below it.
QUEUE = Table(
    "queue",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("last_change", BigInteger, nullable=False),
    Column("last_job", BigInteger, nullable=False),
    Column("last_event", BigInteger, nullable=False),
    # who leads; the epoch is 0 and the others are NULL until somebody has
    Column("epoch", BigInteger, nullable=False),
    Column("holder", Text),
    Column("url", Text),
    Column("expires_s", Double),
)

TENANTS = Table(
    "tenants",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("number", BigInteger, nullable=False),
    Column("weight", Double, nullable=False),
    Column("guaranteed", Text, nullable=False),
    Column("limit", Text, nullable=False),
    Column("changed_s", Double, nullable=False),
    Column("restrictions", Text, nullable=False, server_default=text("''")),
)

_SQL_TYPES: Mapping[type, type[TypeEngine[Any]]] = {bool: Boolean, int: BigInteger, float: Double}
_SMALL = frozenset({"num_workers", "cpus_per_worker", "gpus_per_worker", "attempt", "interruptions", "most_workers"})
# Columns of later revisions, which the rows that were there have got a value for.
_DEFAULTS = {"on_end": "''", "followed": "'0'", "sizes": "''", "restored_at_step": "0", "labels": "''"}


def _job_columns() -> Iterator[Column[Any]]:
    """A column for each field of a job and of its gang, in their order."""
    for name, kind in get_type_hints(Job).items():
        for column, its_kind in get_type_hints(Gang).items() if kind is Gang else [(name, kind)]:
            yield _job_column(column, its_kind)


def _job_column(name: str, kind: Any) -> Column[Any]:
    if name == "number":
        return Column(name, BIG, primary_key=True, autoincrement=False)
    nullable = type(None) in get_args(kind)
    kind = get_args(kind)[0] if nullable else kind
    sql = ID if name == "job_id" else Integer if name in _SMALL else _SQL_TYPES.get(kind, Text)
    tenant = [ForeignKey("tenants.name")] if name == "tenant" else []
    default = text(_DEFAULTS[name]) if name in _DEFAULTS else None
    return Column(name, sql, *tenant, nullable=nullable, server_default=default)


JOBS = Table(
    "jobs",
    METADATA,
    *_job_columns(),
    Index("jobs_by_id", "job_id", unique=True, postgresql_include=["number"]),
    Index("jobs_by_change", "changed", unique=True),
    # Pages and counts are read from these two alone; the id is in them for those that are filtered by its start.
    Index("jobs_by_state", "state", "number", "job_id"),
    Index("jobs_by_tenant", "tenant", "state", "number", "job_id"),
    Index("jobs_unfollowed", "followed", sqlite_where=text(ENDED_UNFOLLOWED), postgresql_where=text(ENDED_UNFOLLOWED)),
    Index("jobs_by_end", "ended_s", sqlite_where=text(HAS_ENDED), postgresql_where=text(HAS_ENDED)),
    Index("jobs_after", "after", sqlite_where=text(NEEDS_OTHERS), postgresql_where=text(NEEDS_OTHERS)),
    Index("jobs_of_clients", "client", sqlite_where=text(OF_A_CLIENT), postgresql_where=text(OF_A_CLIENT)),
)

# Apart from the jobs, whose rows are read and rewritten all the time.
SPECS = Table(
    "specs",
    METADATA,
    Column("number", BIG, ForeignKey("jobs.number"), primary_key=True, autoincrement=False),
    Column("spec", Text, nullable=False),
)

KEYS = Table(
    "keys",
    METADATA,
    Column("scope", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("digest", Text, nullable=False),
    Column("first_job", BigInteger, nullable=False),  # the jobs of one submission have consecutive numbers
    Column("jobs", Integer, nullable=False),
    Column("created_s", Double, nullable=False),
    Index("keys_by_job", "first_job"),
)

# What the leases of jobs have held that are removed, by month (`2026-11`) and tenant.
USAGE = Table(
    "usage",
    METADATA,
    Column("month", Text, primary_key=True),
    Column("tenant", Text, primary_key=True),
    Column("gpu_s", Double, nullable=False),
    Column("cpu_s", Double, nullable=False),  # of gangs without GPUs
    Column("jobs", BigInteger, nullable=False),
)

LEASES = Table(
    "leases",
    METADATA,
    # `jobs.changed` of the grant: clocks may go backwards, and it does not
    Column("number", BIG, primary_key=True, autoincrement=False),
    Column("job", BigInteger, ForeignKey("jobs.number"), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("placement", Text, nullable=False),
    Column("granted_s", Double, nullable=False),
    Column("released_s", Double),
    Column("workers", Integer, nullable=False, server_default="0"),  # in `placement`: databases add up what was held
    # Of one attempt there may be several: what it holds, and what it has given back before its end.
    Index("leases_of_job", "job", "attempt"),
    Index("leases_by_release", "released_s"),
)

EVENTS = Table(
    "events",
    METADATA,
    Column("number", BIG, primary_key=True, autoincrement=False),
    Column("at_s", Double, nullable=False),
    Column("kind", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("job_id", Text),
    Column("data", Text, nullable=False),
    Index("events_by_job", "job_id", "number"),
)

NODE_RULES = Table(
    "node_rules",
    METADATA,
    Column("node_id", Text, primary_key=True),
    Column("number", BigInteger, nullable=False),
    Column("order", Text, nullable=False),
    Column("by", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("since_s", Double, nullable=False),
    Column("deadline_s", Double),
)

TOKENS = Table(
    "tokens",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("number", BigInteger, nullable=False),
    Column("digest", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("tenant", Text),
    Column("created_s", Double, nullable=False),
    Column("revoked_s", Double),
    Column("expires_s", Double),
)

FACTS = Table(
    "facts",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)
