"""The queue carried forward on a made-up cluster: starts, ends, stops, preemption, and servers that come and go."""

from __future__ import annotations

import contextlib

import pytest

from cluster.backend import Launch, Phase
from cluster.capacity.inventory import Growth, Node, NodeType
from cluster.errors import BackendUnreachable, SpecError
from cluster.testing import FakeBackend
from orchestrator.controller.autoscaler_demand import Demand
from orchestrator.queue.records import Job, NodeOrder, NodeRule
from orchestrator.queue.states import DesiredState, Reason, State
from orchestrator.queue.store import Change
from orchestrator.queue.tenants import Tenant
from tests.support.queueworld import QueueWorld, launch_of, new


def test_jobs_run_as_there_is_room_and_all_end() -> None:
    world = QueueWorld(4, 4)
    ids = world.submit(*[new(f"job{number}", gpus) for number, gpus in enumerate((4, 2, 2, 4, 1, 8))])
    world.passes(2)
    assert world.job(ids[5]).placement == (("n0", 4), ("n1", 4))  # the largest goes first
    world.until_all_end()
    assert set(world.states(*ids)) == {State.SUCCEEDED}
    assert not world.store.leases(held=True) and len(world.store.leases()) == 6
    assert not world.backend.submissions()  # what is over was forgotten


@pytest.mark.parametrize(("exit_code", "reason"), [(1, Reason.RUN_FAILED), (2, Reason.BAD_INPUT)])
def test_a_failed_run_fails_its_job_in_one_attempt_and_the_jobs_after_it(exit_code: int, reason: Reason) -> None:
    world = QueueWorld(4)
    world.backend.script("first-*", exit_code=exit_code, runs_s=5.0, message="it says why")
    (first,) = world.submit(new("first"))
    (second,) = world.submit(new("second", after=(first,)))
    (third,) = world.submit(new("third", after=(second,)))
    world.until_all_end()
    assert world.states(first, second, third) == [State.FAILED] * 3
    job = world.job(first)
    assert (job.attempt, job.reason, job.message) == (1, reason, "it says why")
    assert world.job(second).reason is Reason.PARENT_FAILED and "has failed" in world.job(second).message
    (late,) = world.submit(new("late", after=(first,)))  # its parent ended before it was there
    world.passes(2)
    assert world.states(late) == [State.FAILED]


def test_a_child_starts_when_its_parent_has_succeeded() -> None:
    world = QueueWorld(4)
    (first,) = world.submit(new("first"))
    (second,) = world.submit(new("second", after=(first,)))
    world.passes(3)
    assert world.states(first, second) == [State.RUNNING, State.QUEUED]
    world.until_all_end()
    assert world.states(first, second) == [State.SUCCEEDED] * 2


def test_a_driver_that_is_lost_is_started_again_with_pauses_and_not_for_ever() -> None:
    world = QueueWorld(4)
    world.backend.script_by(lambda launch: None)
    (job_id,) = world.submit(new("fragile"))
    for attempt in range(1, 7):
        while world.job(job_id).state is not State.RUNNING:
            world.passes(1, 10.0)
        assert world.job(job_id).attempt == attempt
        world.backend.lose(world.job(job_id).submission)
        world.passes(1)
    job = world.job(job_id)
    assert job.state is State.FAILED and job.reason is Reason.DRIVER_LOST and "5 times" in job.message


