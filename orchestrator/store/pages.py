"""Pages and counts of jobs, whose time does not grow with the number of jobs that were ever submitted.

A page of some states is read as one page of each, which is a piece of an index, and the newest of these are taken.
"""

from __future__ import annotations

import functools
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, bindparam, func, literal_column, select, union_all

from orchestrator.queue.records import Job
from orchestrator.queue.states import ENDED, State
from orchestrator.queue.store import Filter
from orchestrator.store.rows import JOB_COLUMNS, job_of
from orchestrator.store.schema import JOBS

NEWEST = 2**63 - 1
_LAST_CHARACTER = "\U0010ffff"
_ACTIVE = [state.value for state in State if state not in ENDED]

_CHANGES = (
    select(*JOB_COLUMNS).where(JOBS.c.changed > bindparam("after")).order_by(JOBS.c.changed).limit(bindparam("limit"))
)
# By an expression, so that no planner walks through all changes there ever were to find what is active.
_FIRST_CHANGES = (
    select(*JOB_COLUMNS)
    .where(JOBS.c.state.in_(_ACTIVE))
    .order_by(JOBS.c.changed + literal_column("0"))
    .limit(bindparam("limit"))
)


def changes(connection: Connection, after: int, limit: int) -> list[Job]:
    statement = _CHANGES if after > 0 else _FIRST_CHANGES
    given = {"after": after, "limit": limit} if after > 0 else {"limit": limit}
    return [job_of(row) for row in connection.execute(statement, given)]


def page(connection: Connection, which: Filter, before: int | None, limit: int) -> list[Job]:
    states = which.states or (tuple(State) if which.tenant is not None else ())
    statement = _page(len(set(states)), which.tenant is not None, bool(which.name))
    given = {"before": NEWEST if before is None else before, "limit": max(limit, 0), **_values(which)}
    given |= {f"state_{place}": state.value for place, state in enumerate(sorted(set(states)))}
    return [job_of(row) for row in connection.execute(statement, given)]


def count(connection: Connection, which: Filter) -> dict[State, int]:
    # With all states named, a start of an id is looked for in the index of states and not in all those rows.
    states = which.states or (tuple(State) if which.name else ())
    statement = _count(bool(states), which.tenant is not None, bool(which.name))
    given = {"states": [state.value for state in states]} if states else {}
    return {State(state): jobs for state, jobs in connection.execute(statement, {**given, **_values(which)})}


@functools.cache
def _page(states: int, by_tenant: bool, by_name: bool) -> Select[Any]:
    conditions = [JOBS.c.number < bindparam("before"), *_conditions(by_tenant, by_name)]
    of_states = [[JOBS.c.state == bindparam(f"state_{place}")] for place in range(states)] or [[]]
    parts = [
        select(JOBS.c.number)
        .where(*of_state, *conditions)
        .order_by(JOBS.c.number.desc())
        .limit(bindparam("limit"))
        .subquery()
        for of_state in of_states
    ]
    numbers = union_all(*(select(part.c.number) for part in parts)).subquery()
    return (
        select(*JOB_COLUMNS)
        .join(numbers, numbers.c.number == JOBS.c.number)
        .order_by(JOBS.c.number.desc())
        .limit(bindparam("limit"))
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
