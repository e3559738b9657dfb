"""What holds for every plan, of random snapshots; and that it is the plan of a slow scheduler written a second time."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.capacity.free_slots import FreeSlots
from cluster.capacity.gang import Gang
from orchestrator.queue.tenants import Tenant
from orchestrator.scheduling.forecast.queue_simulation import Attempt, Measuring, QueueSimulation
from orchestrator.scheduling.plan.decisions import Cause, Interrupt, Plan, Start
from orchestrator.scheduling.plan.plan import plan
from orchestrator.scheduling.plan.preemption import preemption_for
from orchestrator.scheduling.plan.victims import Victims
from orchestrator.scheduling.policy import DEFAULT, Policy
from orchestrator.scheduling.ranking import ranking
from tests.support.randomqueue import PLAIN, PREEMPTING, QUICK, Drawn, drawn, few, many
from tests.support.scheduling import HOUR, NOW_S, Job, carry_out, cluster, nodes, said, snapshot, violations
from tests.support.slow_preemption import may_be_victim, rooms
from tests.support.slow_scheduler import Standings, machines_of, place, slow_plan


@many
@given(drawn(by_type=True), st.sampled_from(PREEMPTING))
def test_no_plan_breaks_a_rule(one: Drawn, policy: Policy) -> None:
    before = one.snapshot()
    found = violations(before, plan(before, policy), policy)
    assert found == []


@many
@given(drawn(by_type=True), st.sampled_from(PLAIN))
def test_no_plan_without_preemption_breaks_a_rule(one: Drawn, policy: Policy) -> None:
    before = one.snapshot()
    assert violations(before, plan(before, policy), policy) == []


@many
@given(drawn(by_type=True), st.sampled_from(PLAIN))
def test_without_preemption_a_plan_is_that_of_the_slow_scheduler(one: Drawn, policy: Policy) -> None:
    before = one.snapshot()
    fast, slow = plan(before, policy), slow_plan(before, policy)
    assert fast.decisions == slow.decisions
    if not any(isinstance(one, Interrupt) for one in fast.decisions):
        assert fast.reservation in (None, slow.reservation)  # none where nobody is left to be kept off


@few
@given(drawn(by_type=True, elastic=True), st.sampled_from([*PLAIN, *PREEMPTING]))
def test_planning_twice_gives_the_same_plan_and_changes_nothing(one: Drawn, policy: Policy) -> None:
    before, untouched = one.snapshot(), one.snapshot()
    assert plan(before, policy) == plan(before, policy)
    for field in fields(untouched.jobs):
        np.testing.assert_equal(getattr(before.jobs, field.name), getattr(untouched.jobs, field.name))
    for name in ("slots", "free", "cpus_free", "usable"):
        np.testing.assert_array_equal(getattr(before.cluster, name), getattr(untouched.cluster, name))


def renumbered(made: Plan, names: Sequence[int]) -> tuple[set[object], object]:
    """The decisions and the reservation, by the jobs' names instead of their rows."""
    decisions: set[object] = set()
    for one in made.decisions:
        if isinstance(one, Start):
            decisions.add((names[one.row], one.placement))
        else:
            decisions.add((names[one.row], one.cause, None if one.for_row is None else names[one.for_row]))
    kept = made.reservation
    return decisions, kept and (names[kept.row], kept.nodes, kept.at_s)


@many
@given(
    drawn(by_type=True, elastic=True),
    st.sampled_from([*PLAIN, *PREEMPTING]),
    st.randoms(use_true_random=False),
)
def test_a_plan_does_not_depend_on_the_numbering_of_rows(one: Drawn, policy: Policy, chance: random.Random) -> None:
    order = list(range(len(one.jobs)))
    made = plan(one.snapshot(), policy)
    chance.shuffle(order)
    assert renumbered(plan(one.snapshot(order), policy), order) == renumbered(made, range(len(order)))


@many
@given(drawn(by_type=True), st.sampled_from(PLAIN), st.sampled_from([0.0, 5.0]))
def test_without_preemption_nothing_is_left_for_a_second_plan(one: Drawn, policy: Policy, later_s: float) -> None:
    before = replace(one, jobs=[job for job in one.jobs if job.gpus_per_worker]).snapshot()
    if (first := plan(before, policy)).reservation is None or not any(tenant.limit for tenant in one.tenants):
        assert plan(carry_out(before, first, later_s), policy).decisions == ()


@pytest.mark.parametrize("elastic", [False, True])
@many
@given(data=st.data(), policy=st.sampled_from([DEFAULT, QUICK]), later_s=st.sampled_from([0.0, 5.0]))
def test_a_second_plan_undoes_nothing_of_the_first(
    elastic: bool, data: st.DataObject, policy: Policy, later_s: float
) -> None:
    before = data.draw(drawn(by_type=True, elastic=elastic)).snapshot()
    first = plan(before, policy)
    second = plan(carry_out(before, first, later_s), policy)
    started = {start.row for start in first.decisions if isinstance(start, Start)}
    assert not started & {stop.row for stop in second.decisions if isinstance(stop, Interrupt)}