def test_cancel_pause_resume_and_retry() -> None:
    world = QueueWorld(2)
    world.backend.script("*", runs_s=100.0, stops_after_s=10.0)
    first, waits = world.submit(new("first", 2), new("waits", 2))
    world.passes(2)
    world.store.ask(waits, Change(wanted=DesiredState.CANCEL), world.clock(), "test")
    world.store.ask(first, Change(wanted=DesiredState.PAUSE), world.clock(), "test")
    world.passes(2)
    assert world.states(first, waits) == [State.STOPPING, State.CANCELLED]  # its nodes are held while it saves
    world.passes(10)
    assert world.states(first) == [State.QUEUED] and world.job(first).reason is Reason.PAUSED
    world.passes(20)
    assert world.states(first) == [State.QUEUED]
    world.store.ask(first, Change(wanted=DesiredState.RUN), world.clock(), "test")
    world.passes(2)
    assert world.states(first) == [State.RUNNING] and world.job(first).attempt == 2
    world.store.ask(first, Change(wanted=DesiredState.CANCEL), world.clock(), "test")
    world.passes(15)
    assert world.states(first) == [State.CANCELLED]
    world.store.retry(first, world.clock(), "test")
    world.until_all_end()
    assert world.states(first) == [State.SUCCEEDED] and world.job(first).attempt == 3


def test_one_that_does_not_listen_is_ended_hard_when_its_grace_is_over() -> None:
    world = QueueWorld(2)
    world.backend.script("*", runs_s=10_000.0)
    world.backend.ignore_soft_stop("deaf-*")
    (deaf,) = world.submit(new("deaf", 2))
    world.passes(2)
    world.store.ask(deaf, Change(wanted=DesiredState.CANCEL), world.clock(), "test")
    world.passes(20)
    assert world.states(deaf) == [State.STOPPING]
    world.passes(20)
    assert world.states(deaf) == [State.CANCELLED]


def test_a_job_of_a_higher_priority_takes_the_place_of_one_that_saves_first() -> None:
    world = QueueWorld(4)
    world.backend.script("*", runs_s=2000.0, stops_after_s=20.0)
    (low,) = world.submit(new("low", 4))
    world.passes(2)
    world.clock.advance(700.0)  # its first minutes are its own
    (high,) = world.submit(new("high", 4, priority=5))
    world.passes(5)
    assert world.states(low, high) == [State.STOPPING, State.QUEUED]
    world.passes(20)
    assert world.states(low, high) == [State.QUEUED, State.RUNNING]
    assert world.job(low).reason is Reason.PREEMPTED and world.job(low).interruptions == 1
    world.until_all_end(each_s=30.0)
    assert world.states(low, high) == [State.SUCCEEDED] * 2


def test_a_guarantee_is_taken_back_and_a_limit_is_never_passed() -> None:
    tenants = (Tenant("a", guaranteed=((None, 4),)), Tenant("b", limit=((None, 6),)))
    world = QueueWorld(8, tenants=tenants)
    world.backend.script("*", runs_s=5000.0, stops_after_s=5.0)
    borrowed = world.submit(*[new(f"b{number}", 2, "b") for number in range(4)])
    world.passes(3)
    assert world.states(*borrowed).count(State.RUNNING) == 3
    world.clock.advance(700.0)
    own = world.submit(new("own", 4, "a"))
    world.passes(15)
    assert world.states(*own) == [State.RUNNING]
    assert {job.reason for job_id in borrowed if (job := world.job(job_id)).interruptions} == {Reason.RECLAIMED}


def test_a_lost_node_gives_its_jobs_to_others_and_a_drained_one_is_left() -> None:
    world = QueueWorld(2, 2, 2)
    world.backend.script("*", runs_s=300.0)
    ids = world.submit(new("one", 2), new("two", 2))
    world.passes(2)
    lost = world.job(ids[0]).placement[0][0]
    world.backend.lose_node(lost)
    world.passes(3)
    job = world.job(ids[0])
    assert job.state is State.RUNNING and job.retries == {Reason.NODE_LOST: 1} and job.placement[0][0] != lost
    left = world.job(ids[1]).placement[0][0]
    world.store.put_node_rule(NodeRule(left, NodeOrder.DRAIN, "test", "a fan", world.clock()))
    world.passes(3)
    assert world.job(ids[1]).state is State.QUEUED and world.job(ids[1]).reason is Reason.DRAINED
    world.until_all_end()
    assert left not in {node for lease in world.store.leases() if lease.attempt > 1 for node, _ in lease.placement}


