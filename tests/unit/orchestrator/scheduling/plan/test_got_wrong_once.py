"""Small examples of scheduling that were got wrong once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from cluster.capacity.inventory import Node
from orchestrator.queue.tenants import Tenant
from orchestrator.scheduling.plan.plan import plan
from orchestrator.scheduling.policy import DEFAULT, Policy
from tests.support.scheduling import HOUR, Job, nodes, snapshot
from tests.unit.orchestrator.scheduling.plan.test_rules import EASY, LONG, decided, stays

OWED_4 = (Tenant("a", guaranteed=((None, 4),)), Tenant("b", guaranteed=((None, 4),)))
AB = nodes(4, type="A") + nodes(4, type="B")
AWAY = Job("a", 1, on={0: 1}, left_s=400.0)
FIXED = Job("fixed", 8, preemptible=False, left_s=LONG)
CPUS_12 = Job("cpus", 12, on={0: 12}, gpus_per_worker=0, left_s=LONG, preemptible=False)

# fmt: off
WAS_WRONG = {
    "who waits too long goes before its own class too": (
        nodes(8), [Job("old", 8, left_s=LONG, waiting_s=169 * HOUR), Job("new", 8, left_s=60.0)],
        ["start old on 0"], DEFAULT, {}),
    "nothing is reserved for a job that its tenant's limit stops": (
        nodes(8), [stays("runs", 4, 0), Job("more", 4), replace(FIXED, gpus=4, tenant=1)],
        ["start fixed on 0"], DEFAULT, {"tenants": (Tenant("a", limit=((None, 4),)), Tenant("b"))}),
    "a gang above its tenant's limit keeps nobody waiting": (
        nodes(8, 8, type="A"), [Job("never", 16), Job("small")],
        ["start small on 0"], DEFAULT, {"tenants": [Tenant("a", limit=(("A", 8),))]}),
    "nobody overtakes who waits for the same limit": (
        nodes(8), [stays("runs", 4, 0), Job("first", 4), Job("later", 2)],
        [], DEFAULT, {"tenants": [Tenant("a", limit=((None, 6),))]}),
    "who waits for the limit of a type keeps nobody from other types, nor from CPUs": (
        AB, [stays("runs", 4, 0), Job("first", 4, type="A"), Job("other", 2), Job("cpus", 2, gpus_per_worker=0)],
        ["start other on 1", "start cpus on 0"], DEFAULT, {"tenants": [Tenant("a", limit=(("A", 4),))]}),
    "who waits for the limit of all types keeps nobody from CPUs": (
        nodes(8), [stays("runs", 4, 0), Job("first", 4), Job("cpus", 2, gpus_per_worker=0)],
        ["start cpus on 0"], DEFAULT, {"tenants": [Tenant("a", limit=((None, 4),))]}),
    "a claim on one type that finds nothing does not stop a claim on any": (
        AB, [Job("b", 4, on={0: 4}, tenant=1), Job("c", 4, on={1: 4}, tenant=2), Job("one", 4), Job("two", 4)],
        ["stop c", "start two on 1"], DEFAULT,
        {"tenants": (Tenant("a", guaranteed=(("A", 4), (None, 4))), OWED_4[1], Tenant("c"))}),
    "each tenant has a claim of its own": (
        nodes(8), [Job("a", 8, on={0: 8}, left_s=HOUR), Job("a2", 4, left_s=HOUR), Job("b", 4, tenant=1, left_s=HOUR)],
        ["stop a", "start a2 on 0", "start b on 0"], DEFAULT, {"tenants": OWED_4}),
    "what is guaranteed of A is not taken of B": (
        AB, [stays("x", 4, 0, tenant=1), Job("b", 4, on={1: 4}, tenant=1, priority=1), Job("a", 4)],
        [], DEFAULT, {"tenants": (Tenant("a", guaranteed=(("A", 4),)), Tenant("b"))}),
    "a limit of a type does not keep from nodes of unknown type": (
        nodes(4) + nodes(4, type="A"), [stays("x", 4, 1), Job("a", 4)],
        ["start a on 0"], DEFAULT, {"tenants": [Tenant("a", limit=(("A", 4),))]}),
    "what is guaranteed does not yield to what stands behind it": (
        nodes(2), [Job("owed", on={0: 1}, left_s=LONG), Job("more", 2, left_s=60.0)],
        [], DEFAULT, {"tenants": [Tenant("a", guaranteed=((None, 1),))]}),
    "nothing is reserved that is guaranteed to another tenant": (
        nodes(2), [Job("owed", on={0: 1}, left_s=LONG), Job("high", 2, tenant=1, priority=1), Job("x", 1, left_s=HOUR)],
        ["start x on 0"], DEFAULT, {"tenants": (Tenant("a", guaranteed=((None, 1),)), Tenant("b"))}),
    "nothing is moved above the limit of a type": (
        AB, [AWAY, Job("gang", 4, type="A", tenant=1)],
        [], DEFAULT, {"tenants": (Tenant("a", limit=(("B", 0),)), Tenant("b"))}),
    "the CPUs of a node without GPUs are not GPUs": (
        nodes(8, 8, 0), [Job("gang", 16)], ["start gang on 0:8 1:8"], DEFAULT, {}),
    "a gang that fits no node by its CPUs spans nodes": (
        nodes(8, 8, cpus=32), [Job("gang", 4, cpus=16)], ["start gang on 0:2 1:2"], DEFAULT, {}),
    "a gang does not span nodes because the one it fits is reserved": (
        nodes(8, 4, 4), [stays("x", 4, 0, left_s=HOUR), Job("first", 8, priority=1), replace(FIXED, gpus=6)],
        [], DEFAULT, {}),
    "the last workers of a gang fit beside what stays": (
        nodes(8, 8), [Job("a", 8, on={0: 8}, left_s=LONG), stays("b", 6, 1), Job("gang", 10)],
        ["stop a", "start gang on 0:8 1:2"], DEFAULT, {}),
    "a node is reserved from jobs that take its CPUs only": (
        nodes(8, cpus=16),
        [stays("x", 8, 0, left_s=700.0), Job("gang", 8, cpus=2), Job("cpus", 4, gpus_per_worker=0, left_s=LONG)],
        [], EASY, {}),
    "a gang waits for the CPUs that jobs without GPUs hold on its node": (
        nodes(8, cpus=16),
        [replace(CPUS_12, left_s=700.0), Job("gang", 8, cpus=2), Job("short", left_s=600.0)],
        ["start short on 0"], EASY, {}),
    "nothing is reserved where other programs hold the CPUs": (
        nodes(8, cpus=16, foreign_cpus=8), [Job("gang", 8, cpus=2), Job("long", left_s=LONG)],
        ["start long on 0"], EASY, {}),
    "a gang without GPUs is not overtaken on nodes with GPUs": (
        nodes(8, 8, cpus=16),
        [replace(CPUS_12, left_s=700.0), replace(CPUS_12, on={1: 12}), replace(CPUS_12, name="gang", on={}),
         replace(CPUS_12, name="long", gpus=4, on={}), replace(CPUS_12, name="longer", gpus=4, on={})],
        ["start long on 1"], EASY, {}),
    "who was often interrupted would not be gone in time": (
        nodes(8), [stays("x", 7, 0, left_s=700.0), Job("gang", 8, priority=1), Job("s", left_s=LONG, interruptions=50)],
        [], DEFAULT, {}),
    "who costs much would never make way": (
        nodes(8), [stays("x", 7, 0, left_s=700.0), Job("gang", 8, left_s=HOUR), Job("small", left_s=LONG, cost_s=LONG)],
        [], DEFAULT, {}),
}
# fmt: on


@pytest.mark.parametrize(("machines", "jobs", "want", "policy", "more"), WAS_WRONG.values(), ids=list(WAS_WRONG))
def test_each_of_these_was_got_wrong_once(
    machines: Sequence[Node], jobs: list[Job], want: list[str], policy: Policy, more: dict[str, Sequence[object]]
) -> None:
    assert decided(machines, jobs, policy, **more) == want


def test_no_more_is_interrupted_than_a_gang_on_several_nodes_needs() -> None:
    a, b = Job("a", 10, on={0: 8, 1: 2}, left_s=5 * HOUR), Job("b", 6, on={1: 6}, left_s=LONG)
    # After that a, of less index, may take b's place.
    assert decided(nodes(8, 8, 4), [a, b, Job("gang", 10)])[:2] == ["stop a", "start gang on 0:8 1:2"]


def test_what_was_declared_bounds_what_is_measured() -> None:
    """A run that measures twenty hours is stopped after the hour that it may still have."""
    measured = Job("runs", 8, on={0: 8}, preemptible=False, left_s=20 * HOUR, most_left_s=HOUR)
    gang, short = Job("gang", 16, priority=1), Job("short", 8, preemptible=False, left_s=2 * HOUR)
    made = plan(snapshot(nodes(8, 8), [measured, gang, short]), DEFAULT)
    assert made.decisions == () and made.reservation is not None
    assert made.reservation.at_s == pytest.approx(snapshot(nodes(8), []).now_s + HOUR)
