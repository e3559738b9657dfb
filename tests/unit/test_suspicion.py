"""Nodes that fail again and again, and which nodes an order is about."""

from __future__ import annotations

from orchestrator.queue.noderules import rules_by_node
from orchestrator.queue.records import Move, NodeOrder, NodeRule
from orchestrator.queue.states import Reason, State
from orchestrator.queue.suspicion import WITHIN_S, Incident, incident_of, suspects
from tests.support.queuejobs import NOW_S, job

HOUR_S = 3600.0


def gone(node: str, at_s: float, attempt: str = "a-1") -> Incident:
    return Incident(at_s, (node,), attempt, True, "it was gone")


def blamed(nodes: tuple[str, ...], at_s: float, attempt: str = "a-1") -> Incident:
    return Incident(at_s, nodes, attempt, False, "the machines failed it")


def test_a_node_that_was_gone_three_times_within_a_day_is_suspected_with_the_evidence() -> None:
    twice = [gone("n1", NOW_S), gone("n1", NOW_S + HOUR_S)]
    assert suspects(twice, 4, NOW_S + HOUR_S) == {}
    found = suspects([*twice, gone("n1", NOW_S + 2 * HOUR_S, "b-7"), gone("n2", NOW_S)], 4, NOW_S + 2 * HOUR_S)
    assert list(found) == ["n1"]
    assert found["n1"].startswith("failed 3 times within a day: it was gone under a-1 at ")
    assert "under b-7 at " in found["n1"]


def test_what_is_older_than_a_day_is_forgiven() -> None:
    found = [gone("n1", NOW_S + hours * HOUR_S) for hours in (0, 1, 25)]
    assert suspects(found, 4, NOW_S + WITHIN_S + 2 * HOUR_S) == {}


def test_one_failure_that_takes_many_jobs_along_counts_once() -> None:
    assert suspects([gone("n1", NOW_S + second, f"j{second}-1") for second in range(9)], 4, NOW_S + 9) == {}


def test_of_several_that_may_be_to_blame_each_gets_its_part() -> None:
    pairs = [blamed(("n1", other), NOW_S + number * HOUR_S) for number, other in enumerate(("n2", "n3", "n4", "n5"))]
    assert suspects(pairs, 8, NOW_S + 4 * HOUR_S) == {}  # n1: 2.0
    more = [*pairs, blamed(("n1", "n6"), NOW_S + 5 * HOUR_S), blamed(("n1", "n7"), NOW_S + 6 * HOUR_S)]
    assert list(suspects(more, 8, NOW_S + 6 * HOUR_S)) == ["n1"]


def test_what_hits_most_nodes_at_once_is_the_fault_of_none() -> None:
    outages = [gone(node, NOW_S + hour * HOUR_S) for hour in range(4) for node in ("n1", "n2", "n3")]
    assert suspects(outages, 4, NOW_S + 4 * HOUR_S) == {}


def test_what_a_move_says_of_machines() -> None:
    one = job(state=State.RUNNING, placement=(("id1", 1), ("id2", 1)))

    def found(reason: Reason, gone: list[str], code: int | None = None) -> Incident | None:
        move = Move(one.job_id, one.state, one.attempt, State.STOPPING, reason)
        return incident_of(one, move, gone, ["n1", "n2"], code, NOW_S)

    lost = found(Reason.NODE_LOST, ["n2"])
    assert lost is not None and lost.nodes == ("n2",) and lost.certain
    assert found(Reason.DRIVER_LOST, ["n2"], -9) == lost
    failed = found(Reason.DRIVER_LOST, [], 75)
    assert failed is not None and failed.nodes == ("n1", "n2") and not failed.certain
    for reason, code in ((Reason.DRIVER_LOST, -9), (Reason.RUN_FAILED, 1), (Reason.PREEMPTED, None)):
        assert found(reason, [], code) is None


def test_an_order_is_about_the_machine_and_not_about_the_id_that_it_has_today() -> None:
    def rule(node: str) -> NodeRule:
        return NodeRule(node, NodeOrder.CORDON, "anna", "", NOW_S)

    rules = [rule("gpu-7"), rule("id-3"), rule("gone")]
    assert set(rules_by_node(rules, {"id-1": "gpu-7", "id-2": "gpu-8", "id-3": "id-3"})) == {"id-1", "id-3"}
    assert set(rules_by_node(rules, {"id-9": "gpu-7"})) == {"id-9"}  # it was started anew