def test_what_can_never_start_fails_and_one_that_stays_pending_is_tried_again() -> None:
    world = QueueWorld(2)
    world.backend.refuse("wrong-*", "no such program")
    (wrong,) = world.submit(new("wrong"))
    world.passes(3)
    assert world.states(wrong) == [State.FAILED] and world.job(wrong).message == "no such program"
    tried: list[str] = []

    def once(launch: Launch) -> None:
        tried.append(launch.submission)

    world.backend.script_by(once)
    world.backend.never_start("slow-*-1")
    (slow,) = world.submit(new("slow"))
    world.until_all_end(each_s=30.0)
    assert world.states(slow) == [State.SUCCEEDED] and world.job(slow).attempt == 2


def test_a_run_time_that_is_over_ends_the_job() -> None:
    world = QueueWorld(2)
    world.backend.script("*", runs_s=10_000.0)
    (job_id,) = world.submit(new("long", max_runtime_s=50.0))
    world.until_all_end()
    assert world.job(job_id).reason is Reason.TIMED_OUT and 45.0 < world.job(job_id).attained_s < 70.0


@pytest.mark.parametrize("how", ["unreachable", "answers_lost"])
def test_machines_that_do_not_answer_cost_time_and_nothing_else(how: str) -> None:
    world = QueueWorld(4)
    ids = world.submit(*[new(f"job{number}", 2) for number in range(6)])
    for _ in range(10):
        world.passes(1)
        with getattr(world.backend, how)():
            for _ in range(3):
                world.clock.advance(7.0)
                with pytest.raises(BackendUnreachable):
                    world.server.step()
    world.until_all_end()
    assert set(world.states(*ids)) == {State.SUCCEEDED}
    assert all(world.job(job_id).attempt == 1 for job_id in ids)


def test_a_stray_driver_of_an_attempt_that_is_over_is_ended() -> None:
    world = QueueWorld(4)
    (job_id,) = world.submit(new("job"))
    world.passes(2)
    world.backend.start(Launch(f"{job_id}-0", ("x",)), fence=1)  # as if a server had been slow
    world.clock.advance(1.0)
    world.server.step()
    world.passes(0)
    assert {one.submission: one.phase for one in world.backend.submissions() if not one.ended} == {
        world.job(job_id).submission: Phase.RUNNING
    }


def test_a_hard_stop_that_got_lost_is_sent_again_and_one_dead_end_holds_up_nobody() -> None:
    world = QueueWorld(4)
    world.backend.script("*", runs_s=10_000.0)
    world.backend.ignore_soft_stop("deaf-*")
    lost: list[str] = []

    class Loses(FakeBackend):
        def stop(self, submission: str, *, hard: bool = False) -> None:
            if hard and not lost:
                lost.append(submission)
                raise BackendUnreachable("once")
            super().stop(submission, hard=hard)

        def start(self, launch: Launch, fence: int) -> None:
            if launch.submission.startswith("poison"):
                raise BackendUnreachable("each time")
            super().start(launch, fence)

    world.server = world.another("other", backend=Loses(world.cluster))
    deaf, poison, good = world.submit(new("deaf"), new("poison"), new("good"))

    def passes(number: int) -> None:
        for _ in range(number):
            with contextlib.suppress(BackendUnreachable):
                world.passes(1)

    passes(3)
    assert world.states(deaf, good) == [State.RUNNING, State.RUNNING] and world.states(poison) == [State.STARTING]
    world.store.ask(deaf, Change(wanted=DesiredState.CANCEL), world.clock(), "test")
    world.store.ask(poison, Change(wanted=DesiredState.CANCEL), world.clock(), "test")
    passes(5)
    assert world.states(poison) == [State.STOPPING]  # its start may still happen
    passes(80)
    assert world.states(deaf, poison, good) == [State.CANCELLED, State.CANCELLED, State.RUNNING] and lost


def test_a_spec_that_nothing_can_be_started_from_fails_its_job_and_no_other() -> None:
    world = QueueWorld(4)
    world.server = world.another("other", launch=refuses_poison)
    poison, good = world.submit(new("poison"), new("good"))
    world.until_all_end()
    assert world.states(poison, good) == [State.FAILED, State.SUCCEEDED]
    assert world.job(poison).message == "the spec has no command"


