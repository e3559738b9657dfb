"""What holds for every plan, of random snapshots; and that it is the plan of a slow scheduler written a second time."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.free import FreeSlots
from cluster.inventory import Node
from cluster.resources import Gang
from orchestrator.scheduling.decisions import Cause, Interrupt, Plan, Start
from orchestrator.scheduling.plan import plan
from orchestrator.scheduling.policy import DEFAULT, POLICIES, Policy
from orchestrator.scheduling.snapshot import Snapshot, Tenant, Window
from orchestrator.scheduling.standing import standing
from orchestrator.scheduling.victims import Victims
from orchestrator.scheduling.world import Attempt, Measuring, World
from tests.support.scheduling import HOUR, NOW_S, Job, carry_out, cluster, nodes, said, snapshot, violations
from tests.support.slow_scheduler import Standings, machines_of, may_be_victim, place, rooms, slow_plan

PATIENT = replace(DEFAULT, name="without preemption", preemption=False)
PLAIN = [POLICIES["fifo"], POLICIES["easy"], POLICIES["fair"], PATIENT]
QUICK = replace(DEFAULT, name="quick", margin=1.2, lane_after_s=60.0)
PREEMPTING = [DEFAULT, POLICIES["las"], QUICK]

few = settings(derandomize=True, deadline=None, max_examples=60, database=None)
many = settings(derandomize=True, deadline=None, max_examples=150, database=None)


@dataclass(frozen=True)
class Drawn:
    """What a random snapshot is made of."""

    machines: Sequence[Node]
    jobs: Sequence[Job]
    tenants: Sequence[Tenant]
    used_s: Sequence[float]
    windows: Sequence[Window]

    def snapshot(self, order: Sequence[int] | None = None) -> Snapshot:
        jobs = self.jobs if order is None else [self.jobs[row] for row in order]
        return snapshot(self.machines, jobs, self.tenants, self.used_s, self.windows)


def drawn(
    by_type: bool = False, windows: bool = False, tight_cpus: bool = True, by_cpu: bool = True
) -> st.SearchStrategy[Drawn]:
    """Random snapshots. by_type: guarantees and limits of single types too. by_cpu: jobs that need no GPU too.

    What they leave out, since it breaks rules, is in test_scheduling_rules.py.
    """

    def build(seed: int, machines: int, jobs: int) -> Drawn:
        made = _Draw(random.Random(seed), by_type, tight_cpus).draw(machines, jobs, windows)
        return made if by_cpu else replace(made, jobs=[job for job in made.jobs if job.gpus_per_worker])

    return st.builds(build, st.integers(0, 1 << 32), st.integers(1, 6), st.integers(0, 14))


class _Draw:
    def __init__(self, chance: random.Random, by_type: bool, tight_cpus: bool) -> None:
        self.chance, self.by_type, self.tight_cpus = chance, by_type, tight_cpus
        self.types: list[str | None] = chance.choice([[None], ["A"], ["A", "B"]])

    def maybe(self, share: float) -> bool:
        return self.chance.random() < share

    def draw(self, machines: int, jobs: int, windows: bool) -> Drawn:
        chance = self.chance
        inventory = [self.node() for _ in range(machines)]
        tenants = [self.tenant(name) for name in "abc"[: chance.randint(1, 3)]]
        made: list[Job] = []
        for number in range(jobs):
            made.append(self.job(number, inventory, made, tenants))
        when = [self.window(machines) for _ in range(chance.randint(0, 2) if windows else 0)]
        return Drawn(inventory, made, tenants, [chance.choice([0.0, 1e4, 1e6, 3e6]) for _ in tenants], when)

    def node(self) -> Node:
        chance = self.chance
        if self.types != [None] and self.maybe(0.1):  # CPU nodes are of no type
            return Node("", cpus=chance.randint(1, 8), usable=self.maybe(0.8))
        size = chance.choice([1, 2, 3, 4, 4, 6, 8, 8, 8])
        cpus = chance.choice([size, 2 * size]) if self.tight_cpus else 96
        foreign = chance.randint(0, size) if self.maybe(0.15) else 0
        return Node("", cpus, size, chance.choice(self.types), self.maybe(0.85), foreign)

    def tenant(self, name: str) -> Tenant:
        keys = self.types if self.by_type else [None]
        guaranteed = ((self.chance.choice(keys), self.chance.randint(1, 12)),) if self.maybe(0.3) else ()
        limit = ((self.chance.choice(keys), self.chance.randint(1, 16)),) if self.maybe(0.3) else ()
        return Tenant(name, self.chance.choice([1.0, 1.0, 3.0]), guaranteed, limit)

    def window(self, machines: int) -> Window:
        start_s = NOW_S + self.chance.choice([-HOUR, 300.0, HOUR, 5 * HOUR])
        some = tuple(node for node in range(machines) if self.maybe(0.5))
        return Window(start_s, start_s + 2 * HOUR, None if self.maybe(0.2) else some)

    def job(self, number: int, inventory: list[Node], others: list[Job], tenants: list[Tenant]) -> Job:
        """Times differ from those of all other jobs, so that nothing depends on the number of a row."""
        chance, own = self.chance, number * 1.37
        by_cpu = self.maybe(0.08)
        each = 0 if by_cpu else chance.choice([1, 1, 1, 1, 2])
        left = (
            math.nan if self.maybe(0.2) else chance.choice([60.0, 600.0, HOUR, 2 * HOUR, 10 * HOUR, 100 * HOUR]) + own
        )
        made = Job(
            str(number),
            gpus=max(1, each) * chance.choice([1, 1, 2, 2, 3, 4, 4, 6, 8, 8, 12, 16]),
            gpus_per_worker=each,
            cpus=chance.choice([1, 1, 1, 2]) if self.tight_cpus else 1,
            type=None if by_cpu else chance.choice([None, None, *self.types]),
            held=self.maybe(0.08),
            tenant=chance.randrange(len(tenants)),
            priority=chance.choice([0, 0, 0, 0, 1, 2]),
            left_s=left,
            most_left_s=chance.choice([math.inf, math.inf, 900.0 + own, 20 * HOUR + own]),
            preemptible=self.maybe(0.75),
            submitted_s=chance.random() * 1000,
            not_before_s=chance.choice([-math.inf] * 12 + [NOW_S, NOW_S + 10]),
            waiting_s=chance.choice([0.0, 100.0, 2 * HOUR, 10 * HOUR, 50 * HOUR]) + own,
            waited_s=chance.choice([0.0, 0.0, HOUR, 20 * HOUR]) + own,
            running_s=chance.choice([0.0, 599.0, 700.0, 1100.0, 30 * HOUR]) + own / 100,
            attained_s=chance.choice([0.0, 3 * HOUR]),
            interruptions=chance.choice([0, 0, 0, 1, 25, 99, 100]),
            cost_s=chance.choice([0.0, 30.0, 300.0, 3000.0]) + own,
        )
        if by_cpu or made.held or self.maybe(0.35):
            return made
        return self.running(made, inventory, others, tenants[made.tenant])

    def running(self, job: Job, inventory: list[Node], others: list[Job], tenant: Tenant) -> Job:
        """The job on nodes where it is allowed to be, if there are any."""
        held = sum(other.gpus for other in others if other.on and other.tenant == job.tenant)
        if any(held + job.gpus > most for _, most in tenant.limit):
            return job
        now = snapshot(inventory, others)
        free = [one for one in machines_of(now) if one.has_gpus and one.free >= job.gpus]
        free = [one for one in free if job.type in (None, one.type) and one.cpus >= job.gang.num_workers * job.cpus]
        if free and self.maybe(0.8):
            return replace(job, on={self.chance.choice(free).number: job.gang.num_workers}, not_before_s=-math.inf)
        placement = place(machines_of(now), job.gang)
        return replace(job, on=dict(placement), not_before_s=-math.inf) if placement else job


@many
@given(drawn(), st.sampled_from(PREEMPTING))
def test_no_plan_breaks_a_rule(one: Drawn, policy: Policy) -> None:
    before = one.snapshot()
    found = violations(before, plan(before, policy), policy)
    assert [what for what in found if "spans nodes and would fit" not in what] == []  # see test_scheduling_rules.py


@many
@given(drawn(by_type=True, windows=True), st.sampled_from(PLAIN))
def test_no_plan_without_preemption_breaks_a_rule(one: Drawn, policy: Policy) -> None:
    before = one.snapshot()
    assert violations(before, plan(before, policy), policy) == []


@many
@given(drawn(by_type=True, windows=True), st.sampled_from(PLAIN))
def test_without_preemption_a_plan_is_that_of_the_slow_scheduler(one: Drawn, policy: Policy) -> None:
    before = one.snapshot()
    fast, slow = plan(before, policy), slow_plan(before, policy)
    assert fast.decisions == slow.decisions
    if not any(isinstance(one, Interrupt) for one in fast.decisions):
        assert fast.reservation in (None, slow.reservation)  # none where nobody is left to be kept off


@few
@given(drawn(by_type=True, windows=True), st.sampled_from([*PLAIN, *PREEMPTING]))
def test_planning_twice_gives_the_same_plan_and_changes_nothing(one: Drawn, policy: Policy) -> None:
    before, untouched = one.snapshot(), one.snapshot()
    assert plan(before, policy) == plan(before, policy)
    for name, column in vars(untouched.jobs).items():
        np.testing.assert_equal(getattr(before.jobs, name), column)
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
@given(drawn(by_type=True, windows=True), st.sampled_from([*PLAIN, *PREEMPTING]), st.randoms(use_true_random=False))
def test_a_plan_does_not_depend_on_the_numbering_of_rows(one: Drawn, policy: Policy, chance: random.Random) -> None:
    order = list(range(len(one.jobs)))
    made = plan(one.snapshot(), policy)
    if any(isinstance(stop, Interrupt) and stop.cause is not Cause.MAINTENANCE for stop in made.decisions):
        return  # see test_scheduling_rules.py: of two equal victims the lower row goes
    chance.shuffle(order)
    assert renumbered(plan(one.snapshot(order), policy), order) == renumbered(made, range(len(order)))


@many
@given(drawn(by_cpu=False), st.sampled_from(PLAIN), st.sampled_from([0.0, 5.0]))
def test_without_preemption_nothing_is_left_for_a_second_plan(one: Drawn, policy: Policy, later_s: float) -> None:
    before = one.snapshot()
    after = carry_out(before, plan(before, policy), later_s)
    assert plan(after, policy).decisions == ()


@many
@given(drawn(by_type=True, windows=True), st.sampled_from([DEFAULT, QUICK]), st.sampled_from([0.0, 5.0]))
def test_a_second_plan_undoes_nothing_of_the_first(one: Drawn, policy: Policy, later_s: float) -> None:
    before = one.snapshot()
    first = plan(before, policy)
    second = plan(carry_out(before, first, later_s), policy)
    started = {start.row for start in first.decisions if isinstance(start, Start)}
    assert not started & {stop.row for stop in second.decisions if isinstance(stop, Interrupt)}


@few
@given(drawn(by_type=True), st.sampled_from([DEFAULT, QUICK]))
def test_plans_at_one_instant_come_to_rest(one: Drawn, policy: Policy) -> None:
    now = one.snapshot()
    for _ in range(4):
        made = plan(now, policy)
        now = carry_out(now, made)
    assert made.decisions == ()


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
    left_s = np.where(np.isnan(jobs.remaining_s), jobs.most_left_s, jobs.remaining_s)
    for start in made.decisions:
        passes = standings.order([start.row, made.reservation.row])[1] == start.row
        if passes and {node for node, _ in start.placement} & set(made.reservation.nodes):
            assert NOW_S + left_s[start.row] <= made.reservation.at_s


@many
@given(drawn(by_type=True), st.sampled_from([*PLAIN, *PREEMPTING]))
def test_the_order_of_the_queue_is_that_of_the_slow_scheduler(one: Drawn, policy: Policy) -> None:
    before = one.snapshot()
    slow, fast = Standings(before, policy), standing(before, policy)
    rows = np.flatnonzero(before.waiting)
    assert fast.order(rows, before.jobs.submitted_s).tolist() == slow.order(rows.tolist())
    assert np.flatnonzero(fast.lane).tolist() == sorted(slow.lane) if fast.lane is not None else not slow.lane
    np.testing.assert_allclose([fast.index[row] for row in slow.rows], [slow.index[row] for row in slow.rows])
    if fast.entitled is not None:
        assert set(np.flatnonzero(fast.entitled).tolist()) == slow.entitled


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


def is_larger_than_a_node(before: Snapshot, gang: Gang) -> bool:
    fits = [one for one in machines_of(before) if one.usable and one.has_gpus]
    sizes = [one.size for one in fits if gang.accelerator_type in (None, one.type)]
    return gang.num_workers * gang.gpus_per_worker > max(sizes, default=0)


@many
@given(drawn(tight_cpus=False), st.sampled_from(PREEMPTING))
def test_room_is_found_exactly_where_the_rules_allow_it_and_nobody_is_interrupted_needlessly(
    one: Drawn, policy: Policy
) -> None:
    before = one.snapshot()
    standings, victims = Standings(before, policy), Victims(before, standing(before, policy), before.cluster, policy)
    for row in np.flatnonzero(before.waiting).tolist():
        gang = before.jobs.gang_of(row)
        possible = rooms(before, policy, row)
        fits_already = any(frozenset() in sets for sets in possible.values())
        if not gang.gpus_per_worker or is_larger_than_a_node(before, gang) or fits_already:
            continue
        found = victims.room_for(row, gang)
        assert (found is not None) == bool(possible)
        if found is not None:
            chosen, ((node, workers),) = set(found.victims), found.placement
            assert workers == gang.num_workers and chosen in possible[node]
            assert not any(chosen > other for other in possible[node])
            assert all(may_be_victim(before, policy, standings, victim, row) for victim in chosen)


@pytest.mark.xfail(strict=True, raises=AssertionError, reason="the lane and victims._on: of equals the lower row")
@pytest.mark.parametrize("lane", [True, False])
def test_of_equals_it_is_not_the_number_of_the_row_that_decides(lane: bool) -> None:
    def first_of(jobs: Sequence[Job]) -> str:
        return said(plan(snapshot(nodes(8), jobs)), jobs)[0]

    old = {"gpus": 8, "waiting_s": 10 * HOUR, "left_s": 500 * HOUR}
    jobs = [Job("x", submitted_s=0.0, **old), Job("y", submitted_s=1.0, **old)]  # type: ignore[arg-type]
    if not lane:
        jobs = [
            Job(name, 3, on={0: 3}, left_s=left, submitted_s=left)
            for name, left in (("x", 500 * HOUR), ("y", 600 * HOUR))
        ]
        jobs += [Job("z", 2, on={0: 2}, preemptible=False), Job("short", 2, left_s=60.0)]
    assert first_of(jobs) == first_of([jobs[1], jobs[0], *jobs[2:]])


@pytest.mark.xfail(strict=True, raises=AssertionError, reason="victims._values_for: the order within a tenant")
def test_three_jobs_do_not_take_turns() -> None:
    """owed goes before high by guarantee, high before more by class, and more takes the place of owed as its own."""
    tenants, stops = (Tenant("a"), Tenant("b", guaranteed=((None, 1),))), list[Attempt]()
    world = World(cluster(nodes(2)), tenants, DEFAULT, Measuring(exact=True), stops.append)
    owed, other = world.submit(Gang(1, 1, 1), 100 * HOUR, tenant=1), world.submit(Gang(1, 3, 1), 200 * HOUR)
    world.decide()
    world.advance(HOUR)
    high, more = world.submit(Gang(2, 2, 1), 100 * HOUR, priority=1), world.submit(Gang(2, 1, 1), 2 * HOUR, tenant=1)
    while world.now_s < 12 * HOUR:
        world.decide()
        world.advance(world.next_event_s)
    assert len(stops) <= len({owed, other, high, more})


@pytest.mark.xfail(strict=True, raises=AssertionError, reason="plan.run: who is interrupted waits for the next plan")
def test_a_second_plan_finds_nothing_to_do() -> None:
    jobs = [Job("x", 4, type="A", left_s=60.0), Job("y", 4, on={0: 4}, left_s=5 * HOUR)]
    before = snapshot(nodes(4, type="A") + nodes(4, type="B"), [*jobs, Job("z", 4, on={1: 4}, left_s=500 * HOUR)])
    assert plan(carry_out(before, plan(before)), DEFAULT).decisions == ()


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
