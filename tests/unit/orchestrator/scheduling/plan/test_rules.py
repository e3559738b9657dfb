"""One small example of each rule of scheduling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from cluster.capacity.gang import Gang
from cluster.capacity.inventory import Node
from orchestrator.queue.tenants import Tenant
from orchestrator.scheduling.forecast.queue_simulation import TICK_S, Attempt, Measuring, QueueSimulation
from orchestrator.scheduling.job_table import RUNNING
from orchestrator.scheduling.plan.decisions import Cause, Interrupt, Start
from orchestrator.scheduling.plan.plan import plan
from orchestrator.scheduling.policy import DEFAULT, POLICIES, Policy
from orchestrator.scheduling.ranking import ranking
from tests.support.scheduling import HOUR, NOW_S, Job, carry_out, cluster, nodes, said, snapshot

EASY, FIFO, FAIR = POLICIES["easy"], POLICIES["fifo"], POLICIES["fair"]
TWO = (Tenant("a"), Tenant("b"))
LONG = 500 * HOUR


def decided(
    machines: Sequence[Node], jobs: Sequence[Job], policy: Policy = DEFAULT, **more: Sequence[object]
) -> list[str]:
    return said(plan(snapshot(machines, jobs, **more), policy), jobs)  # type: ignore[arg-type]


def stays(name: str, gpus: int, node: int, **more: float) -> Job:
    """A job that runs and cannot be interrupted."""
    return Job(name, gpus, on={node: gpus}, preemptible=False, **more)  # type: ignore[arg-type]


# Gangs and nodes


def test_a_gang_of_a_nodes_size_waits_for_a_whole_node_though_as_many_gpus_are_free_on_two() -> None:
    jobs = [stays("a", 4, 0), stays("b", 4, 1), Job("gang", 8)]
    assert decided(nodes(8, 8), jobs) == []
    assert decided(nodes(8, 8, 8), jobs) == ["start gang on 2"]


def test_small_gangs_are_packed_where_the_least_is_left_over() -> None:
    jobs = [stays("a", 3, 0), stays("b", 6, 1), Job("gang", 2)]
    assert decided(nodes(8, 8, 8), jobs) == ["start gang on 1"]


def test_of_equal_nodes_one_in_use_is_taken_and_then_the_lowest() -> None:
    assert decided(nodes(4, 8), [stays("a", 4, 1), Job("gang", 2)]) == ["start gang on 1"]
    assert decided(nodes(4, 4), [Job("gang", 2)]) == ["start gang on 0"]


def test_a_larger_gang_takes_whole_nodes_and_shares_one() -> None:
    jobs = [stays("a", 4, 1), Job("gang", 20)]
    assert decided(nodes(8, 8, 8), jobs) == ["start gang on 0:8 2:8 1:4"]
    assert decided(nodes(8, 8, 8), [stays("b", 1, 0), *jobs]) == []


def test_all_gpus_of_a_gang_are_of_one_type_and_of_its_own_if_it_names_one() -> None:
    machines = nodes(8, type="A") + nodes(8, type="B")
    assert decided(machines, [Job("gang", 16)]) == []
    assert decided(machines, [Job("gang", 8, type="B")]) == ["start gang on 1"]


def test_nothing_is_put_on_cordoned_nodes_nor_on_gpus_and_cpus_that_others_hold() -> None:
    assert decided(nodes(8, usable=False), [Job("gang", 1)]) == []
    assert decided(nodes(8, foreign_gpus=5), [Job("gang", 4)]) == []
    assert decided(nodes(8, cpus=8), [Job("a", 2, cpus=3), Job("b", 1, cpus=3)]) == ["start a on 0"]


def test_a_gang_that_waits_for_what_others_hold_outside_keeps_no_slot_from_those_that_fit() -> None:
    for machines, gpus in ((nodes(8, foreign_gpus=5), 1), (nodes(0, cpus=8, foreign_cpus=5), 0)):
        jobs = [Job("gang", 4, gpus_per_worker=gpus), Job("small", 1, gpus_per_worker=gpus)]
        assert decided(machines, jobs) == ["start small on 0"]
    jobs = [Job("runs", 5, {0: 5}, running_s=0.0), Job("gang", 4), Job("small", 1)]
    assert decided(nodes(8), jobs) == []


def test_held_jobs_and_those_of_later_are_not_started() -> None:
    jobs = [Job("held", 8, held=True), Job("later", 8, not_before_s=NOW_S + 1), Job("now", 8, left_s=LONG)]
    assert decided(nodes(8), jobs) == ["start now on 0"]
    jobs[1] = replace(jobs[1], not_before_s=NOW_S)
    assert decided(nodes(8), jobs) == ["start later on 0"]


# The order of the queue


def test_the_higher_class_goes_first_then_the_shorter_job_then_the_one_that_was_submitted_first() -> None:
    jobs = [Job("long", 8, left_s=LONG), Job("second", 8, left_s=60.0), Job("third", 8, left_s=60.0)]
    assert decided(nodes(8), jobs) == ["start second on 0"]
    assert decided(nodes(8), [*jobs, Job("urgent", 8, priority=1, left_s=LONG)]) == ["start urgent on 0"]


def test_a_job_that_has_measured_nothing_is_expected_to_be_as_short_as_new_ones_or_as_it_declares() -> None:
    measured = Job("measured", 8, left_s=DEFAULT.untold_s - 1)
    assert decided(nodes(8), [Job("new", 8), measured]) == ["start measured on 0"]
    assert decided(nodes(8), [measured, Job("new", 8, most_left_s=600.0)]) == ["start new on 0"]


def test_the_tenant_that_used_less_for_its_weight_goes_first() -> None:
    jobs = [Job("a", 8, left_s=HOUR), Job("b", 8, left_s=HOUR, tenant=1)]
    for policy in (DEFAULT, FAIR):
        assert decided(nodes(8), jobs, policy, tenants=TWO, used_s=[2e6, 1e6]) == ["start b on 0"]
        weighted = (Tenant("a", weight=3.0), Tenant("b"))
        assert decided(nodes(8), jobs, policy, tenants=weighted, used_s=[2e6, 1e6]) == ["start a on 0"]


def test_who_has_waited_longest_competes_as_if_it_took_no_more_than_a_few_hours() -> None:
    jobs = [Job("new", 1, left_s=5 * HOUR), Job("old", 1, left_s=LONG, waiting_s=7 * HOUR)]
    assert decided(nodes(1), jobs) == ["start old on 0"]
    assert decided(nodes(1), [jobs[0], replace(jobs[1], waiting_s=5 * HOUR)]) == ["start new on 0"]


# Quotas


def test_a_limit_is_never_exceeded_of_all_types_or_of_one() -> None:
    jobs = [stays("a", 4, 0), Job("b", 2)]
    machines = nodes(8, type="A") + nodes(8, type="B")
    assert decided(machines, jobs, tenants=[Tenant("a", limit=((None, 5),))]) == []
    assert decided(machines, jobs, tenants=[Tenant("a", limit=(("A", 5),))]) == ["start b on 1"]


def test_what_is_interrupted_no_longer_counts_towards_the_limit() -> None:
    jobs = [Job("low", 4, on={0: 4}), stays("x", 2, 0, tenant=1), Job("high", 4, tenant=1, priority=1), Job("small", 2)]
    tenants = (Tenant("a", limit=((None, 4),)), Tenant("b"))
    assert decided(nodes(8), jobs, tenants=tenants) == ["stop low", "start high on 0", "start small on 0"]


def test_an_idle_guarantee_is_lent_and_taken_back_whatever_the_priority() -> None:
    tenants = (Tenant("owner", guaranteed=((None, 4),)), Tenant("guest"))
    lent = Job("lent", 8, tenant=1, priority=9, left_s=60.0)
    assert decided(nodes(8), [lent], tenants=tenants) == ["start lent on 0"]
    jobs = [replace(lent, on={0: 8}), Job("owners", 4, left_s=LONG)]
    made = plan(snapshot(nodes(8), jobs, tenants), DEFAULT)
    assert said(made, jobs) == ["stop lent", "start owners on 0"]
    assert made.decisions[0] == Interrupt(0, Cause.RECLAIMED, 1)
    assert decided(nodes(8), [jobs[0], replace(jobs[1], gpus=5)], tenants=tenants) == []


def test_the_cpus_of_nodes_of_a_guaranteed_type_are_taken_back_too() -> None:
    tenants = (Tenant("owner", guaranteed=(("A", 4),)), Tenant("guest"))
    lent = without_gpus("lent", 8, 0, tenant=1, priority=9, left_s=LONG)
    jobs = [lent, Job("owners", 4)]
    assert decided(nodes(8, cpus=8, type="A"), jobs, tenants=tenants) == ["stop lent", "start owners on 0"]
    assert decided(nodes(8, cpus=8, type="B"), jobs, tenants=tenants) == []


def test_what_is_within_a_guarantee_is_not_interrupted_for_other_tenants() -> None:
    tenants = (Tenant("owner", guaranteed=((None, 4),)), Tenant("guest"))
    jobs = [Job("owners", 4, on={0: 4}, left_s=LONG), Job("guests", 4, tenant=1, priority=9, left_s=60.0)]
    assert decided(nodes(4), jobs, tenants=tenants) == []


# Backfill


def test_a_job_passes_a_blocked_gang_only_if_it_is_gone_before_or_on_other_nodes() -> None:
    jobs = [stays("runs", 4, 0, left_s=HOUR), Job("gang", 8, left_s=HOUR), Job("small", 1, left_s=HOUR - 1)]
    assert decided(nodes(8), jobs, EASY) == ["start small on 0"]
    jobs[2] = replace(jobs[2], left_s=HOUR + 1)
    assert decided(nodes(8), jobs, EASY) == []
    assert decided(nodes(8, 4), jobs, EASY) == ["start small on 1"]
    assert decided(nodes(8, 4), jobs, FIFO) == []


def test_where_nobody_knows_when_jobs_end_the_node_with_the_fewest_such_is_kept_free() -> None:
    jobs = [stays("a", 6, 0), stays("b", 1, 1), Job("gang", 8), Job("small", 3)]
    assert decided(nodes(8, 8), jobs, EASY) == []


# Preemption


def test_a_short_job_takes_the_place_of_a_long_one_if_that_is_worth_its_cost() -> None:
    jobs = [Job("long", 8, on={0: 8}, left_s=10 * HOUR), Job("short", 8, left_s=HOUR)]
    assert decided(nodes(8), jobs) == ["stop long", "start short on 0"]
    assert decided(nodes(8), jobs, replace(DEFAULT, preemption=False)) == []
    assert decided(nodes(8), [replace(jobs[0], left_s=2.4 * HOUR), jobs[1]]) == []
    assert decided(nodes(8), [replace(jobs[0], cost_s=8 * HOUR), jobs[1]]) == []


def test_a_higher_class_takes_the_place_of_a_lower_at_once_and_never_the_other_way() -> None:
    low, high = Job("low", 8, left_s=60.0), Job("high", 8, priority=1, left_s=LONG)
    assert decided(nodes(8), [replace(low, on={0: 8}), high]) == ["stop low", "start high on 0"]
    assert decided(nodes(8), [low, replace(high, on={0: 8})]) == []


def without_gpus(name: str, workers: int, node: int | None = None, **more: float) -> Job:
    on = {} if node is None else {node: workers}
    return Job(name, workers, on=on, gpus_per_worker=0, **more)  # type: ignore[arg-type]


def test_who_takes_only_cpus_of_a_node_with_gpus_yields_to_a_higher_class_with_and_without_gpus() -> None:
    small, large = without_gpus("small", 2, 0, left_s=LONG), without_gpus("large", 4, 0, left_s=LONG)
    for high in (Job("high", 3, priority=1), without_gpus("high", 3, priority=1)):
        assert decided(nodes(8, cpus=8), [small, large, high]) == ["stop small", "start high on 0"]
        assert decided(nodes(8, cpus=6), [small, large, high]) == ["stop large", "start high on 0"]
        assert decided(nodes(8, cpus=8), [replace(small, priority=2), replace(large, priority=2), high]) == []
        fixed = replace(large, preemptible=False)
        assert decided(nodes(8, cpus=6), [small, fixed, high]) == []
    gang = Job("gang", 16, priority=1)
    assert decided(nodes(8, 8, cpus=8), [small, gang]) == ["stop small", "start gang on 0:8 1:8"]


def test_a_job_without_gpus_stops_no_job_with_gpus_and_takes_the_cheapest_place() -> None:
    on_gpus, high = Job("gpus", 8, on={0: 8}, left_s=LONG), without_gpus("high", 4, priority=1)
    assert decided(nodes(8, cpus=8), [on_gpus, high]) == []
    dear, cheap = without_gpus("dear", 4, 0, left_s=LONG, cost_s=HOUR), without_gpus("cheap", 4, 1, left_s=LONG)
    assert decided(nodes(8, 0, cpus=4), [dear, cheap, high]) == ["stop cheap", "start high on 1"]
    assert decided(nodes(0, 8, cpus=4), [dear, cheap, high]) == ["stop cheap", "start high on 1"]


def test_cpus_that_a_job_with_gpus_holds_are_made_free_for_a_job_with_gpus() -> None:
    low, high = Job("low", 4, on={0: 4}, cpus=15, left_s=LONG), Job("high", 4, cpus=8, priority=1)
    assert decided(nodes(8, cpus=64), [low, high]) == ["stop low", "start high on 0"]
    assert decided(nodes(8, cpus=64), [replace(low, preemptible=False), high]) == []
    other = without_gpus("other", 60, 0, left_s=LONG)
    assert decided(nodes(8, cpus=128), [low, other, high]) == ["stop other", "start high on 0"]


def test_no_job_is_stopped_beside_those_that_are_enough() -> None:
    three, five = Job("three", 3, on={0: 3}, left_s=LONG), Job("five", 5, on={1: 5}, left_s=LONG)
    machines = nodes(8, 8)
    assert decided(machines, [three, five, Job("gang", 13, priority=1)]) == ["stop five", "start gang on 1:8 0:5"]


def test_a_gang_of_cpus_preempts_on_nodes_without_gpus_also_beside_large_nodes_with_gpus() -> None:
    full = [without_gpus(name, 8, node, left_s=LONG) for node, name in enumerate(("a", "b"))]
    gpus, gang = stays("gpus", 8, 2), without_gpus("gang", 12, priority=1)
    machines = [*nodes(0, 0, cpus=8), *nodes(8, cpus=64)]
    held = replace(gpus, cpus=8)
    found = decided(machines, [*full, held, gang])
    assert sorted(found[:2]) == ["stop a", "stop b"] and found[2:] == ["start gang on 0:8 1:4"]


def test_a_gang_of_cpus_takes_whole_nodes_and_shares_one() -> None:
    busy, gang = replace(without_gpus("busy", 1, 1), preemptible=False), without_gpus("gang", 10)
    assert decided(nodes(0, 0, cpus=8), [busy, gang]) == ["start gang on 0:8 1:2"]
    assert decided(nodes(0, 0, 0, cpus=8), [busy, gang]) == ["start gang on 0:8 1:2"]


def test_what_is_not_preemptible_is_never_interrupted() -> None:
    assert decided(nodes(8), [stays("runs", 8, 0, left_s=LONG), Job("high", 8, priority=9, left_s=60.0)]) == []


@pytest.mark.parametrize(("interruptions", "minutes"), [(0, 10), (25, 20), (50, 30), (99, 49.6)])
def test_the_first_minutes_are_protected_and_the_more_so_the_more_often_it_was_interrupted(
    interruptions: int, minutes: float
) -> None:
    jobs = [Job("low", 8, on={0: 8}, interruptions=interruptions), Job("high", 8, priority=1)]
    for running_s, many in ((minutes * 60 - 1, 0), (minutes * 60, 2)):
        assert len(decided(nodes(8), [replace(jobs[0], running_s=running_s), jobs[1]])) == many


def test_after_so_many_interruptions_a_job_is_left_alone() -> None:
    jobs = [Job("low", 8, on={0: 8}, interruptions=DEFAULT.most_interruptions), Job("high", 8, priority=1)]
    assert decided(nodes(8), jobs) == []


def test_no_more_is_interrupted_than_is_needed() -> None:
    jobs = [Job("small", 2, on={0: 2}), Job("large", 6, on={0: 6}), Job("high", 2, priority=1)]
    assert decided(nodes(8), jobs) == ["stop small", "start high on 0"]
    assert decided(nodes(8), [*jobs[:2], replace(jobs[2], gpus=3)])[0] == "stop large"
    assert decided(nodes(9), [replace(jobs[0], gpus=3, on={0: 3}), *jobs[1:]])[0] == "stop small"


def test_one_plan_makes_room_for_so_many_gangs_and_the_next_goes_on() -> None:
    policy = replace(DEFAULT, most_preempting=1)
    low = [Job(f"low{node}", 8, on={node: 8}, left_s=LONG) for node in range(2)]
    before = snapshot(nodes(8, 8), [*low, Job("x", 8, priority=1), Job("y", 8, priority=1)])
    first = plan(before, policy)
    second = plan(carry_out(before, first), policy)
    assert [[one.row for one in made.decisions if isinstance(one, Start)] for made in (first, second)] == [[2], [3]]


def test_small_jobs_are_moved_together_so_that_a_gang_gets_a_whole_node() -> None:
    jobs = [Job("a", 2, on={0: 2}, left_s=600.0), Job("b", 6, on={1: 6}, left_s=600.0), Job("gang", 8, left_s=2 * HOUR)]
    made = plan(snapshot(nodes(8, 8), jobs), DEFAULT)
    assert said(made, jobs) == ["stop a", "start gang on 0", "start a on 1"]
    assert made.decisions[0] == Interrupt(0, Cause.MOVED, 2)
    for change in ({"cost_s": HOUR}, {"running_s": 300.0}):
        assert decided(nodes(8, 8), [replace(jobs[0], **change), replace(jobs[1], **change), jobs[2]]) == []  # type: ignore[arg-type]


# Over time

Case = tuple[list[Node], int]  # the nodes, and the GPUs of the job


def start_s(policy: Policy, case: Case, small_s: float, most_s: float) -> float:
    """When a job of 5000 hours starts, on a cluster that is full of small ones and where more of them always wait."""
    simulation = QueueSimulation(cluster(case[0]), (Tenant("a"),), policy, Measuring(exact=True), lambda _: None)
    total = simulation.cluster.total_gpus
    for number in range(total):
        simulation.submit(Gang(1, 1, 1), small_s * (number + 1) / total)
    simulation.decide()
    row = simulation.submit(Gang(case[1], 1, 1), 5000 * HOUR)
    while simulation.jobs.state[row] != RUNNING and simulation.now_s <= most_s:
        while simulation.waiting <= total:
            simulation.submit(Gang(1, 1, 1), small_s)
        simulation.decide()
        if simulation.jobs.state[row] != RUNNING:
            simulation.advance(simulation.next_event_s)
    return simulation.now_s


of_all_sizes = pytest.mark.parametrize("case", [(nodes(8), 8), (nodes(8, 8), 8), (nodes(8, 8), 16), (nodes(8), 1)])
PATIENT = replace(DEFAULT, preemption=False)


@of_all_sizes
@pytest.mark.parametrize("policy", [FIFO, EASY, FAIR])
def test_in_order_of_submission_a_job_waits_for_nothing_but_what_ran_before_it(policy: Policy, case: Case) -> None:
    assert start_s(policy, case, 600.0, HOUR) <= 600.0


@of_all_sizes
@pytest.mark.parametrize("policy", [DEFAULT, PATIENT])
def test_a_stream_of_jobs_longer_than_the_lane_expects_keeps_nobody_waiting(policy: Policy, case: Case) -> None:
    """Once it is guarded, it is the first of the queue, its nodes are reserved, and all that runs there then ends."""
    bound_s = policy.guarded_after_s + TICK_S + 5 * HOUR
    assert start_s(policy, case, 5 * HOUR, bound_s) <= bound_s


@of_all_sizes
@pytest.mark.parametrize("policy", [DEFAULT, PATIENT])
def test_a_stream_of_short_jobs_keeps_nobody_waiting_for_ever(policy: Policy, case: Case) -> None:
    """After most_wait_s it goes before all others, its nodes are reserved, and all that runs there then ends."""
    policy = replace(policy, guarded_after_s=600.0, most_wait_s=5000.0)
    bound_s = policy.most_wait_s + TICK_S + 1000.0
    assert start_s(policy, case, 1000.0, bound_s) <= bound_s


def test_who_waits_for_a_limit_takes_no_place_among_the_guarded() -> None:
    tenants = (Tenant("a", limit=((None, 2),)), Tenant("b"))
    stopped = [Job(f"stopped {number}", 2, waiting_s=100 * HOUR) for number in range(3)]
    jobs = [Job("holds", 2, {0: 2}), *stopped, Job("long", 1, tenant=1, waiting_s=50 * HOUR, left_s=90 * HOUR)]
    ranks = ranking(snapshot(nodes(8), jobs, tenants=tenants), DEFAULT)
    assert ranks.guarded is not None and ranks.guarded.nonzero()[0].tolist() == [4]
    ranks = ranking(snapshot(nodes(8), jobs, tenants=(Tenant("a"), Tenant("b"))), DEFAULT)
    assert ranks.guarded is not None and ranks.guarded.nonzero()[0].tolist() == [1, 2]


def test_jobs_without_gpus_take_no_gpus_of_the_guarded_share() -> None:
    jobs = [Job(f"cpus {number}", 30, gpus_per_worker=0, waiting_s=100 * HOUR) for number in range(3)]
    jobs += [Job("gpus", 2, waiting_s=50 * HOUR), Job("more", 2, waiting_s=40 * HOUR), Job("most", waiting_s=30 * HOUR)]
    ranks = ranking(snapshot(nodes(8, cpus=96), jobs), DEFAULT)
    assert ranks.guarded is not None and ranks.guarded.nonzero()[0].tolist() == [0, 1, 3, 4]


def test_weights_of_three_to_one_share_gpu_time_three_to_one() -> None:
    used = [0.0, 0.0]
    tenants = (Tenant("a", weight=3.0), Tenant("b"))

    def count(attempt: Attempt) -> None:
        used[int(simulation.jobs.tenant[attempt.row])] += attempt.end_s - attempt.start_s

    simulation = QueueSimulation(cluster(nodes(8)), tenants, DEFAULT, Measuring(exact=True), count)
    for number in range(320):
        simulation.submit(Gang(1, 1, 1), 1000.0, tenant=number % 2)
    while simulation.now_s < 5 * HOUR:
        simulation.decide()
        simulation.advance(simulation.next_event_s)
    assert used[0] / used[1] == pytest.approx(3.0, rel=0.1)
