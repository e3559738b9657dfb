"""Usage of tenants, summed from few columns, because making records of a million leases would take too long."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import (
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

from orchestrator.controller.fair_share import Span, counts_since_s, used_of_spans
from orchestrator.queue.months import MonthTotal, added_up, month_around, month_of
from orchestrator.store.database.schema import JOBS, LEASES, USAGE

_NOW, _BEGIN, _END = (bindparam(name, type_=Double) for name in ("now_s", "begin_s", "end_s"))
_ON_GPUS = JOBS.c.gpus_per_worker > 0
_SLOTS = LEASES.c.workers * case((_ON_GPUS, JOBS.c.gpus_per_worker), else_=JOBS.c.cpus_per_worker)
_SINCE_BEGIN = or_(LEASES.c.released_s.is_(None), LEASES.c.released_s >= _BEGIN)


def decayed_use(connection: Connection, now_s: float, half_life_s: float) -> dict[str, float]:
    return used_of_spans(spans(connection, counts_since_s(now_s, half_life_s)), now_s, half_life_s)


def spans(connection: Connection, since_s: float) -> Iterator[Span]:
    """Yield leases that were held since then. They are not summed in SQL, because SQLite may lack powers of two."""
    with connection.execute(_SPANS, {"begin_s": since_s}) as rows:  # PostgreSQL's cursor must be closed
        yield from rows


_SPANS = (
    select(JOBS.c.tenant, _SLOTS, LEASES.c.granted_s, LEASES.c.released_s)
    .join(LEASES, JOBS.c.number == LEASES.c.job)
    .where(_SINCE_BEGIN)
    .execution_options(yield_per=10_000)
)


def month_totals(connection: Connection, at_s: float, now_s: float, *, held: bool = True) -> list[MonthTotal]:
    """Return the totals of the month that contains `at_s`.

    One statement, so that a lease that is removed meanwhile counts exactly once.
    """
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
        # A lease that was released exactly at the beginning of the month belongs to the month before.
        or_(LEASES.c.released_s.is_(None), LEASES.c.released_s > _BEGIN, LEASES.c.granted_s >= _BEGIN),
    )
    .group_by(JOBS.c.tenant)
)
_REMOVED = select(USAGE.c.tenant, USAGE.c.gpu_s, USAGE.c.cpu_s, USAGE.c.jobs).where(USAGE.c.month == bindparam("month"))
_MONTH = union_all(_OF_LEASES, _REMOVED)
_MONTH_RELEASED = union_all(_OF_LEASES.where(LEASES.c.released_s.is_not(None)), _REMOVED)
