"""Servers that come and go, on a made-up cluster: killed at any call, frozen, and with clocks that are wrong."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import pytest

from cluster.backend import Launch, Phase
from cluster.errors import Fenced
from cluster.testing import FakeBackend, FakeCluster, Script
from orchestrator.controller.machines import Machines
from orchestrator.queue.errors import JobEnded, OtherMachines
from orchestrator.queue.states import DesiredState, State
from orchestrator.queue.store import Change
from tests.support.queueworld import START_S, TERM_S, QueueWorld, new


def test_a_second_server_waits_and_takes_over_what_the_first_has_begun() -> None:
    world = QueueWorld(4)
    ids = world.submit(*[new(f"job{number}", 2) for number in range(4)])
    second = world.another("second")
    world.passes(3)
    assert not second.step()
    started = {run.submission for run in world.backend.history()}
    world.clock.advance(TERM_S + 1.0)  # the first is gone
    assert second.step() and not world.server.step()
    assert {run.submission for run in world.backend.history()} == started
    world.server = second
    world.until_all_end()
    assert set(world.states(*ids)) == {State.SUCCEEDED} and all(world.job(job_id).attempt == 1 for job_id in ids)


def test_a_server_that_was_frozen_in_the_middle_of_a_pass_neither_writes_nor_starts() -> None:
    world = QueueWorld(4)
    world.passes(1)
    frozen, second = world.server, world.another("second")
    (job_id,) = world.submit(new("job", 4))
    inventory = world.backend.inventory

    def freeze() -> object:  # the frozen one has read the queue, and goes on only when another one leads
        world.backend.inventory = inventory  # type: ignore[method-assign]
        world.clock.advance(TERM_S + 1.0)
        assert second.step()
        world.backend.stop(world.job(job_id).submission, hard=True)
        return inventory()

    world.backend.inventory = freeze  # type: ignore[method-assign, assignment]
    assert not frozen.step()
    assert [run.fence for run in world.backend.history()] == [2]
    assert world.job(job_id).attempt == 1


def test_a_server_that_was_frozen_before_a_start_does_not_start_a_job_that_has_ended_since() -> None:
    world = QueueWorld(4)
    second = world.another("second")
    (job_id,) = world.submit(new("job", 4))

    class Freezes(FakeBackend):
        """Frozen right before its first start, while another server sees the job cancelled before it ever ran."""

        def start(self, launch: Launch, fence: int) -> None:
            world.store.ask(job_id, Change(wanted=DesiredState.CANCEL), world.clock(), "test")
            world.clock.advance(TERM_S + 1.0)
            assert second.step() and world.states(job_id) == [State.CANCELLED]
            super().start(launch, fence)

    first = world.another("first", backend=Freezes(world.cluster))
    assert not first.step()
    assert not world.backend.history() and world.states(job_id) == [State.CANCELLED]


def test_a_leader_whose_clock_was_set_back_is_followed_after_one_term() -> None:
    world = QueueWorld(4)
    world.passes(1)
    leader = world.store.leader()
    assert leader is not None and leader.expires_s > START_S
    world.store.lead(leader.holder, "x", world.clock() + 86_400.0, TERM_S)  # as if its clock had run a day ahead
    second = world.another("second")
    assert not second.step()
    world.clock.advance(TERM_S - 1.0)
    assert not second.step()
    world.clock.advance(2.0)
    assert second.step()


def test_a_new_leader_stops_nobody_while_those_of_the_last_one_still_stop() -> None:
    world = QueueWorld(2, 2)
    world.backend.script("*", runs_s=5000.0, stops_after_s=20.0)
    low = world.submit(new("low", 2), new("low", 2))
    world.passes(2)
    world.clock.advance(700.0)
    world.passes(1)
    (high,) = world.submit(new("high", 2, priority=5))
    world.passes(2)
    assert sorted(world.states(*low)) == [State.RUNNING, State.STOPPING]
    second = world.another("second")
    world.clock.advance(TERM_S + 1.0)
    world.server = second
    world.passes(2)
    assert State.RUNNING in world.states(*low)
    world.passes(10)
    assert world.states(high) == [State.RUNNING] and sorted(world.states(*low)) == [State.QUEUED, State.RUNNING]


class Killed(BaseException):
    """The server's process is gone, before or after what it was about to do."""