def refuses_poison(job: Job) -> Launch:
    if job.name == "poison":
        raise SpecError("the spec has no command")
    return launch_of(job)


def test_a_queue_in_which_nothing_changes_is_looked_at_in_time_for_what_time_alone_brings() -> None:
    world = QueueWorld(4)
    (job_id,) = world.submit(new("later", not_before_s=world.clock.now_s() + 10.0))
    world.passes(9)
    assert world.states(job_id) == [State.QUEUED]
    world.passes(2)
    assert world.states(job_id) != [State.QUEUED]


def test_what_the_queue_wishes_for_follows_it_from_pass_to_pass() -> None:
    world = QueueWorld(4, growth=Growth((NodeType(Node("gpu", 64, 4), 3),), 3))
    world.backend.script("*", runs_s=1e6)
    small, large = world.submit(new("small", 2), new("large", 8))
    world.passes(2)
    assert world.states(small, large) == [State.RUNNING, State.QUEUED]
    assert world.server.demand() == Demand(({"CPU": 64, "GPU": 4},) * 3, (large,))
    for name in ("n1", "n2"):
        world.backend.add_node(name, gpus=4, accelerator_type=None)
    world.passes(3)
    assert world.states(large) == [State.RUNNING]
    assert world.server.demand() == Demand(({"CPU": 64, "GPU": 4},) * 3)  # what is leased is not to be taken away
    world.store.ask(large, Change(wanted=DesiredState.CANCEL), world.clock(), "test")
    world.passes(3)
    assert world.server.demand() == Demand(({"CPU": 64, "GPU": 4},))
    world.store.ask(small, Change(wanted=DesiredState.CANCEL), world.clock(), "test")
    world.until_all_end()
    world.passes(1)
    assert world.server.demand() == Demand()


def test_what_the_queue_wishes_for_follows_time_and_limits_too() -> None:
    """In a queue in which nothing else changes."""
    pool = Growth((NodeType(Node("gpu", 64, 4), 3),), 3)
    world = QueueWorld(4, growth=pool, tenants=(Tenant("a", limit=((None, 4),)), Tenant("b")))
    world.backend.script("*", runs_s=1e9)
    _, second, later = world.submit(
        new("first", 4), new("second", 4), new("later", 8, tenant="b", not_before_s=world.clock.now_s() + 60.0)
    )
    world.passes(3)
    assert world.server.demand().waiting == ()
    world.store.put_tenant(Tenant("a", limit=((None, 8),)), world.clock())
    world.passes(2, 5.0)
    assert world.server.demand().waiting == (second,)
    world.passes(12, 5.0)
    assert later in world.server.demand().waiting


def test_waiting_for_the_own_tenants_limit_gives_no_right_to_go_before_others() -> None:
    """Eight days behind the own limit are no wait for nodes, also not for a server that comes later."""
    world = QueueWorld(2, tenants=(Tenant("a", limit=((None, 1),)), Tenant("b")))
    day_s = 86_400.0
    world.backend.script("*", runs_s=8 * day_s)
    first, other = world.submit(new("first"), new("other", tenant="b", priority=5))
    world.passes(3)
    (backlog,) = world.submit(new("backlog"))
    assert world.states(first, other, backlog) == [State.RUNNING, State.RUNNING, State.QUEUED]
    world.passes(95, day_s / 24)
    world.server = world.another("second")
    world.passes(96, day_s / 24)
    assert world.states(first, backlog) == [State.RUNNING, State.QUEUED]
    (urgent,) = world.submit(new("urgent", tenant="b", priority=5))
    world.backend.script("urgent*", runs_s=day_s / 2)
    world.passes(4, day_s / 24)
    assert world.states(first, urgent) == [State.SUCCEEDED, State.RUNNING]
    world.passes(13, day_s / 24)
    assert world.states(backlog) == [State.RUNNING] and world.job(backlog).waited_s < day_s
