"""Conversion between records and database rows."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from operator import attrgetter
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import Column, Connection, Dialect, Double, Integer, Table, insert

from cluster.capacity.gang import Gang
from cluster.capacity.occupancy import workers_in
from orchestrator.queue.records import Job, Lease, Measured, NodeOrder, NodePlaces, NodeRule, QueueEvent, Role, Token
from orchestrator.queue.states import DesiredState, Reason, State
from orchestrator.queue.tenants import Quota, Restrictions, Tenant
from orchestrator.store.database.schema import JOBS, LEASES

Values = dict[str, Any]  # column -> value

JOB_COLUMNS: tuple[Column[Any], ...] = tuple(JOBS.c)
# Columns of numbers. SQLite stores text in them, too, so `job_of` checks their types.
_NUMBERS = tuple(place for place, column in enumerate(JOB_COLUMNS) if isinstance(column.type, (Integer, Double)))
GANG_COLUMNS = (JOBS.c.num_workers, JOBS.c.cpus_per_worker, JOBS.c.gpus_per_worker, JOBS.c.accelerator_type)
LEASE_COLUMNS = (
    JOBS.c.job_id,
    LEASES.c.attempt,
    JOBS.c.tenant,
    *GANG_COLUMNS,
    LEASES.c.placement,
    LEASES.c.granted_s,
    LEASES.c.released_s,
)
_REPORTED = tuple(one.name for one in fields(Measured) if one.name not in ("job_id", "attempt", "saved_step"))
MEASURED = (*_REPORTED, "retries", "restored_at_step", "heard_s", "changed")
HEARD = ("heard_s",)
ASKED = ("wanted", "priority", "waiting_since_s", "waited_s", "changed")
CHANGED = (
    "wanted",
    "state",
    "reason",
    "message",
    "attempt",
    "placement",
    "num_workers",
    "remaining_s",
    "waiting_since_s",
    "waited_s",
    "started_s",
    "attained_s",
    "ended_s",
    "interruptions",
    "retries",
    "restored_at_step",
    "heard_s",
    "most_workers",
    "changed",
)

_FEW = 8


@functools.lru_cache(maxsize=4096)  # most jobs share a few gangs
def _gang(num_workers: int, cpus_per_worker: int, gpus_per_worker: int, accelerator_type: str | None) -> Gang:
    """Return a gang. Raises ValueError if its numbers are out of bounds, so that it cannot be planned."""
    gang = Gang(num_workers, cpus_per_worker, gpus_per_worker, accelerator_type)
    gang.check_size()
    return gang


def dumped(value: Any) -> str:
    """Encode as ASCII JSON; empty values become ''. NaN and infinities are written as Python's NaN and Infinity."""
    return json.dumps(value, separators=(",", ":"), default=str) if value else ""


def plain(text: str) -> str:
    """Replace characters that a database refuses: NUL and lone surrogates."""
    if text.isascii() and "\0" not in text:
        return text
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()


def _decoder(kind: Any, empty: Any) -> Callable[[str], Any]:
    """Return a function that decodes JSON of a type, and '' to `empty`. It raises ValueError."""
    read = TypeAdapter(kind).validate_json
    return lambda text: read(text) if text else empty


_places, _quota = _decoder(NodePlaces, ()), _decoder(Quota, ())
_restrictions = _decoder(Restrictions, Restrictions())  # names from newer releases are ignored
# Columns that contain JSON, with their decoders. Other columns, except _ENUMS, have the values of the job's fields.
_JSON: Mapping[str, Callable[[str], Any]] = {
    "after": _decoder(tuple[str, ...], ()),
    "placement": _places,
    "retries": _decoder(dict[Reason, int], {}),
    "metrics": _decoder(dict[str, float], {}),
    "sizes": _decoder(tuple[int, ...], ()),
    "labels": _decoder(dict[str, str], {}),
}
_ENUMS: Mapping[str, Mapping[str, Any]] = {
    "state": {state.value: state for state in State},
    "reason": {reason.value: reason for reason in Reason},
    "wanted": {wanted.value: wanted for wanted in DesiredState},
}

_NAMES = tuple(column.name for column in JOB_COLUMNS)
_IN_GANG = frozenset(column.name for column in GANG_COLUMNS)
_GANG_AT = slice(_NAMES.index("num_workers"), _NAMES.index("num_workers") + len(GANG_COLUMNS))
_READ = tuple((_NAMES.index(name), read) for name, read in _JSON.items())
_READ += tuple((_NAMES.index(name), known.__getitem__) for name, known in _ENUMS.items())
_DUMPED = tuple(_NAMES.index(name) for name in _JSON)