class Mortal:
    """Passes calls on, until one of them is the last."""

    def __init__(self, inner: Any, left: list[int], before: bool) -> None:
        self._inner, self._left, self._before = inner, left, before

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)

        def call(*arguments: Any, **more: Any) -> Any:
            self._left[0] -= 1
            if self._left[0] == 0 and self._before:
                raise Killed
            answer = method(*arguments, **more)
            if self._left[0] == 0:
                raise Killed
            return answer

        return call


def test_a_server_killed_at_a_hundred_moments_loses_nothing_and_runs_nothing_twice() -> None:
    chance = random.Random(5)
    world = QueueWorld(8, 8, 4)
    world.backend.script_by(
        lambda launch: Script(
            runs_s=chance.choice((0.0, 5.0, 60.0, 900.0)),
            exit_code=chance.choice((0, 0, 0, 0, 1)),
            starts_after_s=chance.choice((0.0, 0.0, 3.0)),
            stops_after_s=chance.choice((0.0, 10.0)),
        )
    )
    ids: list[str] = []
    for kill in range(100):
        ids += world.submit(
            *[
                new(
                    f"job{number}",
                    chance.choice((1, 1, 2, 4, 8, 12)),
                    chance.choice("ab"),
                    priority=chance.choice((0, 0, 5)),
                )
                for number in range(2)
            ]
        )
        if chance.random() < 0.2:
            wanted = chance.choice((DesiredState.CANCEL, DesiredState.PAUSE))
            with contextlib.suppress(JobEnded):
                world.store.ask(chance.choice(ids), Change(wanted=wanted), world.clock(), "test")
        left, before = [chance.randrange(1, 60)], chance.random() < 0.5
        store, backend = Mortal(world.store, left, before), Mortal(world.backend, left, before)
        world.server = world.another(f"server{kill}", store, backend)
        with contextlib.suppress(Killed):
            while True:
                world.passes(1, chance.choice((0.5, 5.0, 30.0)))
        world.check()
        world.clock.advance(TERM_S + 1.0)
    for job_id in ids:
        if world.job(job_id).wanted is DesiredState.PAUSE:
            with contextlib.suppress(JobEnded):
                world.store.ask(job_id, Change(wanted=DesiredState.RUN), world.clock(), "test")
    world.server = world.another("last")
    world.until_all_end(each_s=20.0)
    assert len(ids) == 200 and not world.store.leases(held=True)
    for job_id in ids:
        job = world.job(job_id)
        mine = [run for run in world.backend.history() if run.submission.startswith(f"{job_id}-")]
        assert job.state in (State.SUCCEEDED, State.FAILED, State.CANCELLED)
        # None was granted in vain, and none ran but those. One that is asked to end or to pause while no server lives
        # may not have been started yet.
        asked = any(event.kind == "asked" for event in world.store.events(job_id))
        assert len(mine) == job.attempt or (asked and len(mine) < job.attempt)
        assert job.state is State.CANCELLED or mine[-1].phase is (
            Phase.SUCCEEDED if job.state is State.SUCCEEDED else Phase.FAILED
        )


def test_what_a_server_had_seen_before_another_one_led_is_not_acted_on_when_it_leads_again() -> None:
    world = QueueWorld(4)
    second = world.another("second")
    (job_id,) = world.submit(new("job", 4))

    class Freezes(FakeBackend):
        """Frozen right before a start; meanwhile the job is cancelled, another one runs, and the second leader dies."""

        def submissions(self) -> Any:
            found = super().submissions()
            if not world.store.leases():
                return found
            world.store.ask(job_id, Change(wanted=DesiredState.CANCEL), world.clock(), "test")
            for _ in range(2):
                world.clock.advance(TERM_S + 1.0)
                second.step()
            world.submit(new("other", 4))
            second.step()
            world.clock.advance(TERM_S + 1.0)
            return found

    first = world.another("first", backend=Freezes(world.cluster))
    first.step()
    world.clock.advance(1.0)
    first.step()
    world.check()
    assert all(job_id not in run.submission for run in world.backend.history() if run.ended_s is None)


