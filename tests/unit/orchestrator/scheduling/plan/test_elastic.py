"""Jobs that may have fewer workers or more: they start with what there is, make room, and grow when nobody waits."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.capacity.inventory import Node
from orchestrator.queue.tenants import Tenant
from orchestrator.scheduling.forecast.queue_simulation import Attempt, EndReason, Measuring, QueueSimulation
from orchestrator.scheduling.plan.decisions import Cause, Interrupt, Start
from orchestrator.scheduling.plan.plan import plan
from orchestrator.scheduling.policy import DEFAULT, Policy
from tests.support.randomqueue import PLAIN, PREEMPTING, Drawn, drawn, many
from tests.support.scheduling import HOUR, NOW_S, Job, carry_out, nodes, snapshot, violations

LONG = 500 * HOUR


def decided(
    machines: Sequence[Node], jobs: Sequence[Job], policy: Policy = DEFAULT, **more: Sequence[object]
) -> list[str]:
    """`a 0:4`: starts there with so many; `a stops`, or `a stops for b`."""
    made = plan(snapshot(machines, jobs, **more), policy)  # type: ignore[arg-type]
    found = []
    for one in made.decisions:
        name = jobs[one.row].name
        if isinstance(one, Start):
            found.append(f"{name} {' '.join(f'{node}:{workers}' for node, workers in one.placement)}")
        else:
            whose = "" if one.for_row is None else f" for {jobs[one.for_row].name}"
            found.append(f"{name} stops{whose}: {one.cause.value}")
    return found


def elastic(name: str = "a", *sizes: int, on: dict[int, int] | None = None, **more: float) -> Job:
    held = sum((on or {}).values()) or sizes[0]
    return Job(name, held, on=on or {}, sizes=sizes, **more)  # type: ignore[arg-type]


def test_it_starts_with_as_many_as_there_is_room_for() -> None:
    job = elastic("a", 2, 4, 8)
    assert decided(nodes(8), [job]) == ["a 0:8"]
    assert decided(nodes(7), [job]) == ["a 0:4"]
    assert decided(nodes(3), [job]) == ["a 0:2"]
    assert decided(nodes(1), [job]) == []
    assert decided(nodes(4, 4), [job]) == ["a 0:4 1:4"]


def test_those_that_wait_start_before_it_gets_more_than_the_least() -> None:
    assert decided(nodes(8), [elastic("a", 2, 4, 8, left_s=60.0), Job("b", 2, left_s=HOUR)]) == ["b 0:2", "a 0:4"]
    two = [elastic("a", 2, 4, 8, left_s=60.0), elastic("b", 2, 4, 8, left_s=HOUR)]
    assert decided(nodes(8), two) == ["b 0:2", "a 0:4"] or decided(nodes(8), two) == ["a 0:4", "b 0:4"]


def test_it_goes_on_with_fewer_for_one_that_has_no_room() -> None:
    jobs = [elastic("a", 2, 4, 8, on={0: 8}, left_s=HOUR), Job("b", 4, left_s=HOUR)]
    assert decided(nodes(8), jobs) == ["a stops for b: resized", "b 0:4", "a 0:4"]
    assert decided(nodes(8), [jobs[0], replace(jobs[1], gpus=6)]) == ["a stops for b: resized", "b 0:6", "a 0:2"]


def test_nobody_is_shrunk_below_the_least_for_a_lower_class_in_its_first_minutes_or_against_its_will() -> None:
    a, b = elastic("a", 4, 8, on={0: 8}, left_s=HOUR), Job("b", 4, left_s=HOUR)
    assert decided(nodes(8), [a, b]) == ["a stops for b: resized", "b 0:4", "a 0:4"]
    for other in (
        replace(a, sizes=(6, 8)),
        replace(a, priority=1),
        replace(a, running_s=DEFAULT.protected_s - 1),
        replace(a, preemptible=False),
        replace(a, cost_s=DEFAULT.move_worth_s),  # 8 GPUs stand still for it; it gets 4
    ):
        assert decided(nodes(8), [other, b]) == []


def test_several_are_shrunk_where_one_is_not_enough() -> None:
    jobs = [elastic("a", 2, 4, on={0: 4}, left_s=HOUR), elastic("b", 2, 4, on={0: 4}, left_s=HOUR), Job("c", 4)]
    stops = ["a stops for c: resized", "b stops for c: resized"]
    assert decided(nodes(8), [*jobs[:2], replace(jobs[2], left_s=HOUR)]) == [*stops, "c 0:4", "a 0:2", "b 0:2"]


def test_who_is_preempted_goes_on_with_what_is_left() -> None:
    jobs = [elastic("a", 2, 8, on={0: 8}, left_s=LONG, cost_s=DEFAULT.move_worth_s), Job("b", 4, priority=1)]
    assert decided(nodes(8), jobs) == ["a stops for b: preempted", "b 0:4", "a 0:2"]


def test_it_grows_when_nobody_waits_and_it_pays() -> None:
    a = elastic("a", 2, 4, 8, on={0: 2}, left_s=HOUR, cost_s=60.0)
    assert decided(nodes(8), [a]) == ["a stops: resized", "a 0:8"]
    assert decided(nodes(8), [replace(a, running_s=60.0)]) == []  # its first minutes
    assert decided(nodes(8), [replace(a, left_s=150.0)]) == []  # 3/4 of which are less than twice 60 s
    assert decided(nodes(8), [replace(a, on={0: 8}, gpus=8)]) == []
    assert decided(nodes(8), [a], replace(DEFAULT, preemption=False)) == []
    assert decided(nodes(8), [a, Job("x", 2, on={0: 2}, preemptible=False), Job("wide", 8)]) == []
    assert decided(nodes(8), [a, Job("never", 16)]) == ["a stops: resized", "a 0:8"]
    assert decided(nodes(8), [a, Job("held", 16, held=True)]) == ["a stops: resized", "a 0:8"]


def test_one_that_waits_for_its_own_limit_keeps_nobody_from_growing() -> None:
    tenants = (Tenant("a"), Tenant("b", limit=((None, 1),)))
    jobs = [elastic("a", 2, 8, on={0: 2}, left_s=HOUR), Job("b", 2, tenant=1)]
    assert decided(nodes(8), jobs, tenants=tenants) == ["a stops: resized", "a 0:8"]


def test_no_size_is_beyond_the_limit_of_its_tenant() -> None:
    tenants = (Tenant("a", limit=((None, 5),)),)
    assert decided(nodes(8), [elastic("a", 2, 4, 8)], tenants=tenants) == ["a 0:4"]
    assert decided(nodes(8), [elastic("a", 2, 4, 8, on={0: 2}, left_s=HOUR)], tenants=tenants) == [
        "a stops: resized",
        "a 0:4",
    ]


def test_the_snapshot_stays_as_it_was_and_a_growth_names_nobody() -> None:
    jobs = [elastic("a", 2, 8, on={0: 2}, left_s=HOUR)]
    before = snapshot(nodes(8), jobs)
    made = plan(before, DEFAULT)
    assert made.decisions[0] == Interrupt(0, Cause.RESIZED, None) and before.jobs.gang_of(0).num_workers == 2


def test_one_that_takes_only_cpus_of_a_node_with_gpus_grows_there_and_shrinks_for_others() -> None:
    by_cpu = elastic("a", 2, 4, on={0: 2}, gpus_per_worker=0, left_s=HOUR)
    assert decided(nodes(8, cpus=4), [by_cpu]) == ["a stops: resized", "a 0:4"]
    larger = elastic("a", 2, 4, on={0: 4}, gpus_per_worker=0, left_s=HOUR)
    assert decided(nodes(8, cpus=5), [larger, Job("b", 3)]) == ["a stops for b: resized", "b 0:3", "a 0:2"]
    assert decided(nodes(8, cpus=3), [by_cpu]) == []
    assert decided(nodes(8), [by_cpu, Job("x", 2, on={0: 2}, preemptible=False), Job("b", 8)]) == []


def test_one_on_a_node_that_is_not_seen_is_left_alone() -> None:
    before = snapshot(nodes(8), [elastic("a", 2, 4, on={0: 2}), Job("b", 8)])
    before.cluster.slots[before.cluster.slots == 0] = -2  # absent
    assert plan(before, DEFAULT).decisions == ()


def test_what_is_lent_takes_no_guarantee_away_and_is_given_back_to_who_has_none() -> None:
    """4 are guaranteed, and 8 held: nobody takes the 4, whatever its class, and anybody the others."""
    tenants = (Tenant("a", guaranteed=((None, 4),)), Tenant("b"))
    owed, b = elastic("a", 4, 8, on={0: 8}, left_s=HOUR), Job("b", 8, tenant=1, priority=1)
    assert decided(nodes(8), [owed, b], tenants=tenants) == []
    smaller = replace(b, gpus=4)
    assert decided(nodes(8), [owed, smaller], tenants=tenants) == ["a stops for b: resized", "b 0:4", "a 0:4"]


def test_a_tenants_own_jobs_get_what_its_limit_has_been_lent_for() -> None:
    tenants = (Tenant("a", limit=((None, 4),)),)
    jobs = [elastic("a", 1, 4, on={0: 4}, left_s=LONG), Job("b", 1, left_s=60.0)]
    assert decided(nodes(8), jobs, tenants=tenants) == ["a stops for b: resized", "b 0:1", "a 0:1"]
    jobs = [elastic("a", 1, 4, on={0: 1}, left_s=LONG), Job("b", 4, left_s=60.0, priority=-1)]
    assert decided(nodes(8), jobs, tenants=tenants) == []  # b waits for the limit, and a takes no more of it


def test_it_stays_on_nodes_of_its_kind() -> None:
    machines = nodes(4, type="H100") + nodes(8, type="T4")
    assert decided(machines, [elastic("a", 4, 8, on={0: 4}, left_s=HOUR)]) == []
    assert decided(machines, [elastic("a", 4, 8)]) == ["a 0:4"]


def test_resizing_does_not_wear_out_and_moving_is_called_so() -> None:
    jobs = [elastic("a", 1, 2, on={0: 2}, left_s=HOUR), Job("b", 4, left_s=HOUR)]
    assert decided(nodes(4, 2), jobs) == ["a stops for b: moved", "b 0:4", "a 1:2"]
    before = snapshot(nodes(8), [elastic("a", 2, 8, on={0: 2}, left_s=HOUR)])
    assert carry_out(before, plan(before, DEFAULT)).jobs.interruptions[0] == 0


def test_nobody_grows_while_others_are_about_to_wait() -> None:
    before = snapshot(nodes(8), [elastic("a", 2, 8, on={0: 2}, left_s=HOUR)])
    assert plan(replace(before, grows=False), DEFAULT).decisions == () != plan(before, DEFAULT).decisions


def test_thousands_start_at_once() -> None:
    jobs = [elastic(str(number), 1, 2, left_s=HOUR) for number in range(4000)]
    started_s = time.thread_time()
    made = plan(snapshot(nodes(*[8] * 700), jobs), DEFAULT)
    starts = [one for one in made.decisions if isinstance(one, Start)]
    assert len(starts) == len(made.decisions) == 4000 and time.thread_time() - started_s < 5.0
    assert sum(workers for one in starts for _, workers in one.placement) == 5600


def test_simulated_with_twice_the_workers_it_takes_half_the_time_from_then_on() -> None:
    """8 hours with 4 workers. Another one has the other half of the node for an hour, and 10 minutes are protected."""
    jobs = [elastic("a", 4, 8, left_s=8 * HOUR), Job("b", 4, on={0: 4}, left_s=HOUR)]
    ends: list[Attempt] = []
    simulation = QueueSimulation.of(
        snapshot(nodes(8), jobs), DEFAULT, np.array([8 * HOUR, HOUR]), Measuring(exact=True), ends.append
    )
    simulation.tick_s = 60.0
    while len(ends) < 3:
        simulation.decide()
        simulation.advance(simulation.next_event_s)
    b, before, after = ends
    assert (b.row, b.end_s, before.reason) == (1, NOW_S + HOUR, EndReason.MOVED) and after.placement == ((0, 8),)
    assert before.end_s - NOW_S == pytest.approx(HOUR, abs=60.0)
    assert after.end_s - NOW_S == pytest.approx(HOUR + 7 * HOUR / 2, abs=60.0)


@many
@given(drawn(by_type=True, elastic=True), st.sampled_from([*PLAIN, *PREEMPTING]))
def test_no_plan_with_elastic_jobs_breaks_a_rule(one: Drawn, policy: Policy) -> None:
    before = one.snapshot()
    assert violations(before, plan(before, policy), policy) == []
