"""The store on SQL: each method is one transaction. `orchestrator.queue.store` documents them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection

from orchestrator.queue.records import Job, NewJob, UnreadableRow
from orchestrator.queue.store import SubmissionKey
from orchestrator.store import counters, listing, pruning, registry, submissions, transitions, usage
from orchestrator.store import events as history
from orchestrator.store import jobs as jobtable
from orchestrator.store.database.database import Database

Given = ParamSpec("Given")
Answer = TypeVar("Answer")


def _reads(act: Callable[Concatenate[Connection, Given], Answer]) -> Callable[Concatenate[SqlStore, Given], Answer]:
    """Make a method that calls `act` with a connection for reading."""

    def method(self: SqlStore, /, *args: Given.args, **kwargs: Given.kwargs) -> Answer:
        with self._database.read() as connection:
            return act(connection, *args, **kwargs)

    return method


def _writes(act: Callable[Concatenate[Connection, Given], Answer]) -> Callable[Concatenate[SqlStore, Given], Answer]:
    """Make a method that calls `act` in a transaction that writes."""

    def method(self: SqlStore, /, *args: Given.args, **kwargs: Given.kwargs) -> Answer:
        with self._database.write() as connection:
            return act(connection, *args, **kwargs)

    return method


class SqlStore:
    """A store. Many threads may use it at once, and many processes its database."""

    def __init__(self, database: Database, drawn: submissions.Draw = submissions.draw) -> None:
        self._database, self._drawn = database, drawn

    def close(self) -> None:
        self._database.close()

    # Jobs: for all callers

    def submit(self, jobs: Sequence[NewJob], now_s: float, key: SubmissionKey | None = None) -> tuple[Job, ...]:
        return submissions.submit(self._database, self._drawn, jobs, now_s, key)

    submitted = _reads(submissions.known)
    job = _reads(jobtable.get)
    find = _reads(jobtable.get_all)
    spec = _reads(jobtable.spec)
    jobs = _reads(listing.page)
    count = _reads(listing.count)
    ask = _writes(jobtable.ask)
    retry = _writes(jobtable.retry)
    release = _writes(transitions.release)
    give_back = _writes(transitions.give_back)

    # Jobs: for the leader

    last_change = _reads(counters.last_change)
    changes = _reads(listing.changes)
    apply_transitions = _writes(transitions.apply_transitions)
    pull_back = _writes(transitions.pull_back)
    measure = _writes(jobtable.measure)
    heard = _reads(jobtable.heard)
    followups_due = _reads(jobtable.followups_due)
    followed = _writes(jobtable.followed)
    of_clients = _reads(jobtable.of_clients)

    def unreadable(self) -> list[UnreadableRow]:
        return self._database.unread.rows()

    # Leases and events

    leases = _reads(transitions.leases)
    decayed_use = _reads(usage.decayed_use)
    month_totals = _reads(usage.month_totals)
    prunable = _reads(pruning.prunable)
    prune = _writes(pruning.prune)
    add_events = _writes(history.add_new)
    last_event = _reads(counters.last_event)
    events = _reads(history.page)

    # Leadership

    lead = _writes(counters.lead)
    leader = _reads(counters.leader)
    resign = _writes(counters.resign)

    # Tenants, nodes and tokens

    tenants = _reads(registry.tenants)
    put_tenant = _writes(registry.put_tenant)
    change_tenant = _writes(registry.change_tenant)
    node_rules = _reads(registry.node_rules)
    put_node_rule = _writes(registry.put_node_rule)
    tokens = _reads(registry.tokens)
    add_token = _writes(registry.add_token)
    revoke_token = _writes(registry.revoke_token)

    # Small values by name

    facts = _reads(registry.all_facts)
    put_facts = _writes(registry.put_facts)