def test_a_store_of_an_older_state_says_that_the_machines_know_better_and_takes_over_only_when_told() -> None:
    world = QueueWorld(4)
    world.backend.fence(3)  # of leaders that this store has never heard of
    (job_id,) = world.submit(new("job", 4))
    world.clock.advance(1.0)
    with pytest.raises(Fenced, match="--take-over"):
        world.server.step()
    assert not world.backend.history() and world.states(job_id) == [State.QUEUED]
    world.clock.advance(TERM_S + 1.0)
    world.server = world.another("told", takes_over=True)
    world.until_all_end()
    assert world.states(job_id) == [State.SUCCEEDED]
    assert [run.fence for run in world.backend.history()] == [3]


HERE = Machines("Ray at http://a:8265", "with --address http://a:8265", frozenset({"ray a:8265"}))
THERE = Machines("Ray at http://b:8265", "with --address http://b:8265", frozenset({"ray b:8265"}))


def test_a_server_with_other_machines_leads_only_when_no_job_holds_a_lease_on_the_known_ones() -> None:
    world = QueueWorld(4)
    world.server = world.another("right", machines=HERE)
    (job_id,) = world.submit(new("job", 4))
    world.passes(3)
    elsewhere = FakeBackend(FakeCluster(world.backend.inventory(), world.clock))
    wrong = world.another("wrong", backend=elsewhere, machines=THERE)
    world.clock.advance(TERM_S + 1.0)  # the right one is gone, and its jobs go on
    words = "1 job .* on Ray at http://a:8265.*has Ray at http://b:8265.*with --address http://a:8265.*--take-over"
    for _ in range(2):
        with pytest.raises(OtherMachines, match=words):
            wrong.step()
    assert world.states(job_id) == [State.RUNNING] and not elsewhere.history()
    assert world.server.step()  # at once: the wrong one has not taken the leadership
    world.until_all_end()
    world.submit(new("next", 4))
    world.clock.advance(TERM_S + 1.0)
    assert wrong.step()
    assert [run.submission.partition("-")[0] for run in elsewhere.history()] == ["next"]
    world.clock.advance(TERM_S + 1.0)
    with pytest.raises(OtherMachines, match="on Ray at http://b:8265"):
        world.server.step()


def test_a_server_with_other_machines_gives_way_when_a_job_starts_while_it_takes_the_leadership() -> None:
    world = QueueWorld(4)
    world.server = world.another("right", machines=HERE)
    world.passes(1)
    (job_id,) = world.submit(new("job", 4))
    wrong = world.another("wrong", machines=THERE)
    lead = world.store.lead

    def lead_later(*given: Any) -> Any:  # the right one does one more pass between the check and the leadership
        world.store.lead = lead  # type: ignore[method-assign]
        world.passes(1)
        world.clock.advance(TERM_S - 4.0)
        return lead(given[0], given[1], world.clock(), given[3])

    world.store.lead = lead_later  # type: ignore[method-assign, assignment]
    world.clock.advance(3.5)
    with pytest.raises(OtherMachines):
        wrong.step()
    assert world.states(job_id) != [State.QUEUED]
    assert world.server.step() and world.job(job_id).attempt == 1  # need not wait for the end of a term


def test_machines_are_the_same_with_the_address_or_with_the_session_of_before_and_can_be_given_up() -> None:
    world = QueueWorld(4)
    world.backend.script("*", runs_s=1000.0)
    world.server = world.another("first", machines=HERE, session=lambda: "session 1")
    (job_id,) = world.submit(new("job", 4))
    world.passes(2)

    def leads(machines: Machines, session: str, takes_over: bool = False) -> bool:
        world.clock.advance(TERM_S + 1.0)
        return world.another("next", machines=machines, session=lambda: session, takes_over=takes_over).step()

    assert leads(THERE, "session 1")  # another name of the same head
    assert leads(THERE, "session 2")  # its head was started anew
    with pytest.raises(OtherMachines):
        leads(HERE, "session 1")
    assert leads(HERE, "", takes_over=True)
    assert leads(HERE, "")
    assert world.states(job_id) == [State.RUNNING]
