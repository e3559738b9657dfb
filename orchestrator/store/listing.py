"""Pages and counts of jobs, in a time that does not grow with the number of jobs ever submitted.

A page of several states is read as one page for each state, each a range of an index, and the newest rows are kept.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    bindparam,
    func,
    literal_column,
    or_,
    select,
    union_all,
)

from orchestrator.queue.records import Job
from orchestrator.queue.states import ENDED, State
from orchestrator.queue.store import Filter
from orchestrator.store.database.rows import JOB_COLUMNS
from orchestrator.store.database.schema import JOBS
from orchestrator.store.database.unreadable import jobs_of

NEWEST = 2**63 - 1
_ALL = Filter()
_LAST_CHARACTER = "\U0010ffff"
_KNOWN = frozenset(state.value for state in State)

_CHANGES = (
    select(*JOB_COLUMNS).where(JOBS.c.changed > bindparam("after")).order_by(JOBS.c.changed).limit(bindparam("limit"))
)


def _has_not_ended() -> ColumnElement[bool]:
    """Match states between the ended ones, as ranges of an index.

    This includes states that only newer releases know.
    """
    ends = sorted(state.value for state in ENDED)
    between = [and_(JOBS.c.state > low, JOBS.c.state < high) for low, high in itertools.pairwise(ends)]
    return or_(JOBS.c.state < ends[0], *between, JOBS.c.state > ends[-1])


# Sorted by an expression, so that no query planner scans all changes to find the active jobs.
_FIRST_CHANGES = (
    select(*JOB_COLUMNS)
    .where(_has_not_ended())
    .order_by(JOBS.c.changed + literal_column("0"))
    .limit(bindparam("limit"))
)


def changes(connection: Connection, after: int, limit: int = 10_000) -> list[Job]:
    if after <= 0:
        return jobs_of(connection, connection.execute(_FIRST_CHANGES, {"limit": limit}))
    while True:  # a page without a readable row is not the end
        rows = connection.execute(_CHANGES, {"after": after, "limit": limit}).all()
        found = jobs_of(connection, rows)
        if found or len(rows) < max(limit, 1):
            return found
        after = rows[-1].changed


def page(
    connection: Connection,
    which: Filter = _ALL,
    *,
    before: int | None = None,
    after: int | None = None,
    limit: int = 100,
) -> list[Job]:
    states = which.states or (tuple(State) if which.tenant is not None else ())
    statement = _page(len(set(states)), which.tenant is not None, bool(which.name), after is not None)
    values = _values(which) | {f"state_{place}": state.value for place, state in enumerate(sorted(set(states)))}
    found: list[Job] = []
    ends = {"before": NEWEST if before is None else before, "after": after}
    while True:  # unreadable rows must not shorten a page: callers stop at a short one
        left = max(limit, 0) - len(found)
        rows = connection.execute(statement, {**values, **ends, "limit": left}).all()
        found += jobs_of(connection, rows)
        if len(rows) < left or len(found) >= limit:
            return found
        ends["before" if after is None else "after"] = rows[-1].number


def count(connection: Connection, which: Filter = _ALL) -> dict[State, int]:
    # Naming all states makes the database search the prefix in the index of states, instead of in all rows.
    states = which.states or (tuple(State) if which.name else ())
    statement = _count(bool(states), which.tenant is not None, bool(which.name))
    given = {"states": [state.value for state in states]} if states else {}
    found = connection.execute(statement, {**given, **_values(which)})
    return {State(state): jobs for state, jobs in found if state in _KNOWN}


@functools.cache
def _page(states: int, by_tenant: bool, by_name: bool, oldest_first: bool) -> Select[Any]:
    conditions = [JOBS.c.number < bindparam("before"), *_conditions(by_tenant, by_name)]
    conditions += [JOBS.c.number > bindparam("after")] if oldest_first else []
    order = JOBS.c.number.asc() if oldest_first else JOBS.c.number.desc()
    of_states = [[JOBS.c.state == bindparam(f"state_{place}")] for place in range(states)] or [[]]
    parts = [
        select(JOBS.c.number).where(*of_state, *conditions).order_by(order).limit(bindparam("limit")).subquery()
        for of_state in of_states
    ]
    numbers = union_all(*(select(part.c.number) for part in parts)).subquery()
    return (
        select(*JOB_COLUMNS).join(numbers, numbers.c.number == JOBS.c.number).order_by(order).limit(bindparam("limit"))
    )


@functools.cache
def _count(by_state: bool, by_tenant: bool, by_name: bool) -> Select[Any]:
    of_states = [JOBS.c.state.in_(bindparam("states", expanding=True))] if by_state else []
    return select(JOBS.c.state, func.count()).where(*of_states, *_conditions(by_tenant, by_name)).group_by(JOBS.c.state)


def _conditions(by_tenant: bool, by_name: bool) -> list[ColumnElement[bool]]:
    tenant = [JOBS.c.tenant == bindparam("tenant")] if by_tenant else []
    name = [JOBS.c.job_id >= bindparam("name"), JOBS.c.job_id < bindparam("name_end")] if by_name else []
    return [*tenant, *name]


def _values(which: Filter) -> dict[str, Any]:
    tenant = {"tenant": which.tenant} if which.tenant is not None else {}
    return {**tenant, "name": which.name, "name_end": which.name + _LAST_CHARACTER} if which.name else tenant