@many
@given(drawn(by_type=True), st.sampled_from([DEFAULT, QUICK]))
def test_a_second_plan_at_the_same_instant_finds_nothing_to_do(one: Drawn, policy: Policy) -> None:
    before = one.snapshot()
    after = carry_out(before, plan(before, policy))
    # Who runs claims the guarantee before who waits, so a plan may change whose it is; the next one then acts on that.
    if Standings(after, policy).entitled == Standings(before, policy).entitled:
        assert plan(after, policy).decisions == ()


@many
@given(drawn(by_type=True), st.sampled_from(PREEMPTING))
def test_whoever_is_interrupted_for_a_job_stands_far_enough_behind_it(one: Drawn, policy: Policy) -> None:
    before = one.snapshot()
    standings = Standings(before, policy)
    for stop in plan(before, policy).decisions:
        if isinstance(stop, Interrupt) and stop.cause is not Cause.MOVED and stop.for_row is not None:
            assert may_be_victim(before, policy, standings, stop.row, stop.for_row)


@many
@given(drawn(by_type=True), st.sampled_from([one for one in PLAIN if one.backfill]))
def test_whoever_passes_a_blocked_gang_is_gone_when_its_nodes_are_reserved(one: Drawn, policy: Policy) -> None:
    before = one.snapshot()
    made = plan(before, policy)
    if made.reservation is None:
        return
    standings, jobs = Standings(before, policy), before.jobs
    left_s = np.fmin(jobs.remaining_s, jobs.most_left_s)
    for start in [one for one in made.decisions if isinstance(one, Start)]:
        passes = standings.order([start.row, made.reservation.row])[1] == start.row
        if passes and {node for node, _ in start.placement} & set(made.reservation.nodes):
            assert NOW_S + left_s[start.row] <= made.reservation.at_s


@many
@given(drawn(by_type=True), st.sampled_from([*PLAIN, *PREEMPTING]))
def test_the_order_of_the_queue_is_that_of_the_slow_scheduler(one: Drawn, policy: Policy) -> None:
    before = one.snapshot()
    slow, fast = Standings(before, policy), ranking(before, policy)
    rows = np.flatnonzero(before.waiting)
    assert fast.order(rows, before.jobs.submitted_s).tolist() == slow.order(rows.tolist())
    assert (
        np.flatnonzero(fast.guarded).tolist() == sorted(slow.guarded) if fast.guarded is not None else not slow.guarded
    )
    np.testing.assert_allclose([fast.score[row] for row in slow.rows], [slow.index[row] for row in slow.rows])
    kinds = {} if fast.entitlement is None else dict(enumerate(fast.entitlement.tolist()))
    entitled = {row: before.cluster.types[kind] if kind >= 0 else None for row, kind in kinds.items() if kind > -2}
    assert entitled == slow.entitled


@many
@given(
    drawn(), st.lists(st.tuples(st.sampled_from([1, 2, 3, 4, 6, 8, 12, 16]), st.sampled_from([1, 1, 2])), max_size=6)
)
def test_gangs_are_placed_as_by_the_slow_scheduler(one: Drawn, gangs: list[tuple[int, int]]) -> None:
    before = one.snapshot()
    free, machines, types = FreeSlots(before.cluster), machines_of(before), before.cluster.types
    for number, (workers, each) in enumerate(gangs):
        gang = Gang(workers, 1, each, types[0] if number % 2 else None)
        placement = free.place(gang)
        assert placement == place(machines, gang)
        for node, share in placement or ():
            machines[node].free -= share * each
            machines[node].cpus -= share


@many
@given(drawn(tight_cpus=False, by_type=True), st.sampled_from(PREEMPTING))
def test_room_is_found_exactly_where_the_rules_allow_it_and_nobody_is_interrupted_needlessly(
    one: Drawn, policy: Policy
) -> None:
    before = one.snapshot()
    standings, victims = Standings(before, policy), Victims(before, ranking(before, policy), policy)
    for row in np.flatnonzero(before.waiting).tolist():
        gang = before.jobs.gang_of(row)
        possible = rooms(before, policy, standings, row)
        if not gang.gpus_per_worker or any(frozenset() in sets for sets in possible.values()):
            continue
        found = preemption_for(row, gang, before.jobs, before.cluster, victims)
        if found is not None:
            assert all(may_be_victim(before, policy, standings, victim, row) for victim in found.victims)
            if len(found.placement) > 1:
                continue
            chosen, ((node, workers),) = set(found.victims), found.placement
            assert workers == gang.num_workers and chosen in possible[node]
            assert not any(chosen > other for other in possible[node])
        assert (found is not None) == bool(possible)


