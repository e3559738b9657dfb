"""From jobs to a plan and back: what counts as held, who gets a lease, who gets a nomination."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.capacity.gang import Gang
from cluster.capacity.inventory import Inventory
from orchestrator.controller.fair_share import Shares
from orchestrator.controller.ledger import Cluster, Nominations, PlanResult, kept, orders, snapshot
from orchestrator.queue.records import Job, Lease
from orchestrator.queue.states import DesiredState, Reason, State
from orchestrator.queue.tenants import Tenant
from orchestrator.scheduling.plan.plan import plan
from tests.support.queuejobs import NOW_S, inventory, job
from tests.support.queuereplay import used_of

A = (Tenant("a"),)


def decided(jobs: list[Job], nominations: Nominations, cluster: Cluster) -> PlanResult:
    return orders(jobs, plan(snapshot(jobs, nominations, cluster, NOW_S)), nominations, cluster)


def said(found: PlanResult) -> list[str]:
    return [
        f"{move.job_id} {move.expect} -> {move.to} {dict(move.placement) or ''}".strip() for move in found.transitions
    ]


def test_a_gang_that_fits_gets_a_lease_on_nodes_that_are_free() -> None:
    jobs = [job("runs", State.RUNNING, 2), job("waits", gpus=2)]
    found = decided(jobs, {}, Cluster(inventory(4), A))
    assert said(found) == ["waits queued -> starting {'n0': 2}"] and found.nominations == {}


def test_what_is_to_start_in_the_place_of_others_waits_until_they_have_left() -> None:
    low, high = job("low", State.RUNNING, 4), job("high", gpus=4, priority=5)
    cluster = Cluster(inventory(4), A)
    found = decided([low, high], {}, cluster)
    assert said(found) == ["low running -> stopping"]
    assert found.transitions[0].reason is Reason.PREEMPTED and "high goes first" in found.transitions[0].message
    assert found.nominations == {"high": (("n0", 4),)}
    stopping = job("low", State.STOPPING, 4)
    again = decided([stopping, high], found.nominations, cluster)
    assert again == PlanResult((), found.nominations)
    back = job("low", reason=Reason.PREEMPTED, gpus=4)
    last = decided([back, high], found.nominations, cluster)
    assert said(last) == ["high queued -> starting {'n0': 4}"] and last.nominations == {}


def test_a_job_is_not_told_the_id_of_another_tenants_job_that_goes_first() -> None:
    low, high = job("low", State.RUNNING, 4), job("secret-project", gpus=4, priority=5, tenant="b")
    found = decided([low, high], {}, Cluster(inventory(4), (Tenant("a"), Tenant("b"))))
    assert found.transitions[0].message == "preempted: a job of tenant b goes first"


def test_nobody_slips_into_what_is_nominated_and_what_is_left_over_is_given_away() -> None:
    stopping, high = job("low", State.STOPPING, 2), job("high", gpus=2, priority=5)
    jobs = [stopping, high, job("late", gpus=2), job("later", gpus=1)]
    found = decided(jobs, {"high": (("n0", 2),)}, Cluster(inventory(4), A))
    # Two GPUs are free in fact: the nomination is kept with them, and "late" gets those that are being left.
    assert said(found) == ["high queued -> starting {'n0': 2}"]
    assert found.nominations == {"late": (("n0", 2),)}


def test_a_job_that_does_not_stop_keeps_its_nodes_and_nominations_on_them_are_off() -> None:
    jobs = [job("stuck", State.STOPPING, 4), job("high", gpus=4, priority=5)]
    nominations = {"high": (("n0", 4),)}
    slow = Cluster(inventory(4, 4), A, slow=frozenset({"stuck"}))
    assert kept(jobs, nominations, Cluster(inventory(4, 4), A)) == nominations
    assert kept(jobs, nominations, slow) == {}
    assert said(decided(jobs, {}, slow)) == ["high queued -> starting {'n1': 4}"]


def test_a_job_that_stops_is_expected_to_leave_soon_unless_it_goes_on_elsewhere() -> None:
    stops = replace(job("stops", State.STOPPING, 4), remaining_s=72_000.0)
    cluster = Cluster(inventory(4, 4), A, slow=frozenset({"stops"}))
    assert snapshot([stops], {}, cluster, NOW_S).left_s.tolist() == [120.0]
    assert snapshot([stops], {"stops": (("n1", 4),)}, cluster, NOW_S).left_s.tolist() == [72_000.0]


@pytest.mark.parametrize(
    "changed",
    [{"wanted": DesiredState.CANCEL}, {"wanted": DesiredState.PAUSE}, {"state": State.STARTING}],
)
def test_a_nomination_ends_with_the_wish(changed: dict[str, object]) -> None:
    one = job("high", **{"state": State.QUEUED, **changed})  # type: ignore[arg-type]
    assert kept([one], {"high": (("n0", 1),)}, Cluster(inventory(4), A)) == {}


def test_a_nomination_ends_with_its_node() -> None:
    one, nominations = job("high"), {"high": (("n1", 1),)}
    assert kept([one], nominations, Cluster(inventory(4, 4), A)) == nominations
    assert kept([one], nominations, Cluster(inventory(4), A)) == {}
    assert kept([one], nominations, Cluster(inventory(4, 4), A, closed=frozenset({"n1"}))) == {}


def test_a_job_that_is_moved_keeps_its_nomination_while_it_stops() -> None:
    moved = job("small", State.STOPPING, 1, reason=Reason.MOVED)
    nominations = {"small": (("n1", 1),)}
    assert kept([moved], nominations, Cluster(inventory(4, 4), A)) == nominations
    assert decided([moved], nominations, Cluster(inventory(4, 4), A)) == PlanResult((), nominations)
    back = job("small", reason=Reason.MOVED)
    assert said(decided([back], nominations, Cluster(inventory(4, 4), A))) == ["small queued -> starting {'n1': 1}"]


def test_an_elastic_job_is_nominated_with_fewer_workers_while_it_stops_and_starts_with_them() -> None:
    cluster = Cluster(inventory(4), A)
    elastic, other = job("e", State.RUNNING, 4, sizes=(1, 2, 4)), job("other", gpus=2)
    found = decided([elastic, other], {}, cluster)
    assert said(found) == ["e running -> stopping"] and found.transitions[0].reason is Reason.RESIZED
    assert found.transitions[0].message == "goes on with 2 workers instead of 4: other goes first"
    assert found.nominations == {"other": (("n0", 2),), "e": (("n0", 2),)}
    stopping = replace(elastic, state=State.STOPPING, reason=Reason.RESIZED)
    assert kept([stopping, other], found.nominations, cluster) == found.nominations
    assert decided([stopping, other], found.nominations, cluster) == PlanResult((), found.nominations)
    back = job("e", gpus=1, sizes=(1, 2, 4), reason=Reason.RESIZED)
    last = decided([back, other], found.nominations, cluster)
    assert sorted(said(last)) == ["e queued -> starting {'n0': 2}", "other queued -> starting {'n0': 2}"]


def test_who_is_preempted_keeps_what_the_same_plan_gives_it_and_nobody_grows_into_it() -> None:
    cluster = Cluster(inventory(8), A)
    e = job("e", State.RUNNING, 6, sizes=(2, 6), interruption_cost_s=10_000.0)
    g, b = job("g", State.RUNNING, 2, sizes=(2, 4)), job("b", gpus=4, priority=1)
    found = decided([e, g, b], {}, cluster)
    assert said(found) == ["e running -> stopping"] and found.nominations == {"b": (("n0", 4),), "e": (("n0", 2),)}
    stopping = replace(e, state=State.STOPPING, reason=found.transitions[0].reason)
    assert kept([stopping, g, b], found.nominations, cluster) == found.nominations
    assert decided([stopping, g, b], found.nominations, cluster) == PlanResult((), found.nominations)


def test_nobody_grows_while_one_stops_or_is_about_to_start() -> None:
    grows, cluster = job("g", State.RUNNING, 2, sizes=(2, 4)), Cluster(inventory(8), A)
    assert said(decided([grows], {}, cluster)) == ["g running -> stopping"]
    for other in (job("x", State.STOPPING, 2, reason=Reason.NODE_LOST), job("x", not_before_s=NOW_S + 60.0)):
        assert decided([grows, other], {}, cluster) == PlanResult((), {})
    for other in (job("x", State.STOPPING, 2, reason=Reason.CANCELLED), job("x", not_before_s=NOW_S + 3600.0)):
        assert said(decided([grows, other], {}, cluster)) == ["g running -> stopping"]


def test_a_larger_gang_is_within_the_limit_of_its_tenant_also_when_it_was_nominated_before() -> None:
    capped = Cluster(inventory(8), (Tenant("a", limit=((None, 3),)),))
    waits = job("e", gpus=1, sizes=(1, 2, 4))
    assert said(decided([waits], {}, capped)) == ["e queued -> starting {'n0': 2}"]
    assert said(decided([waits], {"e": (("n0", 4),)}, capped)) == []


def test_what_pauses_or_waits_for_others_or_for_a_time_is_not_started() -> None:
    parent = job("parent", State.RUNNING, 1)
    jobs = [
        parent,
        job("paused", wanted=DesiredState.PAUSE),
        job("child", after=("parent",)),
        job("early", not_before_s=NOW_S + 60.0),
        job("failed", reason=Reason.DRIVER_LOST, retries={Reason.DRIVER_LOST: 1}, waiting_since_s=NOW_S - 1.0),
    ]
    assert decided(jobs, {}, Cluster(inventory(8), A)) == PlanResult((), {})
    assert said(decided(jobs[1:], {}, Cluster(inventory(8), A))) == ["child queued -> starting {'n0': 1}"]


def test_a_closed_node_and_one_that_is_gone_get_nothing() -> None:
    jobs = [job("on lost", State.STOPPING, 1, on=(("n9", 1),), reason=Reason.NODE_LOST), job("waits", gpus=2)]
    found = decided(jobs, {}, Cluster(inventory(4, 4), A, closed=frozenset({"n0"})))
    assert said(found) == ["waits queued -> starting {'n1': 2}"]


def test_a_limit_holds_also_against_jobs_that_are_still_stopping() -> None:
    capped = (Tenant("a", limit=((None, 4),)),)
    jobs = [job("leaves", State.STOPPING, 4), job("next", gpus=4)]
    found = decided(jobs, {}, Cluster(inventory(8), capped))
    assert found.transitions == () and set(found.nominations) == {"next"}


def test_gpus_held_by_others_are_not_given_away() -> None:
    taken = Inventory((replace(inventory(4).nodes[0], foreign_gpus=3),))
    assert decided([job("waits", gpus=2)], {}, Cluster(taken, A)) == PlanResult((), {})
    assert said(decided([job("waits", gpus=1)], {}, Cluster(taken, A))) == ["waits queued -> starting {'n0': 1}"]


def test_decayed_use_is_the_same_in_closed_form_and_step_by_step() -> None:
    half_life_s, start_s = 3600.0, NOW_S - 7200.0
    lease = Lease("x", 1, "a", Gang(4, 1, 1), (("n0", 4),), start_s, None)
    closed = used_of([lease], NOW_S, half_life_s)["a"]
    shares = Shares({}, start_s, half_life_s)
    used: dict[str, float] = {}
    for step in range(1, 7201):
        used = dict(shares.advance([job("x", State.RUNNING, 4)], start_s + step))
    assert used["a"] == pytest.approx(closed, rel=1e-3)
    assert closed == pytest.approx(4 * 3600.0 / 0.693147 * 0.75, rel=1e-3)
    assert used_of([Lease("x", 1, "a", Gang(1), (), NOW_S + 5.0, None)], NOW_S, half_life_s) == {}


def test_what_a_job_held_up_to_its_end_counts_for_its_tenant() -> None:
    shares = Shares({}, NOW_S, half_life_s=1e9)
    shares.advance([], NOW_S)
    shares.advance([job("short", State.RUNNING, 4)], NOW_S + 10.0)  # granted by the pass before
    assert shares.advance([], NOW_S + 15.0)["a"] == pytest.approx(4 * 15.0)
    assert shares.advance([], NOW_S + 60.0)["a"] == pytest.approx(4 * 15.0)


def test_a_nomination_that_can_not_be_kept_any_more_is_dropped() -> None:
    one, nominations = job("high", gpus=4), {"high": (("n0", 4),)}
    capped = (Tenant("a", limit=((None, 3),)),)
    shrunk = Inventory((replace(inventory(4).nodes[0], foreign_cpus=62),))
    assert kept([one], nominations, Cluster(inventory(4), A)) == nominations
    assert kept([one], nominations, Cluster(inventory(4), capped)) == {}
    assert kept([one], nominations, Cluster(shrunk, A)) == {}
    assert kept([one, job("runs", State.RUNNING, 1)], nominations, Cluster(inventory(4), A)) == {}


@pytest.mark.parametrize(("gpus", "foreign"), [(2, 0), (4, 1), (8, 7)])
def test_a_node_that_shrinks_under_a_job_and_one_that_others_crowd_do_not_end_the_plan(gpus: int, foreign: int) -> None:
    nodes = Inventory((replace(inventory(gpus).nodes[0], foreign_gpus=foreign), *inventory(1, 4).nodes[1:]))
    jobs = [job("runs", State.RUNNING, 4), job("waits", gpus=2)]
    assert said(decided(jobs, {}, Cluster(nodes, A))) == ["waits queued -> starting {'n1': 2}"]
