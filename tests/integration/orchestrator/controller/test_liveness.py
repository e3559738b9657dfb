"""No job holds nodes for ever or loses its budgets for nothing: silence, progress, clocks, deadlines of drains."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.capacity.inventory import Inventory
from cluster.errors import BackendUnreachable
from cluster.testing import FakeBackend
from orchestrator.queue.clock import SystemClock
from orchestrator.queue.records import NodeOrder, NodeRule
from orchestrator.queue.states import Reason, State
from tests.support.queueworld import QueueWorld, new


def test_progress_restores_the_retry_budgets_and_dying_at_the_same_step_does_not() -> None:
    world = QueueWorld(4)
    world.backend.script("*", runs_s=1e9)
    (job_id,) = world.submit(new("long"))

    def lost(saved_step: int) -> None:
        while world.job(job_id).state is not State.RUNNING:
            world.passes(1, 100.0)
        world.speak(job_id, step=saved_step + 7, saved_step=saved_step)
        world.backend.lose(world.job(job_id).submission)
        world.passes(1)

    for day in range(6):
        world.clock.advance(10 * 86400.0)
        lost(100 * (day + 1))
    job = world.job(job_id)
    assert (job.state, job.restored_at_step, job.retries) == (State.QUEUED, 600, {Reason.DRIVER_LOST: 1})
    for _ in range(5):
        lost(600)
    assert world.job(job_id).state is State.FAILED and "5 times" in world.job(job_id).message


def test_a_clock_that_jumps_ahead_for_an_hour_moves_no_job() -> None:
    world, off_s, said = QueueWorld(4), [0.0], list[str]()
    clock = SystemClock(0.0, said.append, lambda: world.clock() + off_s[0], world.clock.steady_s)
    world.server = world.another("jumps", clock=clock)
    world.backend.script("*", runs_s=1e9)
    tomorrow_s = world.clock() + 86400.0
    limited, later = world.submit(new("limited", max_runtime_s=3 * 3600.0), new("later", not_before_s=tomorrow_s))
    world.passes(3)
    off_s[0] = 10 * 365 * 86400.0
    world.passes(60, 60.0)
    off_s[0] = 0.0
    world.passes(60, 60.0)
    assert world.states(limited, later) == [State.RUNNING, State.QUEUED]
    assert len(said) == 2 and "has jumped ahead" in said[0] and "right again" in said[1]
    world.passes(61, 60.0)
    assert world.job(limited).reason is Reason.TIMED_OUT and world.job(limited).attained_s < 4 * 3600.0
    leader = world.store.leader()
    assert leader is not None and leader.expires_s < world.clock() + 60.0


def test_after_a_server_that_began_ten_years_ahead_the_queue_comes_back_to_now() -> None:
    world, off_s, said = QueueWorld(4), [10 * 365 * 86400.0], list[str]()
    clock = SystemClock(0.0, said.append, lambda: world.clock() + off_s[0], world.clock.steady_s)
    world.server = world.another("ahead", clock=clock, silent_s=4 * 3600.0)
    world.backend.script("*", runs_s=1e9)
    (limited,) = world.submit(new("limited", max_runtime_s=6 * 3600.0))
    world.passes(1)
    world.speak(limited, at_s=clock.now_s())
    world.passes(2)
    assert (world.job(limited).started_s or 0.0) > world.clock() + 9 * 365 * 86400.0
    off_s[0] = 0.0
    world.passes(121, 60.0)
    assert "followed from now on" in said[-1]
    world.passes(1)
    started_s = world.job(limited).started_s
    assert started_s is not None and abs(started_s - world.clock()) < 120.0  # what it ran before is not known
    leader = world.store.leader()
    assert leader is not None and leader.expires_s < world.clock() + 60.0
    (new_one,) = world.submit(new("new"))
    world.passes(1)
    world.speak(new_one)
    world.passes(2)
    assert world.states(limited, new_one) == [State.RUNNING, State.RUNNING]
    for _ in range(365):  # its driver speaks all the time
        world.speak(limited, at_s=clock.now_s())
        world.passes(1, 60.0)
    assert (world.job(limited).reason, world.job(limited).attempt) == (Reason.TIMED_OUT, 1)


def test_a_driver_that_never_registers_gives_its_lease_back_and_does_not_hold_it_for_ever() -> None:
    world = QueueWorld(4)
    world.server = world.another("strict", silent_s=3600.0)
    world.backend.script("*", runs_s=1e9, stops_after_s=20.0)
    (lost,) = world.submit(new("lost", 4))
    world.passes(100, 2.0)
    assert world.states(lost) == [State.STARTING]  # its program runs, and has said nothing
    world.passes(60, 2.0)
    assert world.states(lost) == [State.STOPPING]  # the lease is kept until it is seen to have ended
    assert world.job(lost).reason is Reason.SILENT and "did not register" in world.job(lost).message
    world.passes(20, 2.0)
    assert world.job(lost).retries == {Reason.SILENT: 1}
    world.until_all_end(each_s=20.0)
    job = world.job(lost)
    assert (job.state, job.reason, job.attempt) == (State.FAILED, Reason.SILENT, 6)


def test_only_silence_while_a_server_listens_counts_and_a_word_to_any_server_ends_it() -> None:
    world = QueueWorld(4)
    world.server = world.another("strict", silent_s=3600.0)
    world.backend.script("*", runs_s=1e9)
    talks, quiet = world.submit(new("talks", 2), new("quiet", 2))
    world.passes(1)
    world.speak(talks, quiet)
    world.passes(2)
    assert world.states(talks, quiet) == [State.RUNNING, State.RUNNING]
    world.passes(100, 30.0)
    world.clock.advance(10 * 3600.0)  # nobody leads, and nobody could be heard
    for _ in range(15):
        world.passes(1, 30.0)
        world.speak(talks)
    assert world.states(talks, quiet) == [State.RUNNING, State.RUNNING]
    world.server = world.another("next", silent_s=3600.0)  # which has not listened before
    world.clock.advance(3600.0)
    for _ in range(118):
        world.passes(1, 30.0)
        world.speak(talks)
    assert world.states(talks, quiet) == [State.RUNNING, State.RUNNING]
    world.passes(5, 30.0)
    assert world.states(talks) == [State.RUNNING] and world.job(quiet).reason is Reason.SILENT


def test_only_time_in_which_a_server_looks_counts_against_a_driver_that_does_not_come_up() -> None:
    world = QueueWorld(4)
    world.backend.never_start("*")
    (waits,) = world.submit(new("waits", 4))
    world.passes(100, 5.0)
    world.clock.advance(10 * 3600.0)  # the server is frozen
    world.passes(2)
    assert (world.job(waits).state, world.job(waits).attempt) == (State.STARTING, 1)
    world.server = world.another("next")
    world.clock.advance(3600.0)
    with world.backend.unreachable():
        for _ in range(20):
            world.clock.advance(60.0)
            with pytest.raises(BackendUnreachable):
                world.server.step()
    world.passes(110, 5.0)
    assert (world.job(waits).state, world.job(waits).attempt) == (State.STARTING, 1)
    world.passes(20, 5.0)
    assert world.job(waits).retries == {Reason.NOT_STARTED: 1} and world.job(waits).attempt == 2


class Forgetful(FakeBackend):
    """Machines whose nodes register again one after the other, as after a restart of Ray's head."""

    missing: frozenset[str] = frozenset()

    def inventory(self) -> Inventory:
        there = super().inventory()
        return replace(there, nodes=tuple(node for node in there.nodes if node.node_id not in self.missing))


