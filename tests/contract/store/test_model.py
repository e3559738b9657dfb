"""Whatever is done to jobs, in whatever order and at whatever times: a store and a plain dictionary agree."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.queue.errors import QueueError
from orchestrator.queue.records import Job, Measured, Transition
from orchestrator.queue.states import DRIVER_ENDED, ENDED, HOLDS_A_LEASE, MAY_GO_TO, DesiredState, Reason, State
from orchestrator.queue.store import Change, Store
from tests.support.stores import PLACES, START_S, lead, new

JOBS = 3
STEPS = [(state, to) for state, some in MAY_GO_TO.items() for to in sorted(some)]

jobs = st.integers(0, JOBS - 1)
times = st.floats(0.0, 2000.0)
moves = st.tuples(st.just("move"), jobs, times, st.sampled_from(STEPS), st.integers(-1, 1), st.sampled_from(Reason))
asks = st.tuples(st.just("ask"), jobs, times, st.sampled_from(DesiredState), st.none() | st.integers(-5, 5))
retries = st.tuples(st.just("retry"), jobs, times)
says = st.tuples(st.just("measure"), jobs, times, st.integers(-1, 0), st.integers(0, 9))
# Mostly what a job could really do next, so that many of them get far.
likely = st.tuples(st.just("likely"), jobs, times, st.integers(0, 3), st.sampled_from(Reason))


@dataclass
class Model:
    """A job as the contract has it."""

    job_id: str
    state: State = State.QUEUED
    wanted: DesiredState = DesiredState.RUN
    priority: int = 0
    attempt: int = 0
    reason: Reason = Reason.SUBMITTED
    since_s: float = START_S
    waited_s: float = 0.0
    attained_s: float = 0.0
    step: int = 0
    interruptions: int = 0
    retries: dict[Reason, int] = field(default_factory=dict)
    leases: list[tuple[float, float | None]] = field(default_factory=list)
    events: list[str] = field(default_factory=lambda: ["queued"])

    def wait(self, now_s: float) -> None:
        """What it has waited for so far counts. A pause does not, be it its owner's or one after a failure."""
        if self.state is State.QUEUED and self.wanted is not DesiredState.PAUSE:
            failed = self.reason in (*DRIVER_ENDED, Reason.OUT_OF_MEMORY, Reason.SILENT, Reason.NOT_STARTED)
            pause_s = min(10.0 * 2 ** (self.retries[self.reason] - 1), 600.0) if failed else 0.0
            self.waited_s += max(now_s - self.since_s - pause_s, 0.0)

    def move(self, to: State, reason: Reason, now_s: float) -> None:
        self.wait(now_s)
        if to is State.STARTING:
            self.attempt += 1
            self.leases.append((now_s, None))
        if self.state in HOLDS_A_LEASE and to not in HOLDS_A_LEASE:
            granted_s, _ = self.leases.pop()
            self.leases.append((granted_s, max(now_s, granted_s)))
            self.attained_s += max(now_s - granted_s, 0.0)
        if to is State.QUEUED:
            self.since_s = now_s
            if reason is not Reason.PAUSED:
                self.retries[reason] = self.retries.get(reason, 0) + 1
            self.interruptions += reason in ("preempted", "reclaimed", "moved")
        self.state, self.reason = to, reason
        self.events.append(to)

    def agrees(self, job: Job) -> bool:
        names = ("state", "wanted", "priority", "attempt", "waited_s", "attained_s", "step", "interruptions", "retries")
        same = all(getattr(job, name) == getattr(self, name) for name in names)
        holds = self.state in HOLDS_A_LEASE
        lease = job.started_s == (self.leases[-1][0] if holds else None) and job.placement == (PLACES if holds else ())
        waits = self.state is not State.QUEUED or job.waiting_since_s == self.since_s
        return same and lease and waits and (job.ended_s is not None) == (self.state in ENDED)


def carry_out(store: Store, epoch: int, model: Model, what: str, now_s: float, *how: Any) -> None:
    if what in ("move", "likely"):
        move = _move(model, what, *how)
        if move is None:
            return
        moved = store.apply_transitions(epoch, [move], now_s)
        expected = (move.expect, move.attempt) == (model.state, model.attempt)
        assert len(moved) == expected
        if expected:
            model.move(move.to, move.reason, now_s)
    elif what == "ask":
        _ask(store, model, now_s, *how)
    elif what == "retry":
        _retry(store, model, now_s)
    else:
        attempt, at = how
        store.measure([Measured(model.job_id, model.attempt + attempt, step=at)], now_s)
        model.step = at if attempt == 0 and model.state not in ENDED else model.step


def _move(model: Model, what: str, way: Any, *rest: Any) -> Transition | None:
    if what == "move":
        (expect, to), (other, reason) = way, rest
    else:
        ways = sorted(MAY_GO_TO[model.state])
        if not ways:
            return None
        expect, to, other, reason = model.state, ways[way % len(ways)], 0, rest[0]
    return Transition(
        model.job_id, expect, model.attempt + other, to, reason, "", PLACES if to is State.STARTING else ()
    )


def _ask(store: Store, model: Model, now_s: float, wanted: DesiredState, priority: int | None) -> None:
    is_cancelled = model.state is State.STOPPING and model.reason is Reason.CANCELLED
    is_too_late = model.state in ENDED or (is_cancelled and wanted is not DesiredState.CANCEL)
    try:
        store.ask(model.job_id, Change(wanted, priority), now_s, "anna")
    except QueueError:
        assert is_too_late
        return
    assert not is_too_late
    if model.state is State.QUEUED and wanted not in (None, model.wanted):
        model.wait(now_s)
        model.since_s = now_s
    model.wanted, model.priority = wanted, model.priority if priority is None else priority
    model.events.append("asked")


def _retry(store: Store, model: Model, now_s: float) -> None:
    try:
        store.retry(model.job_id, now_s, "anna")
    except QueueError:
        assert model.state not in (State.FAILED, State.CANCELLED)
        return
    assert model.state in (State.FAILED, State.CANCELLED)
    model.state, model.wanted, model.since_s, model.retries = State.QUEUED, DesiredState.RUN, now_s, {}
    model.attained_s = model.waited_s = 0.0  # max_runtime_s and the place in the queue start anew
    model.interruptions = 0
    model.reason = Reason.RETRIED
    model.events.append("queued")


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(likely | likely | moves | asks | retries | says, max_size=40))
def test_a_store_and_a_dictionary_agree(store: Store, steps: list[tuple[Any, ...]]) -> None:
    epoch = lead(store)
    start = max((job.changed for job in store.jobs(limit=1000)), default=0)
    models = [Model(job.job_id) for job in store.submit([new() for _ in range(JOBS)], START_S)]
    for what, job, now_s, *how in steps:
        carry_out(store, epoch, models[job], what, now_s, *how)
    for model in models:
        assert model.agrees(store.job(model.job_id))
        assert [event.kind for event in store.events(model.job_id)] == model.events
        leases = [(one.granted_s, one.released_s) for one in store.leases() if one.job_id == model.job_id]
        assert leases == model.leases
    ids = {model.job_id for model in models}
    changed = [job for job in store.changes(max(start, 1), limit=100_000) if job.job_id in ids]
    assert sorted(changed, key=lambda job: job.number) == [store.job(model.job_id) for model in models]