@pytest.mark.parametrize("guarded", [True, False])
def test_of_equals_it_is_not_the_number_of_the_row_that_decides(guarded: bool) -> None:
    def first_of(jobs: Sequence[Job]) -> str:
        return said(plan(snapshot(nodes(8), jobs)), jobs)[0]

    old = {"gpus": 8, "waiting_s": 10 * HOUR, "left_s": 500 * HOUR}
    jobs = [Job("x", submitted_s=0.0, **old), Job("y", submitted_s=1.0, **old)]  # type: ignore[arg-type]
    if not guarded:
        jobs = [
            Job(name, 3, on={0: 3}, left_s=left, submitted_s=left)
            for name, left in (("x", 500 * HOUR), ("y", 600 * HOUR))
        ]
        jobs += [Job("z", 2, on={0: 2}, preemptible=False), Job("short", 2, left_s=60.0)]
    assert first_of(jobs) == first_of([jobs[1], jobs[0], *jobs[2:]])


def test_three_jobs_do_not_take_turns() -> None:
    """owed goes before all by guarantee, high before more by class: more must not take the place of owed."""
    tenants, stops = (Tenant("a"), Tenant("b", guaranteed=((None, 1),))), list[Attempt]()
    simulation = QueueSimulation(cluster(nodes(2)), tenants, DEFAULT, Measuring(exact=True), stops.append)
    owed, other = simulation.submit(Gang(1, 1, 1), 100 * HOUR, tenant=1), simulation.submit(Gang(1, 3, 1), 200 * HOUR)
    simulation.decide()
    simulation.advance(HOUR)
    high, more = (
        simulation.submit(Gang(2, 2, 1), 100 * HOUR, priority=1),
        simulation.submit(Gang(2, 1, 1), 2 * HOUR, tenant=1),
    )
    while simulation.now_s < 12 * HOUR:
        simulation.decide()
        simulation.advance(simulation.next_event_s)
    assert len(stops) <= len({owed, other, high, more})


def test_who_is_interrupted_makes_others_yield_within_the_same_plan() -> None:
    jobs = [Job("x", 4, type="A", left_s=60.0), Job("y", 4, on={0: 4}, left_s=5 * HOUR)]
    before = snapshot(nodes(4, type="A") + nodes(4, type="B"), [*jobs, Job("z", 4, on={1: 4}, left_s=500 * HOUR)])
    assert plan(carry_out(before, plan(before)), DEFAULT).decisions == ()


def test_a_start_does_not_take_the_guarantee_of_what_runs_already() -> None:
    jobs = [Job("owed", 2, on={0: 2}), Job("short", 3, left_s=60.0), Job("next", 3, left_s=100.0)]
    before = snapshot(nodes(3, 3), jobs, [Tenant("a", guaranteed=((None, 3),))])
    assert plan(carry_out(before, plan(before)), DEFAULT).decisions == ()


def test_only_what_is_guaranteed_is_reclaimed() -> None:
    jobs = [Job("x", 4, on={0: 4}, preemptible=False), Job("y", 4, on={1: 4}, left_s=500 * HOUR)]
    jobs, tenants = [*jobs, Job("z", 4, tenant=1, left_s=60.0)], (Tenant("a"), Tenant("b", guaranteed=(("A", 4),)))
    made = plan(snapshot(nodes(4, type="A") + nodes(4, type="B"), jobs, tenants), DEFAULT)
    assert made.decisions[0] == Interrupt(1, Cause.PREEMPTED, 2)


@pytest.mark.parametrize(
    ("decisions", "wrong"),
    [
        ([Start(1, ((0, 8),))], "does not fit"),
        ([Start(1, ((1, 4), (2, 4)))], "spans nodes"),
        ([Start(1, ((1, 7),))], "not started as a whole"),
        ([Interrupt(0, Cause.PREEMPTED, 1)], "interrupted for nobody"),
        ([Interrupt(0, Cause.PREEMPTED, 1), Start(1, ((0, 8),))], "lower class"),
        ([Interrupt(1, Cause.PREEMPTED, 1)], "did not run"),
        ([Start(2, ((2, 1),))], "limit"),
        ([Start(0, ((2, 1),))], "does not wait"),
    ],
)
def test_the_checker_sees_what_is_wrong(decisions: list[Start | Interrupt], wrong: str) -> None:
    tenants = (Tenant("a"), Tenant("b", limit=((None, 0),)))
    jobs = [Job("high", 1, on={0: 1}, priority=1), Job("gang", 8), Job("limited", 1, tenant=1)]
    found = violations(snapshot(nodes(8, 8, 8), jobs, tenants), Plan(tuple(decisions)), DEFAULT)
    assert any(wrong in what for what in found)
