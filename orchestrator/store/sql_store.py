"""The store on SQL: each method is one transaction. What it promises is in `orchestrator.queue.store`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from orchestrator.controller.fair_share import counts_since_s, used_of_spans
from orchestrator.queue.months import MonthTotal
from orchestrator.queue.records import (
    Job,
    Leadership,
    Lease,
    Measured,
    Move,
    NewJob,
    NodePlaces,
    NodeRule,
    QueueEvent,
    Token,
    UnreadableRow,
)
from orchestrator.queue.states import State
from orchestrator.queue.store import Change, Filter, SubmissionKey
from orchestrator.queue.tenants import Tenant
from orchestrator.store import counters as numbers
from orchestrator.store import events as history
from orchestrator.store import job_changes as steps
from orchestrator.store import jobs as jobtable
from orchestrator.store import listing as pages
from orchestrator.store import pruning, registry, submissions
from orchestrator.store import transitions as movement
from orchestrator.store import usage as usetable
from orchestrator.store.database.database import Database

_ALL = Filter()


class SqlStore:
    """Used by many threads at once, and its database by many processes."""

    def __init__(self, database: Database, drawn: submissions.Draw = submissions.draw) -> None:
        self._database, self._drawn = database, drawn

    def close(self) -> None:
        self._database.close()

    # Jobs, for everybody

    def submit(self, jobs: Sequence[NewJob], now_s: float, key: SubmissionKey | None = None) -> tuple[Job, ...]:
        return submissions.submit(self._database, self._drawn, jobs, now_s, key)

    def submitted(self, key: SubmissionKey) -> tuple[Job, ...] | None:
        with self._database.read() as connection:
            return submissions.known(connection, key)

    def job(self, job_id: str) -> Job:
        with self._database.read() as connection:
            return jobtable.get(connection, job_id)

    def find(self, job_ids: Iterable[str]) -> dict[str, Job]:
        with self._database.read() as connection:
            return jobtable.get_all(connection, job_ids)

    def spec(self, job_id: str) -> str:
        with self._database.read() as connection:
            return jobtable.spec(connection, job_id)

    def jobs(
        self, which: Filter = _ALL, *, before: int | None = None, after: int | None = None, limit: int = 100
    ) -> list[Job]:
        with self._database.read() as connection:
            return pages.page(connection, which, before, after, limit)

    def count(self, which: Filter = _ALL) -> dict[State, int]:
        with self._database.read() as connection:
            return pages.count(connection, which)

    def ask(self, job_id: str, change: Change, now_s: float, by: str) -> Job:
        with self._database.write() as connection:
            return jobtable.ask(connection, job_id, change, now_s, by)

    def retry(self, job_id: str, now_s: float, by: str) -> Job:
        with self._database.write() as connection:
            return jobtable.retry(connection, job_id, now_s, by)

    def release(self, job_id: str, attempt: int, now_s: float, by: str) -> Job:
        with self._database.write() as connection:
            return movement.release(connection, job_id, attempt, now_s, by)

    def give_back(self, job_id: str, attempt: int, kept: NodePlaces, now_s: float) -> Job:
        with self._database.write() as connection:
            return movement.give_back(connection, job_id, attempt, kept, now_s)

    # Jobs, for the leader

    def last_change(self) -> int:
        with self._database.read() as connection:
            return numbers.newest(connection).change

    def changes(self, after: int, limit: int = 10_000) -> list[Job]:
        with self._database.read() as connection:
            return pages.changes(connection, after, limit)

    def move(self, epoch: int, moves: Sequence[Move], now_s: float) -> list[Job]:
        steps.check(moves)
        with self._database.write() as connection:
            return movement.move(connection, epoch, moves, now_s)

    def pull_back(self, epoch: int, now_s: float) -> None:
        with self._database.write() as connection:
            movement.pull_back(connection, epoch, now_s)

    def measure(self, measured: Sequence[Measured], now_s: float) -> None:
        with self._database.write() as connection:
            jobtable.measure(connection, measured, now_s)

    def heard(self) -> Mapping[str, float | None]:
        with self._database.read() as connection:
            return jobtable.heard(connection)

    def followups_due(self, limit: int = 100) -> list[Job]:
        with self._database.read() as connection:
            return jobtable.followups_due(connection, limit)

    def followed(self, job: Job) -> None:
        with self._database.write() as connection:
            jobtable.followed(connection, job)

    def of_clients(self) -> list[Job]:
        with self._database.read() as connection:
            return jobtable.of_clients(connection)

    def unreadable(self) -> list[UnreadableRow]:
        return self._database.unread.rows()

    # Leases, events

    def leases(self, *, held: bool = False, since_s: float = 0.0, until_s: float = math.inf) -> list[Lease]:
        with self._database.read() as connection:
            return movement.leases(connection, held, since_s, until_s)

    def decayed_use(self, now_s: float, half_life_s: float) -> dict[str, float]:
        with self._database.read() as connection:
            spans = usetable.spans(connection, counts_since_s(now_s, half_life_s))
            return used_of_spans(spans, now_s, half_life_s)

    def month_totals(self, at_s: float, now_s: float, *, held: bool = True) -> list[MonthTotal]:
        with self._database.read() as connection:
            return usetable.month_totals(connection, at_s, now_s, held)

    def prunable(self, before_s: float, limit: int) -> list[tuple[str, int]]:
        with self._database.read() as connection:
            return pruning.prunable(connection, before_s, limit)

    def prune(self, epoch: int, job_ids: Sequence[str], before_s: float) -> int:
        with self._database.write() as connection:
            return pruning.prune(connection, epoch, job_ids, before_s)

    def add_events(self, events: Sequence[QueueEvent]) -> None:
        with self._database.write() as connection:
            history.add_new(connection, events)

    def last_event(self) -> int:
        with self._database.read() as connection:
            return numbers.newest(connection).event

    def events(
        self, job_id: str | None = None, *, after: int = 0, before: int | None = None, limit: int = 1000
    ) -> list[QueueEvent]:
        with self._database.read() as connection:
            return history.page(connection, job_id, after, before, limit)

    # Leadership

    def lead(self, holder: str, url: str, now_s: float, for_s: float) -> Leadership | None:
        with self._database.write() as connection:
            return numbers.lead(connection, holder, url, now_s, for_s)

    def leader(self) -> Leadership | None:
        with self._database.read() as connection:
            return numbers.leader(connection)

    def resign(self, holder: str) -> None:
        with self._database.write() as connection:
            numbers.resign(connection, holder)

    # What the cluster is to know

    def tenants(self) -> list[Tenant]:
        with self._database.read() as connection:
            return registry.tenants(connection)

    def put_tenant(self, tenant: Tenant, now_s: float) -> None:
        with self._database.write() as connection:
            registry.put_tenant(connection, tenant, now_s)

    def node_rules(self) -> list[NodeRule]:
        with self._database.read() as connection:
            return registry.node_rules(connection)

    def put_node_rule(self, rule: NodeRule) -> None:
        with self._database.write() as connection:
            registry.put_node_rule(connection, rule)

    def tokens(self) -> list[Token]:
        with self._database.read() as connection:
            return registry.tokens(connection)

    def add_token(self, token: Token) -> None:
        with self._database.write() as connection:
            registry.add_token(connection, token)

    def revoke_token(self, name: str, now_s: float) -> None:
        with self._database.write() as connection:
            registry.revoke_token(connection, name, now_s)

    # Small things by name

    def facts(self) -> Mapping[str, str]:
        with self._database.read() as connection:
            return registry.facts(connection)

    def put_facts(self, facts: Mapping[str, str], *, keep: bool = False) -> None:
        with self._database.write() as connection:
            registry.put_facts(connection, facts, keep)
