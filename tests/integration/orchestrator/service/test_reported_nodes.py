"""What drivers report of their nodes: broken hardware, and nodes that Ray takes away."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.drivers.link.messages import Instruction
from orchestrator.api import NodeOrderSent
from orchestrator.client.lookup import find_node
from orchestrator.controller.node_health import FAULTY, REPORTED, Incident, dumped, loaded
from orchestrator.queue.records import NodeOrder, NodeRule
from orchestrator.queue.states import Reason, State
from orchestrator.service import drivers as driving
from orchestrator.service import nodes
from tests.support.service import ANYBODY, ServiceWorld, beat_of, command, queue


def test_a_node_whose_hardware_three_jobs_call_broken_gets_nothing_new(world: ServiceWorld) -> None:
    job = world.started(command(resources={"gpus_per_worker": 1}, **queue()))
    (node, _), *_ = job.placement
    (other,) = {one.node_id for one in world.backend.inventory().nodes} - {node}
    driving.heartbeat(world.context, beat_of(job, faulty=(other,)))
    assert REPORTED not in world.store.facts()  # it may speak of its own nodes only
    driving.heartbeat(world.context, beat_of(job, faulty=(node,)))
    driving.heartbeat(world.context, beat_of(job, faulty=(node,)))
    (mine,) = loaded(world.store.facts()[REPORTED])
    told = [event for event in world.store.events(limit=1000) if event.kind == FAULTY]
    assert [event.job_id for event in told] == [job.job_id]  # other tenants are not told of it
    others = [Incident(mine.at_s - 3600.0 * hours, mine.nodes, f"job-{hours}-1") for hours in (1, 2)]
    world.store.put_facts({REPORTED: dumped([*others, mine])})
    world.passes(2, 60.0)
    (rule,) = world.store.node_rules()
    assert (rule.node_id, rule.order) == (mine.nodes[0], NodeOrder.CORDON)
    assert "reported as faulty under jobs 3 times" in rule.reason


def faulty_events(world: ServiceWorld) -> list[Any]:
    return [event.data["nodes"] for event in world.store.events(limit=1000) if event.kind == FAULTY]


def test_a_report_that_a_driver_repeats_is_one_event_and_counts_no_more_after_uncordon(world: ServiceWorld) -> None:
    job = world.started(command(resources={"gpus_per_worker": 1}, **queue()))
    (node, _), *_ = job.placement

    def beats(number: int) -> None:
        for _ in range(number):
            driving.heartbeat(world.context, beat_of(job, faulty=(node,)))
            world.passes(1, 30.0)

    beats(1)
    (mine,) = loaded(world.store.facts()[REPORTED])
    others = [Incident(mine.at_s - 3600.0 * hours, mine.nodes, f"job-{hours}-1") for hours in (1, 2)]
    world.store.put_facts({REPORTED: dumped([*others, mine])})
    beats(20)
    assert [rule.order for rule in world.store.node_rules()] == [NodeOrder.CORDON]
    nodes.order(world.context, node, NodeOrderSent(order=NodeOrder.USE), ANYBODY)
    beats(20)
    assert world.store.node_rules() == []
    assert faulty_events(world) == [[node]]


def test_a_second_node_that_an_attempt_calls_broken_is_recorded_too(world: ServiceWorld) -> None:
    job = world.started(command(resources={"num_workers": 6, "gpus_per_worker": 1}, **queue()))
    first, second = (node for node, _ in job.placement)
    for faulty in ((first,), (first, second), (first, second)):
        driving.heartbeat(world.context, beat_of(job, faulty=faulty))
    assert faulty_events(world) == [[first], [second]]
    assert [one.nodes for one in loaded(world.store.facts()[REPORTED])] == [(first,), (second,)]


def test_a_job_whose_node_ray_takes_away_leaves_it_and_goes_on_elsewhere(world: ServiceWorld) -> None:
    job = world.started(command(resources={"gpus_per_worker": 1}, **queue(preemptible=True)))
    (node, _), *_ = job.placement
    (other,) = {one.node_id for one in world.backend.inventory().nodes} - {node}
    assert driving.heartbeat(world.context, beat_of(job, draining=(other,))).order is Instruction.GO_ON
    assert world.store.node_rules() == []  # it may speak of its own nodes only
    driving.heartbeat(world.context, beat_of(job, draining=(node,)))
    driving.heartbeat(world.context, beat_of(job, draining=(node,)))
    (rule,) = world.store.node_rules()
    assert (rule.node_id, rule.order, rule.by) == (node, NodeOrder.DRAIN, "ray")
    world.passes(1)
    assert driving.heartbeat(world.context, beat_of(job, draining=(node,))).order is Instruction.STOP
    world.passes(5)
    moved = world.job(job.job_id)
    assert moved.state is State.RUNNING and moved.placement[0][0] == other and moved.retries == {Reason.DRAINED: 1}
    world.backend.lose_node(node)
    world.passes(4)
    assert world.store.node_rules() == []  # what Ray has done is over
    assert sum("Ray is about to take" in event.message for event in world.store.events()) == 1


@pytest.mark.parametrize(("by_name", "by_id"), [("cordon", "drain"), ("drain", "cordon")])
def test_a_node_with_a_rule_by_name_and_one_by_id_is_one_node_that_is_drained(
    world: ServiceWorld, by_name: str, by_id: str
) -> None:
    node = world.backend.inventory().nodes[0].node_id
    for given, order in ((node, by_id), ("gpu-7", by_name)):
        world.store.put_node_rule(NodeRule(given, NodeOrder(order), "anna", "", world.clock()))
    world.backend.change_node(node, name="gpu-7")
    found = nodes.nodes(world.context)
    view = find_node(found, "gpu-7")
    assert (len(found.nodes), view.node_id, view.order) == (2, node, "drain")
    assert nodes.order(world.context, view.node_id, NodeOrderSent(order=NodeOrder.USE), ANYBODY).usable
    assert world.store.node_rules() == []


def test_a_rule_by_the_name_of_two_nodes_is_withdrawn_by_the_id_of_one(world: ServiceWorld) -> None:
    one, other = (node.node_id for node in world.backend.inventory().nodes)
    for node in (one, other):
        world.backend.change_node(node, name="gpu-7")
    world.store.put_node_rule(NodeRule("gpu-7", NodeOrder.CORDON, "anna", "", world.clock()))
    assert [view.order for view in nodes.nodes(world.context).nodes] == ["cordon", "cordon"]
    assert nodes.order(world.context, one, NodeOrderSent(order=NodeOrder.USE), ANYBODY).usable
    assert world.store.node_rules() == []