def test_a_node_that_is_missing_when_the_server_looks_again_after_a_pause_gets_its_time_to_come_back() -> None:
    world = QueueWorld(4, 4)
    backend = Forgetful(world.cluster)
    world.server = world.another("pauses", backend=backend)
    backend.script("*", runs_s=1e9)
    ids = world.submit(new("one", 4), new("two", 4))
    world.passes(3)
    backend.missing = frozenset({"n0", "n1"})
    world.clock.advance(3600.0)
    world.passes(2)
    assert world.states(*ids) == [State.RUNNING, State.RUNNING]
    backend.missing = frozenset({"n1"})
    world.passes(3)
    assert sorted(world.states(*ids)) == sorted([State.RUNNING, State.QUEUED])


def test_a_drain_stops_what_may_not_be_interrupted_once_its_deadline_is_over() -> None:
    world = QueueWorld(2, 2)
    world.backend.script("*", runs_s=1e9)
    (stays,) = world.submit(new("stays", 2, preemptible=False))
    world.passes(2)
    node, now_s = world.job(stays).placement[0][0], world.clock()
    world.store.put_node_rule(NodeRule(node, NodeOrder.DRAIN, "test", "", now_s, now_s + 7200.0))
    world.passes(119, 60.0)
    assert world.states(stays) == [State.RUNNING] and world.job(stays).attempt == 1
    world.passes(4, 60.0)
    job = world.job(stays)
    assert (job.state, job.attempt, job.retries) == (State.RUNNING, 2, {Reason.DRAINED: 1})
    assert job.placement[0][0] != node
