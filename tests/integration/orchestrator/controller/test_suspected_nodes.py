"""A machine that fails again and again is left alone, on a made-up cluster."""

from __future__ import annotations

from cluster.testing import FakeBackend
from orchestrator.api import NodeOrderSent
from orchestrator.controller.node_health import BY, REPORTED, Incident, dumped, loaded
from orchestrator.queue.records import NodeOrder
from orchestrator.queue.states import State
from orchestrator.service import nodes
from orchestrator.service.context.caller import ANYBODY
from orchestrator.service.observability.explain import Explainer
from tests.support.queueworld import QueueWorld, new
from tests.support.service import ServiceWorld

HOUR_S = 3600.0


def break_down(world: QueueWorld, backend: FakeBackend, name: str, times: int) -> None:
    """It takes what runs there along, and comes back under another id, as Ray's nodes do."""
    for _ in range(times):
        (node,) = [node.node_id for node in backend.inventory().nodes if node.name == name]
        job = next(job for job in world.store.jobs() if dict(job.placement).get(node))
        backend.lose_node(node)
        world.passes(4)
        assert world.job(job.job_id).retries
        made = f"{name}-{world.clock():.0f}"
        backend.add_node(made, gpus=8)
        backend.change_node(made, name=name)
        world.passes(3, HOUR_S)


def a_world() -> ServiceWorld:
    world = ServiceWorld(8, 8, 8)
    for number in range(3):
        world.backend.change_node(f"n{number}", name=f"gpu-{number}")
    world.backend.script("*", runs_s=1e9)
    return world


def test_a_node_that_was_lost_three_times_gets_nothing_new_and_why_says_so() -> None:
    world = a_world()
    world.submit(*(new(f"job-{number}", 8) for number in range(3)))
    world.passes(3)
    break_down(world, world.backend, "gpu-1", 2)
    assert world.store.node_rules() == []
    break_down(world, world.backend, "gpu-1", 1)
    (rule,) = world.store.node_rules()
    assert (rule.node_id, rule.order, rule.by) == ("gpu-1", NodeOrder.CORDON, BY)
    assert rule.reason.startswith("was gone under jobs 3 times within a day: at ")
    waits = [job for job in world.store.jobs() if job.state is State.QUEUED]
    assert len(waits) == 1  # the two other nodes are taken
    said = Explainer(world.context).why(waits[0].job_id).text
    assert (
        "gpu-1 is cordoned by fleetune (was gone under jobs 3 times within a day" in said
        and "fleetune uncordon gpu-1" in said
    )
    assert any(
        "gpu-1 takes nothing new: it was gone under jobs 3 times" in event.message for event in world.store.events()
    )

    # Whoever lets it work again is believed: what was known is forgotten.
    (view,) = [node for node in nodes.nodes(world.context).nodes if node.name == "gpu-1"]
    assert view.order == "cordon" and not view.usable
    nodes.order(world.context, view.node_id, NodeOrderSent(order="use", reason="new disk"), ANYBODY)
    world.passes(20)
    assert world.store.node_rules() == [] and world.job(waits[0].job_id).state is State.RUNNING
    world.close()


def test_an_order_that_is_withdrawn_resets_the_count() -> None:
    world = a_world()
    world.submit(*(new(f"job-{number}", 8) for number in range(3)))
    world.passes(3)
    break_down(world, world.backend, "gpu-1", 2)
    for order in ("cordon", "use"):
        (node,) = [node.node_id for node in world.backend.inventory().nodes if node.name == "gpu-1"]
        nodes.order(world.context, node, NodeOrderSent(order=order, reason="new cable"), ANYBODY)
        world.passes(3)
    break_down(world, world.backend, "gpu-1", 2)
    assert world.store.node_rules() == []
    break_down(world, world.backend, "gpu-1", 1)
    assert [(rule.node_id, rule.by) for rule in world.store.node_rules()] == [("gpu-1", BY)]
    world.close()


def test_reports_from_before_the_end_of_an_order_do_not_count_after_it() -> None:
    world = a_world()
    world.passes(3)
    nodes.order(world.context, "n1", NodeOrderSent(order="drain", reason=""), ANYBODY)
    world.passes(1)
    reports = [Incident(world.clock() - HOUR_S * age, ("gpu-1", "gpu-2"), f"job-{age}-1") for age in (2, 1)]
    world.store.put_facts({REPORTED: dumped(reports)})
    nodes.order(world.context, "n1", NodeOrderSent(order="use", reason="new GPU"), ANYBODY)
    world.passes(1)
    kept = loaded(world.store.facts()[REPORTED])
    assert kept == reports  # the drivers repeat them, and they must not look new
    world.store.put_facts({REPORTED: dumped([*kept, Incident(world.clock(), ("gpu-1", "gpu-2"), "job-0-1")])})
    world.passes(2, 60.0)
    assert [rule.node_id for rule in world.store.node_rules()] == ["gpu-2"]
    world.close()


def test_an_order_holds_for_a_machine_that_comes_back_under_another_id() -> None:
    world = a_world()
    nodes.order(world.context, "n2", NodeOrderSent(order="cordon", reason="loud"), ANYBODY)
    world.backend.lose_node("n2")
    world.backend.add_node("n9", gpus=8)
    world.backend.change_node("n9", name="gpu-2")
    world.submit(*(new(f"job-{number}", 8) for number in range(3)))
    world.passes(5)
    assert {node for job in world.store.jobs() for node, _ in job.placement} == {"n0", "n1"}
    world.close()


def test_the_last_node_is_never_taken_away() -> None:
    world = ServiceWorld(8)
    world.backend.change_node("n0", name="gpu-0")
    world.backend.script("*", runs_s=1e9)
    world.submit(new("job", 8))
    world.passes(3)
    break_down(world, world.backend, "gpu-0", 5)
    assert world.store.node_rules() == []
    world.close()
