"""The tables, as of the newest revision. `migrations` creates them; a test compares the two.

The table of a record has a column for each of its fields.

Structured values are JSON in TEXT columns, which both databases support, and '' if empty: most rows have none, and then
nothing has to be parsed. `pruning` removes old rows.
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
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    text,
)
from sqlalchemy.types import TypeEngine

from cluster.capacity.gang import Gang
from orchestrator.queue.months import MonthTotal
from orchestrator.queue.records import Job, NodeRule, QueueEvent, Token
from orchestrator.queue.store import SubmissionKey
from orchestrator.queue.tenants import Tenant

REVISION = "0006"  # newest revision in `migrations/versions`
VERSION_TABLE = "fleetune_schema"

METADATA = MetaData()
BIG = BigInteger().with_variant(Integer, "sqlite")  # in SQLite, only an INTEGER primary key is the rowid
ID = Text().with_variant(Text(collation="C"), "postgresql")  # collated by bytes, so that a prefix is a range

# Conditions of partial indices. SQLite uses such an index only if the statement has the same text.
ENDED_UNFOLLOWED = "on_end <> '' AND followed <> changed AND ended_s IS NOT NULL"
OF_A_CLIENT = "client > '' AND ended_s IS NULL"
NEEDS_OTHERS = "\"after\" <> '' AND state <> 'succeeded'"  # it waits for its parents, or would after a retry
HAS_ENDED = "ended_s IS NOT NULL"

_SQL_TYPES: Mapping[type, type[TypeEngine[Any]]] = {bool: Boolean, int: BigInteger, float: Double}
_SMALL = frozenset({"num_workers", "cpus_per_worker", "gpus_per_worker", "attempt", "interruptions", "most_workers"})
# Columns of later revisions, which the rows that were there have got a value for.
_DEFAULTS = dict.fromkeys(("on_end", "sizes", "labels", "restrictions"), "''")
_DEFAULTS |= {"followed": "'0'", "restored_at_step": "0"}


def _columns(record: type, *keys: str, **types: TypeEngine[Any]) -> Iterator[Column[Any]]:
    """A column for each field of a record, in their order; a gang has one for each of its fields.

    Args:
        keys: columns of the primary key.
        types: types of columns that do not follow from the fields.
    """
    for name, kind in get_type_hints(record).items():
        for column, its_kind in get_type_hints(Gang).items() if kind is Gang else [(name, kind)]:
            yield _column(column, its_kind, column in keys, types.get(column))


def _column(name: str, kind: Any, is_key: bool, sql: TypeEngine[Any] | None) -> Column[Any]:
    nullable = type(None) in get_args(kind)
    kind = get_args(kind)[0] if nullable else kind
    its_type = sql or (Integer if name in _SMALL else _SQL_TYPES.get(kind, Text))
    default = text(_DEFAULTS[name]) if name in _DEFAULTS else None
    return Column(name, its_type, primary_key=is_key, autoincrement=False, nullable=nullable, server_default=default)


# One row. Every write begins by taking its numbers from it, which locks the row until the commit. So writers run one
# after the other, and numbers are committed in ascending order: a reader that has read up to a number has missed none
# below.
QUEUE = Table(
    "queue",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("last_change", BigInteger, nullable=False),
    Column("last_job", BigInteger, nullable=False),
    Column("last_event", BigInteger, nullable=False),
    # the leader; epoch is 0 and the others are NULL until there is one
    Column("epoch", BigInteger, nullable=False),
    Column("holder", Text),
    Column("url", Text),
    Column("expires_s", Double),
)

TENANTS = Table(
    "tenants",
    METADATA,
    *_columns(Tenant, "name"),
    Column("number", BigInteger, nullable=False),
    Column("changed_s", Double, nullable=False),
)

JOBS = Table(
    "jobs",
    METADATA,
    *_columns(Job, "number", number=BIG, job_id=ID),
    ForeignKeyConstraint(["tenant"], ["tenants.name"]),
    Index("jobs_by_id", "job_id", unique=True, postgresql_include=["number"]),
    Index("jobs_by_change", "changed", unique=True),
    # Pages and counts are read from these two indices alone. They include the id for filters by prefix.
    Index("jobs_by_state", "state", "number", "job_id"),
    Index("jobs_by_tenant", "tenant", "state", "number", "job_id"),
    Index("jobs_unfollowed", "followed", sqlite_where=text(ENDED_UNFOLLOWED), postgresql_where=text(ENDED_UNFOLLOWED)),
    Index("jobs_by_end", "ended_s", sqlite_where=text(HAS_ENDED), postgresql_where=text(HAS_ENDED)),
    Index("jobs_after", "number", sqlite_where=text(NEEDS_OTHERS), postgresql_where=text(NEEDS_OTHERS)),
    Index("jobs_of_clients", "client", sqlite_where=text(OF_A_CLIENT), postgresql_where=text(OF_A_CLIENT)),
)

# Separate from the jobs, whose rows are read and rewritten often.
SPECS = Table(
    "specs",
    METADATA,
    Column("number", BIG, ForeignKey("jobs.number"), primary_key=True, autoincrement=False),
    Column("spec", Text, nullable=False),
)

KEYS = Table(
    "keys",
    METADATA,
    *_columns(SubmissionKey, "scope", "key"),
    Column("first_job", BigInteger, nullable=False),  # the jobs of one submission have consecutive numbers
    Column("jobs", Integer, nullable=False),
    Column("created_s", Double, nullable=False),
    Index("keys_by_job", "first_job"),
)

# Totals of leases whose jobs were removed, by month (`2026-11`) and tenant.
USAGE = Table("usage", METADATA, *_columns(MonthTotal, "month", "tenant"))

LEASES = Table(
    "leases",
    METADATA,
    # `jobs.changed` of the grant, which never decreases although clocks may
    Column("number", BIG, primary_key=True, autoincrement=False),
    Column("job", BigInteger, ForeignKey("jobs.number"), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("placement", Text, nullable=False),
    Column("granted_s", Double, nullable=False),
    Column("released_s", Double),
    Column("workers", Integer, nullable=False, server_default="0"),  # number of workers in `placement`, for sums in SQL
    # An attempt may have several leases: the one that it holds, and parts that it has given back.
    Index("leases_of_job", "job", "attempt"),
    Index("leases_by_release", "released_s"),
)

EVENTS = Table(
    "events", METADATA, *_columns(QueueEvent, "number", number=BIG), Index("events_by_job", "job_id", "number")
)
NODE_RULES = Table("node_rules", METADATA, *_columns(NodeRule, "node_id"), Column("number", BigInteger, nullable=False))
TOKENS = Table("tokens", METADATA, *_columns(Token, "name"), Column("number", BigInteger, nullable=False))

FACTS = Table(
    "facts",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)
