"""What tenants have held, added up by the database: to read a million leases one by one takes a server too long."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Double,
    bindparam,
    case,
    cast,
    distinct,
    func,
    or_,
    select,
    union_all,
)

from orchestrator.queue.months import MonthTotal, added_up, month_around, month_of
from orchestrator.queue.shares import Edge, counts_since_s, slice_s
from orchestrator.store.schema import JOBS, LEASES, USAGE

_NOW, _BEGIN, _END = (bindparam(name, type_=Double) for name in ("now_s", "begin_s", "end_s"))
_ON_GPUS = JOBS.c.gpus_per_worker > 0
_SLOTS = LEASES.c.workers * case((_ON_GPUS, JOBS.c.gpus_per_worker), else_=JOBS.c.cpus_per_worker)
# Now, where the lease is held. The same holds where a clock that went backwards has noted a later release.
_ENDS = case((LEASES.c.released_s < _NOW, LEASES.c.released_s), else_=_NOW)
_SINCE_BEGIN = or_(LEASES.c.released_s.is_(None), LEASES.c.released_s >= _BEGIN)


def edges(connection: Connection, now_s: float, half_life_s: float) -> list[Edge]:
    """As `used_of_edges` takes them."""
    given = {"now_s": now_s, "begin_s": counts_since_s(now_s, half_life_s), "width_s": slice_s(half_life_s)}
    return [Edge(*row) for row in connection.execute(_EDGES, given)]


def _edge(at_s: ColumnElement[Any], sign: int) -> Any:
    age_s = _NOW - at_s
    number = cast(age_s, BigInteger) // bindparam("width_s", type_=BigInteger)
    return (
        select(JOBS.c.tenant, number, func.sum(sign * _SLOTS), func.sum(sign * _SLOTS * age_s))
        .join(LEASES, JOBS.c.number == LEASES.c.job)
        .where(_SINCE_BEGIN, LEASES.c.granted_s < _ENDS)
        .group_by(JOBS.c.tenant, number)
    )


_EDGES = union_all(_edge(LEASES.c.granted_s, 1), _edge(_ENDS, -1))


def month_totals(connection: Connection, at_s: float, now_s: float, held: bool) -> list[MonthTotal]:
    """Of the month that contains `at_s`. One statement, so that a lease that is removed meanwhile counts once."""
    begin_s, end_s = month_around(at_s)
    month = month_of(at_s)
    given = {"begin_s": begin_s, "end_s": end_s, "now_s": now_s, "month": month}
    rows = connection.execute(_MONTH if held else _MONTH_RELEASED, given)
    return added_up(MonthTotal(month, *row) for row in rows)


def _least(one: ColumnElement[Any], other: ColumnElement[Any]) -> ColumnElement[Any]:
    return case((one < other, one), else_=other)


def _most(one: ColumnElement[Any], other: ColumnElement[Any]) -> ColumnElement[Any]:
    return case((one > other, one), else_=other)


_NOTHING = cast(0.0, Double)
_HELD = _SLOTS * _most(
    _least(func.coalesce(LEASES.c.released_s, _NOW), _END) - _most(LEASES.c.granted_s, _BEGIN), _NOTHING
)
_OF_LEASES = (
    select(
        JOBS.c.tenant,
        func.sum(case((_ON_GPUS, _HELD), else_=_NOTHING)),
        func.sum(case((_ON_GPUS, _NOTHING), else_=_HELD)),
        func.count(distinct(LEASES.c.job)),
    )
    .join(LEASES, JOBS.c.number == LEASES.c.job)
    .where(
        _SINCE_BEGIN,
        LEASES.c.granted_s < _END,
        # One that was released as the month began is of the month before.
        or_(LEASES.c.released_s.is_(None), LEASES.c.released_s > _BEGIN, LEASES.c.granted_s >= _BEGIN),
    )
    .group_by(JOBS.c.tenant)
)
_REMOVED = select(USAGE.c.tenant, USAGE.c.gpu_s, USAGE.c.cpu_s, USAGE.c.jobs).where(USAGE.c.month == bindparam("month"))
_MONTH = union_all(_OF_LEASES, _REMOVED)
_MONTH_RELEASED = union_all(_OF_LEASES.where(LEASES.c.released_s.is_not(None)), _REMOVED)