def _path(name: str) -> str:
    """Return the path of a column's value in a job. `_value_` is the enum's value without the slow property."""
    return f"gang.{name}" if name in _IN_GANG else f"{name}._value_" if name in _ENUMS else name


_values = attrgetter(*map(_path, _NAMES))


def job_of(row: Sequence[Any]) -> Job:
    """Make a Job from JOB_COLUMNS. By position, for speed: a server may read fifty thousand rows at its start."""
    values = list(row)
    for place in _NUMBERS:
        if values[place].__class__ is str:
            raise ValueError(f"{_NAMES[place]} is no number: {values[place][:50]!r}")
    for place, read in _READ:
        values[place] = read(values[place])
    values[_GANG_AT] = (_gang(*values[_GANG_AT]),)
    return Job(*values)


def values_of(job: Job) -> Values:
    """Return the values of all columns of a job's row, in their order."""
    values = list(_values(job))
    for place in _DUMPED:
        values[place] = dumped(values[place])
    return dict(zip(_NAMES, values, strict=True))


def problem_of(row: Sequence[Any], error: Exception) -> str:
    """Explain in one line why `job_of` cannot read a row."""
    for what, known in _ENUMS.items():
        value = row[_NAMES.index(what)]
        if value not in known:
            return f"its {what} is {str(value)[:50]!r}, which this release does not know"
    return f"a column cannot be read: {' '.join(str(error).split())[:200] or type(error).__name__}"


def lease_of(row: Sequence[Any]) -> Lease:
    """Make a Lease from LEASE_COLUMNS. Its number of workers comes from the placement: other attempts may differ."""
    job_id, attempt, tenant, _, *each, placement, granted_s, released_s = row
    places = _places(placement)
    return Lease(job_id, attempt, tenant, _gang(workers_in(places), *each), places, granted_s, released_s)


def event_values(event: QueueEvent, number: int) -> Values:
    return {
        "at_s": event.at_s,
        "kind": str(event.kind),
        "message": plain(event.message),
        "job_id": event.job_id,
        "data": dumped(event.data),
        "number": number,
    }


def event_of(row: Any) -> QueueEvent:
    try:
        data = dict(json.loads(row.data)) if row.data else {}
    except (ValueError, TypeError):  # the message tells people the same
        data = {}
    return QueueEvent(row.at_s, row.kind, row.message, row.job_id, data, row.number)


def tenant_values(tenant: Tenant) -> Values:
    limits = {"guaranteed": dumped(tenant.guaranteed), "limit": dumped(tenant.limit)}
    restrictions = dumped({name: value for name, value in asdict(tenant.restrictions).items() if value is not None})
    return {"name": tenant.name, "weight": tenant.weight, **limits, "restrictions": restrictions}


def unreadable_tenant(row: Any) -> Tenant:
    """Return a stand-in for an unreadable tenant: no job of it that needs GPUs starts, and no path is allowed."""
    return Tenant(row.name, limit=((None, 0),), restrictions=Restrictions(roots=()))


def tenant_of(row: Any) -> Tenant:
    quotas = _quota(row.guaranteed), _quota(row.limit)
    return Tenant(row.name, row.weight, *quotas, _restrictions(row.restrictions))


def token_of(row: Any) -> Token:
    return Token(row.name, row.digest, Role(row.role), row.tenant, row.created_s, row.revoked_s, row.expires_s)


def node_rule_of(row: Any) -> NodeRule:
    return NodeRule(row.node_id, NodeOrder(row.order), row.by, row.reason, row.since_s, row.deadline_s)


def add_rows(connection: Connection, table: Table, rows: Sequence[Values]) -> None:
    """Insert rows. They have all columns, in the table's order, with values of types that the driver accepts.

    SQLAlchemy needs more time to check the values of many rows than SQLite needs to write them.
    """
    if not rows:
        return
    if len(rows) < _FEW or not connection.dialect.positional:
        connection.execute(_insert(table), rows)
        return
    connection.exec_driver_sql(_sql(table, connection.dialect), [tuple(row.values()) for row in rows])


_insert = functools.cache(insert)


@functools.lru_cache(maxsize=64)
def _sql(table: Table, dialect: Dialect) -> str:
    return str(insert(table).compile(dialect=dialect))
