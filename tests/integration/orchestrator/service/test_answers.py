"""Reasons, nodes and tenants, on a made-up cluster."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from typing import Any

import pytest

from cluster.capacity.inventory import Growth, Node, NodeType
from orchestrator.api import NodeOrderSent, QuotaSent, TenantSent
from orchestrator.queue.errors import Forbidden, QueueError, UnknownJob, UnknownNode
from orchestrator.queue.records import Job, Measured
from orchestrator.queue.states import DesiredState, Reason, State
from orchestrator.queue.store import Change
from orchestrator.queue.tenants import Tenant
from orchestrator.scheduling.forecast.expected_start import expected_starts, rough_start
from orchestrator.scheduling.forecast.why import why
from orchestrator.scheduling.policy import DEFAULT
from orchestrator.service import nodes, tenants
from orchestrator.service.observability.explain import Explainer
from tests.support.queueworld import START_S, new
from tests.support.service import ANNA, ANYBODY, BERT, ServiceWorld, command, queue
from tests.support.stores import go


def gpus(number: int, name: str = "job", **asks: Any) -> dict[str, Any]:
    return command(name, resources={"num_workers": number, "gpus_per_worker": 1}, **queue(**asks))


def submitted(world: ServiceWorld, spec: Any, by: Any = ANNA, passes: int = 2) -> Job:
    (job,) = world.admit(spec, by=by)
    world.passes(passes)
    return world.job(job.job_id)


def text(world: ServiceWorld, job: Job, by: Any = ANYBODY) -> str:
    return Explainer(world.context).why(job.job_id, by).text


def test_who_holds_what_a_job_waits_for_is_named_to_those_who_may_know(world: ServiceWorld) -> None:
    first = submitted(world, gpus(8, "first"))
    waits = submitted(world, gpus(2, "waits"), by=BERT)
    assert f"{first.job_id} has 4 (end unknown)" in text(world, waits)
    said = text(world, waits, BERT)
    assert said.splitlines()[0] == f"{waits.job_id} asks for 2 workers of 1 CPU and 1 GPU: too little is free"
    assert "a job of tenant a has 4" in said
    assert first.job_id not in said


def test_an_expected_start_is_a_time(world: ServiceWorld) -> None:
    first = submitted(world, gpus(8, "first"))
    world.store.measure([Measured(first.job_id, 1, remaining_s=600.0)], world.clock())
    waits = submitted(world, gpus(2, "waits"))
    found = Explainer(world.context).why(waits.job_id)
    assert found.expected_start_s == pytest.approx(world.clock() + 600.0, abs=60.0)
    assert found.expected_start_s is not None
    assert found.earliest_start_s is not None
    assert found.latest_start_s is not None
    assert found.earliest_start_s <= found.expected_start_s <= found.latest_start_s


def test_a_job_that_runs_says_where_since_and_how_far(world: ServiceWorld) -> None:
    job = submitted(world, gpus(6))
    world.store.measure([Measured(job.job_id, 1, step=30, total_steps=90, remaining_s=7200.0)], world.clock())
    world.clock.advance(60.0)
    assert text(world, job).splitlines() == [
        f"{job.job_id} runs on n0 (4 workers), n1 (2 workers); it has been there for 1 min",
        "step 30 of 90",
        "it is expected to end in about 2.0 h, as it measures",
        "it was last heard of 1 min ago",
        f"to watch it: fleetune logs {job.job_id} -f",
    ]


def test_what_keeps_a_job_besides_nodes_is_said(world: ServiceWorld) -> None:
    parent = submitted(world, gpus(8, "parent"))
    child = submitted(world, command("child", **queue(after=[parent.job_id])))
    assert text(world, child).splitlines() == [
        f"{child.job_id} starts after {parent.job_id}, which runs",
        "it waits until it has succeeded, and then for nodes; if one fails, this one fails, too",
        "to do: nothing; it starts by itself",
    ]
    paused = submitted(world, gpus(1, "paused"))
    world.store.ask(paused.job_id, Change(wanted=DesiredState.PAUSE), world.clock(), "anna")
    world.clock.advance(120.0)
    said = text(world, paused)
    assert said.splitlines() == [
        f"{paused.job_id} has been paused for 2 min, on request",
        f"to do: fleetune resume {paused.job_id} lets it go on",
    ]
    last = submitted(world, command("last", **queue(after=[paused.job_id, parent.job_id, child.job_id])))
    assert text(world, last).splitlines() == [
        f"{last.job_id} starts after 3 other jobs:",
        f"  {paused.job_id}, which is paused",
        f"  {parent.job_id}, which runs",
        f"  {child.job_id}, which waits in the queue",
        "it waits until each of them has succeeded, and then for nodes; if one fails, this one fails, too",
        f"to do: fleetune resume {paused.job_id}",
    ]
    world.store.ask(parent.job_id, Change(wanted=DesiredState.CANCEL), world.clock(), "anna")
    assert "it was asked to end, and its driver is told within seconds" in text(world, parent)


def test_the_limit_of_a_tenant_is_said_with_its_numbers(world: ServiceWorld) -> None:
    submitted(world, gpus(2, "first"))
    world.store.put_tenant(Tenant("a", limit=((None, 2),)), START_S)
    waits = submitted(world, gpus(2, "waits"))
    said = text(world, waits)
    assert "its tenant's limit is reached" in said
    assert "tenant a may hold 2 GPUs at once" in said


def test_an_end_says_how_and_what_to_do(world: ServiceWorld) -> None:
    job = submitted(world, gpus(1))
    world.store.ask(job.job_id, Change(wanted=DesiredState.CANCEL), world.clock(), "anna")
    world.passes(3)
    lines = text(world, job).splitlines()
    assert lines[0].startswith(f"{job.job_id} was cancelled")
    assert lines[1].startswith("it was started once and ran for")
    assert lines[2] == f"to do: fleetune retry {job.job_id} puts it back into the queue"
    with pytest.raises(UnknownJob):
        Explainer(world.context).why("nothing")


def test_machines_that_went_and_machines_that_are_silent_are_told_apart(world: ServiceWorld) -> None:
    waits = submitted(world, gpus(8, "waits"), passes=0)
    with world.backend.unreachable():
        world.context.machines._until_s = 0.0
        assert "the machines do not answer" in text(world, waits)
    world.context.machines._until_s = 0.0
    world.backend.lose_node("n1")
    assert "waits for machines that are not there: the spec asks for 8 workers" in text(world, waits)


def test_every_state_has_its_words(world: ServiceWorld) -> None:
    (job,) = world.store.submit([new("job")], START_S)
    ways = (State.STARTING, State.RUNNING, State.STOPPING, State.FAILED)
    for to in ways:
        job = go(world.store, job, to, now_s=world.clock())
        assert job.job_id in text(world, job)


def test_a_job_that_stops_says_why_and_where_it_goes_and_one_that_was_put_back_says_why(world: ServiceWorld) -> None:
    lost, failed = world.store.submit([replace(new("lost"), kind="finetune"), new("failed")], START_S)
    lost = go(world.store, lost, State.STARTING, now_s=world.clock())
    assert "its program is being started, and has not answered yet" in text(world, lost)
    lost = go(world.store, lost, State.RUNNING, now_s=world.clock())
    assert "it has not measured yet how long it will take" in text(world, lost)
    lost = go(world.store, lost, State.STOPPING, now_s=world.clock(), reason=Reason.NODE_LOST)
    said = text(world, lost).splitlines()
    assert said[1].startswith("why it stops: ")
    assert said[2] == "then it goes back into the queue by itself, and goes on from its newest checkpoint"
    lost = go(world.store, lost, State.QUEUED, now_s=world.clock(), reason=Reason.NODE_LOST)
    assert "it has run before, and was put back: " in text(world, lost)
    ways = (State.STARTING, State.RUNNING, State.STOPPING)
    failed = go(world.store, failed, *ways, now_s=world.clock(), reason=Reason.RUN_FAILED)
    assert "then it ends, and is not queued again" in text(world, failed)


def test_machines_that_take_nothing_new_are_named_with_what_takes_that_back(world: ServiceWorld) -> None:
    nodes.order(world.context, "n0", NodeOrderSent(order="cordon", reason="fan is loud"), ANYBODY)
    nodes.order(world.context, "n1", NodeOrderSent(order="drain"), ANYBODY)
    said = text(world, submitted(world, gpus(1)))
    assert "the machines that have room take nothing new" in said
    assert "n0 is cordoned by local (fan is loud): fleetune uncordon n0" in said


def test_a_long_queue_is_explained_quickly(world: ServiceWorld) -> None:
    jobs = world.store.submit([new(f"job{number % 9}", gpus=1 + number % 8) for number in range(5000)], START_S)
    world.passes(1)
    explainer = Explainer(world.context)
    explainer.why(jobs[-1].job_id)

    def took_s(job: Job) -> float:
        began_s = time.thread_time()
        assert explainer.why(job.job_id).expected_start_s is not None
        return time.thread_time() - began_s

    assert min(took_s(job) for job in jobs[-5:]) < 1.0  # much less; the machine may be busy


# Nodes and tenants


def test_nodes_are_listed_with_what_is_there(world: ServiceWorld) -> None:
    job = submitted(world, gpus(6))
    first, second = nodes.nodes(world.context).nodes
    assert (first.node_id, first.gpus, first.usable, first.order, first.held) == (
        "n0", 4, True, "use", ((job.job_id, 4),),
    )  # fmt: skip
    assert second.held == ((job.job_id, 2),)
    assert nodes.nodes(world.context, BERT).nodes[0].held == (("a job of a", 4),)


def test_an_order_on_a_node_is_noted_and_taken_back_also_when_it_is_gone(world: ServiceWorld) -> None:
    sent = NodeOrderSent(order="drain", reason="new disk")
    view = nodes.order(world.context, "n0", sent, ANYBODY)
    assert (view.order, view.by, view.reason, view.usable) == ("drain", "local", "new disk", False)
    assert [event.message for event in world.store.events()] == [
        "n0 is drained: what runs there goes elsewhere, by order of local (new disk)"
    ]
    with pytest.raises(UnknownNode, match="there is no node 'n7': there are n0, n1"):
        nodes.order(world.context, "n7", sent, ANYBODY)
    with pytest.raises(Forbidden):
        nodes.order(world.context, "n0", sent, ANNA)
    world.backend.lose_node("n0")
    world.context.machines._until_s = 0.0
    assert [(node.node_id, node.cpus) for node in nodes.nodes(world.context).nodes] == [("n1", 64), ("n0", 0)]
    assert nodes.order(world.context, "n0", NodeOrderSent(order="use"), ANYBODY).order == "use"
    assert [node.node_id for node in nodes.nodes(world.context).nodes] == ["n1"]


def test_a_tenant_is_made_and_changed(world: ServiceWorld) -> None:
    submitted(world, gpus(6))
    submitted(world, gpus(6))
    one = tenants.tenants(world.context).tenants[0]
    assert (one.name, one.running, one.queued, one.gpus) == ("a", 1, 1, 6)
    sent = TenantSent(
        weight=2.0, guaranteed=(QuotaSent(gpus=900),), limit=(QuotaSent(accelerator_type="H100", gpus=0),)
    )
    made = tenants.put(world.context, "new", sent)
    assert (made.weight, made.guaranteed[0].gpus, made.limit[0].gpus) == (2.0, 900, 0)
    assert world.store.tenants()[-1] == Tenant("new", 2.0, ((None, 900),), (("H100", 0),))


@pytest.mark.parametrize(
    ("guaranteed", "limit", "words"),
    [
        ({None: 4}, {None: 3}, "is guaranteed 4 of GPUs of all types, and its limit is 3"),
        ({"A100": 4}, {"A100": 3}, "is guaranteed 4 of A100 GPUs, and its limit is 3"),
        ({"A100": 2, "H100": 2}, {None: 3}, "is guaranteed 4 of GPUs of all types, and its limit is 3"),
    ],
)
def test_a_limit_below_a_guarantee_is_refused(world: ServiceWorld, guaranteed: Any, limit: Any, words: str) -> None:
    given = {
        what: tuple(QuotaSent(accelerator_type=kind, gpus=most) for kind, most in quota.items())
        for what, quota in (("guaranteed", guaranteed), ("limit", limit))
    }
    with pytest.raises(QueueError, match=words):
        tenants.put(world.context, "a", TenantSent(**given))


def test_a_tenant_has_a_plain_name_and_each_type_once(world: ServiceWorld) -> None:
    for name in ("", "a/b", "../x", "a b", "\0", "x" * 101, "-x"):
        with pytest.raises(QueueError, match="cannot be a tenant's name"):
            tenants.put(world.context, name, TenantSent())
    twice = (QuotaSent(gpus=1), QuotaSent(gpus=2))
    with pytest.raises(QueueError, match="limit names GPUs of all types twice"):
        tenants.put(world.context, "a", TenantSent(limit=twice))
    assert replace(ANNA, tenant="b").may_touch("b")


def test_far_back_in_a_queue_the_start_is_about_what_running_it_forward_gives(world: ServiceWorld) -> None:
    jobs = world.store.submit([new(f"job{number}", gpus=1 + number % 4) for number in range(80)], START_S)
    world.passes(2)
    explainer = Explainer(world.context)
    for place in (-1, -20):
        explainer.why(jobs[place].job_id)
        moment = explainer._moment
        assert moment is not None
        row = moment.row_of[jobs[place].job_id]
        found, expected = why(moment.snapshot, DEFAULT, row), expected_starts(moment.snapshot, DEFAULT, [row], ())[row]
        assert expected.start_s is not None
        rough = rough_start(moment.snapshot, [row for row, _ in found.before], ())
        assert rough.start_s == pytest.approx(expected.start_s, rel=0.5)


def test_who_holds_what_is_held_outside_fleetune_is_named(world: ServiceWorld) -> None:
    for node in world.backend.inventory().nodes:
        world.backend.change_node(node.node_id, foreign_gpus=node.gpus)
    world.backend.run_elsewhere("raysubmit_1")
    world.backend.run_elsewhere("raysubmit_guest")
    (guest,) = world.admit(gpus(1, "guest"), client="ray:raysubmit_guest:0123456789abcdef")
    waits = submitted(world, gpus(1, "waits"))
    said = text(world, waits)
    assert "are held outside Fleetune" in said and "programs outside Fleetune: raysubmit_1\n" in said
    assert "raysubmit_guest" not in said and world.job(guest.job_id).state is State.QUEUED  # it holds nothing


def test_what_waits_for_machines_that_may_be_added_is_not_told_that_it_never_starts() -> None:
    with contextlib.closing(ServiceWorld(2, growth=Growth((NodeType(Node("gpu", 64, 8, "H100"), 2),), 2))) as world:
        resources = {"num_workers": 2, "gpus_per_worker": 8, "accelerator_type": "H100"}
        (job,) = world.admit(command(resources=resources))
        told = Explainer(world.context).why(job.job_id)
    assert "there is no node that it could use" in told.text and told.expected_start_s is None
    assert "Ray's autoscaler may add 2 more nodes (2 x gpu: 64 CPU, 8 H100 GPU)" in told.text
    assert "not within the next weeks" not in told.text and "takes anything new" not in told.text
