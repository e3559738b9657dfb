"""Nodes that fail again and again, and which nodes an order is about."""

from __future__ import annotations

from dataclasses import replace

from cluster.capacity.inventory import Node
from orchestrator.controller.node_health import (
    WITHIN_S,
    Incident,
    added,
    counting,
    dumped,
    incident_of,
    is_an_outage,
    loaded,
    suspects,
    unknown_part,
)
from orchestrator.queue.node_rules import rules_by_node
from orchestrator.queue.records import NodeOrder, NodeRule, Transition
from orchestrator.queue.states import Reason, State
from tests.support.queuejobs import NOW_S, job

HOUR_S = 3600.0


def gone(node: str, at_s: float, attempt: str = "") -> Incident:
    return Incident(at_s, (node,), attempt or f"a-{at_s}")


def test_a_node_that_was_gone_three_times_within_a_day_is_suspected_with_the_evidence() -> None:
    twice = [gone("n1", NOW_S), gone("n1", NOW_S + HOUR_S)]
    assert suspects(twice, NOW_S + HOUR_S) == {}
    found = suspects([*twice, gone("n1", NOW_S + 2 * HOUR_S), gone("n2", NOW_S)], NOW_S + 2 * HOUR_S)
    assert list(found) == ["n1"]
    assert found["n1"].startswith("was gone under jobs 3 times within a day: at ") and "a-" not in found["n1"]


def test_hardware_that_drivers_of_several_jobs_call_broken_counts_once_for_each_job() -> None:
    by_one = [gone("n1", NOW_S + hour * HOUR_S, f"a-{hour}") for hour in range(5)]
    assert suspects([], NOW_S + 5 * HOUR_S, by_one) == {}
    assert suspects([gone("n1", NOW_S)], NOW_S + 5 * HOUR_S, by_one[1:]) == {}
    by_three = [gone("n1", NOW_S + hour * HOUR_S, f"{name}-1") for hour, name in enumerate("abc")]
    assert suspects([], NOW_S + 5 * HOUR_S, by_three)["n1"].startswith(
        "was gone or reported as faulty under jobs 3 times"
    )


def test_what_is_older_than_a_day_is_forgiven() -> None:
    found = [gone("n1", NOW_S + hours * HOUR_S) for hours in (0, 1, 25)]
    assert suspects(found, NOW_S + WITHIN_S + 2 * HOUR_S) == {}
    assert added(found, [], NOW_S + WITHIN_S + 2 * HOUR_S) == found[2:]


def test_one_failure_that_takes_many_jobs_along_counts_once_and_so_does_each_attempt() -> None:
    assert suspects([gone("n1", NOW_S + second, f"j{second}-1") for second in range(9)], NOW_S + 9) == {}
    one = gone("n1", NOW_S)
    assert added([one], [one, gone("n1", NOW_S, "b-1"), one], NOW_S) == [one, gone("n1", NOW_S, "b-1")]


def test_each_node_of_an_attempt_counts_once_within_a_day() -> None:
    first = gone("n1", NOW_S, "a-1")
    both = Incident(NOW_S + HOUR_S, ("n1", "n2"), "a-1")
    second = Incident(NOW_S + HOUR_S, ("n2",), "a-1")
    assert added([first], [both, both], NOW_S + HOUR_S) == [first, second]
    later_s = NOW_S + WITHIN_S + 1.0  # the report about n1 is over, and a driver that repeats it is heard once more
    assert added([first, second], [replace(both, at_s=later_s)], later_s) == [second, gone("n1", later_s, "a-1")]
    assert unknown_part([first, second], both, NOW_S + HOUR_S) is None


def test_reports_up_to_the_time_at_which_a_node_was_cleared_do_not_count() -> None:
    reports = [Incident(NOW_S, ("n1", "n2"), "a-1"), gone("n1", NOW_S + 1.0, "b-1")]
    assert counting(reports, {"n1": NOW_S, "n3": NOW_S}) == [gone("n2", NOW_S, "a-1"), reports[1]]
    assert counting(reports, {}) == reports


def test_what_hits_most_nodes_at_once_is_the_fault_of_none() -> None:
    outages = {sizes: is_an_outage(*sizes) for sizes in ((1, 1), (1, 2), (2, 2), (2, 4), (3, 4))}
    assert [sizes for sizes, found in outages.items() if found] == [(1, 1), (2, 2), (3, 4)]


def test_what_a_move_says_of_machines() -> None:
    one = job(state=State.RUNNING, placement=(("id1", 1), ("id2", 1)))

    def found(reason: Reason, gone: list[str]) -> Incident | None:
        return incident_of(one, Transition(one.job_id, one.state, one.attempt, State.STOPPING, reason), gone, NOW_S)

    for reason in (Reason.NODE_LOST, Reason.DRIVER_LOST, Reason.DRIVER_KILLED):
        assert found(reason, ["n2"]) == Incident(NOW_S, ("n2",), one.submission)
        assert found(reason, []) is None  # a driver alone cannot blame a machine
    assert found(Reason.PREEMPTED, ["n2"]) is None


def test_what_was_kept_is_read_again_and_what_is_unknown_is_passed_over() -> None:
    kept = [gone("n1", NOW_S), Incident(NOW_S, ("n1", "n2"), "b-2")]
    assert loaded(dumped(kept)) == kept
    assert loaded("") == loaded("{") == loaded('[{"at_s": 1}]') == loaded("[3]") == []
    assert loaded('[{"at_s": 1, "nodes": ["n"], "attempt": "a-1", "newer": 2}]') == [Incident(1.0, ("n",), "a-1")]


def test_an_order_is_about_the_machine_and_not_about_the_id_that_it_has_today() -> None:
    def rule(node: str, order: NodeOrder = NodeOrder.CORDON) -> NodeRule:
        return NodeRule(node, order, "anna", "", NOW_S)

    nodes = [Node("id-1", 8, name="gpu-7"), Node("id-2", 8, name="gpu-8"), Node("id-3", 8)]
    rules = [rule("gpu-7"), rule("id-3"), rule("gone")]
    assert set(rules_by_node(rules, nodes)) == {"id-1", "id-3"}
    assert set(rules_by_node(rules, [Node("id-9", 8, name="gpu-7")])) == {"id-9"}  # it was started anew
    twice = [Node("id-1", 8, name="gpu-7"), Node("id-9", 8, name="gpu-7")]  # the old one is not known to be gone yet
    assert set(rules_by_node(rules, twice)) == {"id-1", "id-9"}
    both = [rule("gpu-7"), rule("id-1", NodeOrder.DRAIN)]
    assert rules_by_node(both, nodes)["id-1"].order is NodeOrder.DRAIN
