"""What tests of stores share: short submissions, and moves along the ways of a job."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from cluster.capacity.gang import Gang
from orchestrator.queue.records import Job, NewJob, NodePlaces, Transition
from orchestrator.queue.states import Reason, State
from orchestrator.queue.store import Store
from orchestrator.queue.tenants import Tenant

Result = TypeVar("Result")

START_S = 1_000.0
PLACES: NodePlaces = (("n0", 1), ("n1", 1))


def new(name: str = "train", **changes: Any) -> NewJob:
    """Of tenant `a`: two workers of a GPU."""
    given: dict[str, Any] = {
        "kind": "finetune",
        "tenant": "a",
        "spec": '{"seed": 1}',
        "gang": Gang(2, 4, 1),
        "submitted_by": "anna",
    }
    return NewJob(**{"name": name, **given, **changes})


def with_tenants(store: Store) -> Store:
    for name in ("a", "b"):
        store.put_tenant(Tenant(name), START_S)
    return store


def submit(store: Store, name: str = "train", now_s: float = START_S, **changes: Any) -> Job:
    (job,) = store.submit([new(name, **changes)], now_s)
    return job


def lead(store: Store, holder: str = "one", now_s: float = START_S) -> int:
    """The epoch."""
    leadership = store.lead(holder, f"http://{holder}", now_s, 30.0)
    assert leadership is not None
    return leadership.epoch


def step(job: Job, to: State, reason: Reason | None = None, message: str = "") -> Transition:
    """From where the job is."""
    placement = PLACES if to is State.STARTING else ()
    return Transition(
        job.job_id, job.state, job.attempt, to, reason or _USUAL.get(to, Reason.PREEMPTED), message, placement
    )


def go(store: Store, job: Job, *ways: State, now_s: float = START_S, reason: Reason | None = None) -> Job:
    """Along these states, all at one time; the reason is that of the last steps out of RUNNING."""
    epoch = lead(store, now_s=now_s)
    for to in ways:
        (job,) = store.apply_transitions(epoch, [step(job, to, reason if to not in _USUAL else None)], now_s)
    return job


_USUAL = {State.STARTING: Reason.GRANTED, State.RUNNING: Reason.ANSWERED, State.SUCCEEDED: Reason.FINISHED}
RUN = (State.STARTING, State.RUNNING)


def at_once(*calls: Callable[[], Result]) -> list[Result]:
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], Result]) -> Result:
        barrier.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))
