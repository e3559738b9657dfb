"""What a leader may expect of a store: the leadership, moves and their columns, leases, measurements, changes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from cluster.capacity.gang import Gang
from orchestrator.queue.errors import NotLeader
from orchestrator.queue.records import Job, Leadership, Lease, Measured, NodePlaces, Transition
from orchestrator.queue.states import ENDED, MAY_GO_TO, DesiredState, Reason, State
from orchestrator.queue.store import Change, Store
from tests.support.stores import PLACES, RUN, START_S, go, lead, new, step, submit


def test_one_leads_until_its_time_is_over(store: Store) -> None:
    assert store.leader() is None
    assert store.lead("one", "http://one", 100.0, 30.0) == Leadership("one", 1, "http://one", 130.0)
    assert store.lead("two", "http://two", 129.0, 30.0) is None
    assert store.lead("one", "http://one/", 129.0, 30.0) == Leadership("one", 1, "http://one/", 159.0)
    assert store.lead("two", "http://two", 158.0, 30.0) is None
    assert store.lead("two", "http://two", 159.0, 30.0) == Leadership("two", 2, "http://two", 189.0)
    assert store.leader() == Leadership("two", 2, "http://two", 189.0)


def test_whoever_resigns_is_followed_at_once(store: Store) -> None:
    lead(store, "one", now_s=100.0)
    store.resign("two")
    assert store.lead("two", "http://two", 101.0, 30.0) is None
    store.resign("one")
    leader = store.leader()
    assert leader is not None and (leader.holder, leader.epoch) == ("one", 1)
    assert lead(store, "two", now_s=101.0) == 2


def test_a_move_is_refused_if_somebody_else_has_led_since(store: Store) -> None:
    job = submit(store)
    with pytest.raises(NotLeader, match="nobody has ever led"):
        store.apply_transitions(0, [step(job, State.STARTING)], START_S)
    old = lead(store, "one", now_s=0.0)
    new_one = lead(store, "two", now_s=1000.0)
    for epoch in (old, new_one + 1):
        with pytest.raises(NotLeader, match=f"epoch {epoch} is over: two leads, with epoch {new_one}"):
            store.apply_transitions(epoch, [step(job, State.STARTING)], START_S)
    with pytest.raises(NotLeader):
        store.apply_transitions(old, [], START_S)
    assert store.job(job.job_id) == job
    assert (len(store.events()), store.leases()) == (1, [])


def test_a_leader_may_move_after_its_time_while_nobody_else_leads(store: Store) -> None:
    job = submit(store)
    epoch = lead(store, now_s=0.0)
    assert store.apply_transitions(epoch, [step(job, State.STARTING)], 1e9)


def test_a_job_takes_a_lease_and_gives_it_back(store: Store) -> None:
    job = submit(store)
    starting = go(store, job, State.STARTING, now_s=START_S + 10.0)
    follows: dict[str, Any] = {"attempt": 1, "placement": PLACES, "started_s": START_S + 10.0, "waited_s": 10.0}
    moved: dict[str, Any] = {"state": State.STARTING, "reason": Reason.GRANTED, "changed": starting.changed}
    assert starting == replace(job, **moved, **follows) == store.job(job.job_id)
    lease = Lease(job.job_id, 1, "a", job.gang, PLACES, START_S + 10.0, None)
    assert store.leases(held=True) == store.leases() == [lease]

    stopping = go(store, starting, State.RUNNING, State.STOPPING, now_s=START_S + 70.0)
    assert store.leases(held=True) == [lease]
    queued = go(store, stopping, State.QUEUED, now_s=START_S + 80.0)
    assert (queued.placement, queued.started_s, queued.attained_s) == ((), None, 70.0)
    assert (queued.waiting_since_s, queued.waited_s, queued.attempt) == (START_S + 80.0, 10.0, 1)
    assert store.leases() == [replace(lease, released_s=START_S + 80.0)]

    ended = go(store, queued, *RUN, State.SUCCEEDED, now_s=START_S + 100.0)
    assert (ended.attempt, ended.waited_s, ended.ended_s, ended.attained_s) == (2, 30.0, START_S + 100.0, 70.0)
    assert store.job(job.job_id) == ended
    assert [one.attempt for one in store.leases(since_s=START_S + 90.0)] == [2]
    assert store.leases(held=True) == []


def test_a_job_that_ends_in_the_queue_never_held_anything(store: Store) -> None:
    ended = go(store, submit(store), State.FAILED, reason=Reason.PARENT_FAILED, now_s=START_S + 5.0)
    assert (ended.ended_s, ended.waited_s, ended.started_s, ended.attempt) == (START_S + 5.0, 5.0, None, 0)
    assert store.leases() == []


@pytest.mark.parametrize(
    ("reason", "retries", "interruptions"),
    [
        (Reason.PREEMPTED, 1, 1),
        (Reason.RECLAIMED, 1, 1),
        (Reason.MOVED, 1, 1),
        (Reason.RESIZED, 1, 0),
        (Reason.DRAINED, 1, 0),
        (Reason.NODE_LOST, 1, 0),
        (Reason.PAUSED, 0, 0),
    ],
)
def test_what_sent_a_job_back_is_counted(store: Store, reason: Reason, retries: int, interruptions: int) -> None:
    job = submit(store)
    for times in (1, 2):
        job = go(store, job, *RUN, State.STOPPING, State.QUEUED, reason=reason)
        assert (job.retries.get(reason, 0), job.interruptions) == (times * retries, times * interruptions)
    assert store.job(job.job_id) == job


def test_an_elastic_job_has_what_its_lease_has_and_waits_with_the_fewest(store: Store) -> None:
    job = submit(store, gang=Gang(2, 1, 1), sizes=(2, 4, 8))
    epoch = lead(store)

    def to(one: Job, state: State, reason: Reason, placement: NodePlaces = ()) -> Job:
        (moved,) = store.apply_transitions(
            epoch, [Transition(one.job_id, one.state, one.attempt, state, reason, "", placement)], START_S
        )
        assert store.job(one.job_id) == moved
        return moved

    job = to(job, State.STARTING, Reason.GRANTED, (("n0", 4), ("n1", 4)))
    assert (job.gang.num_workers, [lease.gang.num_workers for lease in store.leases(held=True)]) == (8, [8])
    job = to(job, State.RUNNING, Reason.ANSWERED)
    store.measure([Measured(job.job_id, 1, remaining_s=100.0)], START_S)
    job = to(store.job(job.job_id), State.STOPPING, Reason.RESIZED)
    assert (job.gang.num_workers, job.remaining_s) == (8, 100.0)
    job = to(job, State.QUEUED, Reason.RESIZED)
    assert (job.gang.num_workers, job.remaining_s, job.sizes) == (2, 400.0, (2, 4, 8))
    job = to(job, State.STARTING, Reason.GRANTED, (("n0", 4),))
    assert (job.gang.num_workers, job.remaining_s) == (4, 200.0)
    assert [lease.gang.num_workers for lease in store.leases(since_s=0.0)] == [8, 4]


def test_a_part_of_a_lease_is_given_back_before_its_end(store: Store) -> None:
    job = submit(store, gang=Gang(2, 1, 1), sizes=(2, 4, 6, 8))
    epoch = lead(store)
    start = Transition(job.job_id, job.state, 0, State.STARTING, Reason.GRANTED, placement=(("n0", 4), ("n1", 4)))
    (job,) = store.apply_transitions(epoch, [start], START_S)
    (job,) = store.apply_transitions(epoch, [step(job, State.RUNNING)], START_S)
    before = store.job(job.job_id).changed

    def given(kept: NodePlaces, attempt: int = 1, now_s: float = START_S + 60.0) -> Job:
        after = store.give_back(job.job_id, attempt, kept, now_s)
        assert after == store.job(job.job_id)
        return after

    for no_part in ((), (("n0", 4), ("n1", 4)), (("n0", 5),), (("n2", 2),), (("n0", 3),)):
        assert given(no_part) == job  # 3 is no size of it
    assert given((("n0", 2),), attempt=2) == job
    after = given((("n1", 2), ("n0", 4)))
    assert (after.placement, after.gang.num_workers, after.usable_sizes) == ((("n0", 4), ("n1", 2)), 6, (2, 4, 6))
    assert (after.state, after.attempt, after.started_s) == (State.RUNNING, 1, START_S) and after.changed > before
    assert [one.job_id for one in store.changes(before)] == [job.job_id]
    assert store.events(job.job_id)[-1].message == "goes on with 6 workers of 8, and gives the others back"
    given((("n0", 2),), now_s=START_S + 80.0)
    held = [(lease.placement, lease.released_s) for lease in store.leases()]
    assert sorted(held, key=str) == [
        ((("n0", 2), ("n1", 2)), START_S + 80.0),
        ((("n0", 2),), None),
        ((("n1", 2),), START_S + 60.0),
    ]
    (total,) = store.month_totals(START_S, START_S + 100.0)
    assert (total.gpu_s, total.jobs) == (2 * 60.0 + 4 * 80.0 + 2 * 100.0, 1)
    job = go(store, store.job(job.job_id), State.STOPPING, State.QUEUED, reason=Reason.NODE_LOST, now_s=START_S + 100.0)
    assert (job.gang.num_workers, job.usable_sizes, job.attained_s) == (2, (2, 4, 6, 8), 100.0)
    assert given((("n0", 2),)) == job  # it holds nothing
    assert sorted(lease.released_s or 0.0 for lease in store.leases()) == [START_S + after for after in (60, 80, 100)]


def test_a_move_is_passed_over_where_the_job_is_elsewhere_by_now(store: Store) -> None:
    epoch = lead(store)
    first, second = store.submit([new(), new()], START_S)
    go(store, first, *RUN, State.STOPPING, State.QUEUED)
    moves = [step(first, State.STARTING), step(second, State.STARTING), Transition("gone", *_TO_START[1:])]
    assert [job.job_id for job in store.apply_transitions(epoch, moves, START_S)] == [second.job_id]
    assert store.apply_transitions(epoch, moves, START_S) == []
    assert store.job(first.job_id).attempt == 1


_TO_START = ("", State.QUEUED, 0, State.STARTING, Reason.GRANTED, "", PLACES)


def test_several_moves_of_one_job_follow_each_other(store: Store) -> None:
    job = submit(store)
    ways = (*RUN, State.STOPPING, State.QUEUED, State.STARTING)
    moves = []
    for before, to in zip((State.QUEUED, *ways), ways, strict=False):
        moves.append(step(replace(job, state=before), to))
        job = replace(job, attempt=job.attempt + (to is State.STARTING))
    (moved,) = store.apply_transitions(lead(store), moves, START_S + 5.0)
    assert moved == store.job(job.job_id)
    assert (moved.state, moved.attempt, moved.retries) == (State.STARTING, 2, {Reason.PREEMPTED: 1})
    assert [lease.released_s for lease in store.leases()] == [START_S + 5.0, None]
    assert [event.kind for event in store.events(job.job_id)] == ["queued", *ways]


def test_a_move_that_no_job_can_make_is_a_mistake_of_the_caller(store: Store) -> None:
    epoch, job = lead(store), submit(store)
    good = step(job, State.STARTING)
    for state in State:
        for to in set(State) - MAY_GO_TO[state]:
            with pytest.raises(ValueError, match=f"may not go from {state} to {to}"):
                store.apply_transitions(epoch, [good, step(replace(job, state=state), to)], START_S)
    for wrong in (replace(good, placement=()), replace(step(job, State.CANCELLED), placement=PLACES)):
        with pytest.raises(ValueError, match="a placement goes with a move to starting"):
            store.apply_transitions(epoch, [wrong], START_S)
    assert store.job(job.job_id) == job


def test_every_transition_leaves_an_event(store: Store) -> None:
    job = go(store, submit(store), State.STARTING, now_s=START_S + 1.0)
    stopping = step(job, State.STOPPING, Reason.NODE_LOST, "n1 is gone\0 \udcff")
    (job,) = store.apply_transitions(lead(store), [stopping], START_S)
    assert job == store.job(job.job_id)
    go(store, job, State.QUEUED, reason=Reason.NODE_LOST)
    events = store.events(job.job_id)
    assert [(event.kind, event.message) for event in events] == [
        ("queued", "submitted by anna"),
        ("starting", "granted"),
        ("stopping", "n1 is gone\N{REPLACEMENT CHARACTER} ?"),
        ("queued", "node lost"),
    ]
    assert events[1].at_s == START_S + 1.0
    assert events[1].data == {"reason": "granted", "attempt": 1, "placement": [["n0", 1], ["n1", 1]]}


def test_what_has_been_waited_or_held_for_never_shrinks_when_the_clock_goes_backwards(store: Store) -> None:
    job = submit(store, now_s=START_S)
    for at_s in (START_S - 100.0, START_S + 50.0, START_S - 700.0):
        before = job
        job = go(store, job, *RUN, now_s=at_s)
        assert job.waited_s >= before.waited_s
        job = go(store, job, State.STOPPING, State.QUEUED, now_s=at_s - 40.0)
        assert job.attained_s >= before.attained_s
    leases = store.leases()
    assert [lease.attempt for lease in leases] == [1, 2, 3]
    assert all(lease.released_s is not None and lease.released_s >= lease.granted_s for lease in leases)
    assert [event.number for event in store.events()] == sorted(event.number for event in store.events())
    assert store.changes(0) == [job]


def test_what_a_driver_says_is_noted(store: Store) -> None:
    job = go(store, submit(store), *RUN)
    said = Measured(
        job.job_id, 1, "s3://runs/x", 7, 100, remaining_s=930.5, interruption_cost_s=12.0,
        metrics={"loss": 2.5, "eval_loss": 3.0},
    )  # fmt: skip
    store.measure([said], START_S)
    store.measure([Measured(job.job_id, 1, step=8, metrics={"loss": 2.25})], START_S)
    now = store.job(job.job_id)
    assert (now.run, now.step, now.total_steps, now.remaining_s) == ("s3://runs/x", 8, 100, 930.5)
    assert (now.interruption_cost_s, dict(now.metrics)) == (12.0, {"loss": 2.25, "eval_loss": 3.0})
    assert (now.state, now.changed > job.changed) == (State.RUNNING, True)
    assert len(store.events(job.job_id)) == 3


def test_what_a_driver_says_too_late_is_passed_over(store: Store) -> None:
    first = go(store, submit(store), *RUN, State.STOPPING, State.QUEUED)
    first = go(store, first, *RUN)
    second = go(store, submit(store), *RUN, State.SUCCEEDED)
    said = [Measured(first.job_id, 1, step=5), Measured(second.job_id, 1, step=5), Measured("gone", 1, step=5)]
    store.measure(said, START_S)
    assert store.job(first.job_id) == first
    assert store.job(second.job_id) == second
    store.measure([], START_S)


def test_numbers_that_are_none_are_kept_as_metrics_and_passed_over_as_durations(store: Store) -> None:
    job = go(store, submit(store), *RUN)
    store.measure([Measured(job.job_id, 1, remaining_s=60.0)], START_S)
    wild = {"loss": math.nan, "norm": math.inf, "low": -math.inf, "fine": 1.5}
    store.measure([Measured(job.job_id, 1, remaining_s=math.nan, interruption_cost_s=math.inf, metrics=wild)], START_S)
    now = store.job(job.job_id)
    assert math.isnan(now.metrics["loss"])
    assert (now.metrics["norm"], now.metrics["low"], now.metrics["fine"]) == (math.inf, -math.inf, 1.5)
    assert (now.remaining_s, now.interruption_cost_s) == (60.0, 0.0)


def test_changes_begin_with_what_has_not_ended_and_go_on_with_everything(store: Store) -> None:
    jobs = list(store.submit([new() for _ in range(6)], START_S))
    jobs[1] = go(store, jobs[1], *RUN, State.SUCCEEDED)
    seen = store.changes(0)
    assert seen == [jobs[0], *jobs[2:]]
    after = seen[-1].changed
    assert store.changes(after) == [jobs[1]]  # it ended after the newest of those
    after = jobs[1].changed
    assert store.changes(after) == []
    jobs[3] = store.ask(jobs[3].job_id, Change(wanted=DesiredState.CANCEL), START_S, "anna")
    jobs[2] = go(store, jobs[2], State.CANCELLED, reason=Reason.CANCELLED)
    assert store.changes(after) == [jobs[3], jobs[2]]
    assert store.changes(after, limit=1) == [jobs[3]]
    assert store.changes(0, limit=2) == [jobs[0], jobs[4]]


def test_many_jobs_go_all_ways_at_once(store: Store) -> None:
    epoch = lead(store)
    jobs = list(store.submit([new() for _ in range(2100)], START_S))
    for to in (*RUN, State.SUCCEEDED):
        jobs = store.apply_transitions(epoch, [step(job, to) for job in jobs], START_S)
        assert len(jobs) == 2100
    assert store.count() == {State.SUCCEEDED: 2100}
    assert len(store.leases()) == 2100
    assert store.leases(held=True) == []
    assert store.jobs(limit=1) == [jobs[-1]]
    assert jobs[0].state in ENDED
