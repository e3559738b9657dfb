"""The largest numbers that are admitted neither break a plan nor start what does not fit."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.capacity.gang import MOST_CPUS_PER_WORKER, MOST_GPUS_PER_WORKER, MOST_OF_A_GANG, MOST_WORKERS, Gang
from cluster.capacity.inventory import Inventory, Node
from jobs.spec.queue import MOST_PRIORITY, MOST_RUNTIME_S
from orchestrator.controller.autoscaler_demand import demand
from orchestrator.controller.ledger import Cluster, orders, snapshot
from orchestrator.queue.records import Job
from orchestrator.queue.states import State
from orchestrator.queue.tenants import Tenant
from orchestrator.scheduling.plan.plan import plan
from orchestrator.scheduling.policy import DEFAULT
from tests.support.queuejobs import NOW_S, job

SECONDS = st.sampled_from([0.0, 1e-300, 1.0, 1e6, MOST_RUNTIME_S])
MAYBE_SECONDS = st.none() | SECONDS


def _is_admitted(gang: Gang) -> bool:
    try:
        gang.check_size()
    except ValueError:
        return False
    return True


GANGS = st.builds(
    Gang,
    st.sampled_from([1, 2, 7, MOST_OF_A_GANG // MOST_CPUS_PER_WORKER, MOST_WORKERS]),
    st.sampled_from([1, 3, MOST_OF_A_GANG // MOST_WORKERS, MOST_CPUS_PER_WORKER]),
    st.sampled_from([0, 1, 8, MOST_GPUS_PER_WORKER]),
    st.sampled_from([None, "H100"]),
).filter(_is_admitted)


@st.composite
def jobs(draw: st.DrawFn) -> list[Job]:
    found = [
        replace(
            job(f"job{number}"),
            gang=draw(GANGS),
            tenant=draw(st.sampled_from("ab")),
            priority=draw(st.sampled_from([-MOST_PRIORITY, 0, MOST_PRIORITY])),
            waiting_since_s=NOW_S - draw(SECONDS),
            waited_s=draw(SECONDS),
            attained_s=draw(SECONDS),
            remaining_s=draw(MAYBE_SECONDS),
            max_runtime_s=draw(MAYBE_SECONDS),
            interruption_cost_s=draw(SECONDS),
            interruptions=draw(st.sampled_from([0, 10**6])),
        )
        for number in range(draw(st.integers(1, 6)))
    ]
    for number in range(draw(st.integers(0, 2))):  # that run, on all GPUs of a node each
        cost = draw(SECONDS)
        runs = job(f"runs{number}", State.RUNNING, on=((f"n{number}", 8),), interruption_cost_s=cost)
        found.append(replace(runs, gang=Gang(8, 1, 1), remaining_s=draw(MAYBE_SECONDS)))
    return found


NODES = Inventory(
    (
        Node("n0", 64, 8, "H100"),
        Node("n1", 64, 8, "H100"),
        Node("n2", MOST_CPUS_PER_WORKER),
        Node("n3", MOST_CPUS_PER_WORKER, MOST_GPUS_PER_WORKER, "H100"),
    )
)


@settings(max_examples=150, deadline=None)
@given(jobs(), st.sampled_from([0.0, 1e12]))
def test_a_plan_with_extreme_numbers_is_made_and_fits(some: list[Job], used_s: float) -> None:
    cluster = Cluster(NODES, (Tenant("a", weight=1e-9), Tenant("b", weight=1e9, limit=((None, 4096),))), {"a": used_s})
    made = plan(snapshot(some, {}, cluster, NOW_S), DEFAULT)
    found = orders(some, made, {}, cluster)
    demand(some, found.nominations, cluster, DEFAULT, NOW_S)
    gang_of = {one.job_id: one.gang for one in some}
    cpus, gpus = Counter[str](), Counter[str]()
    held = [(one.job_id, one.placement) for one in some if one.placement]
    for job_id, placement in [*held, *((move.job_id, move.placement) for move in found.transitions)]:
        for node, workers in placement:
            cpus[node] += workers * gang_of[job_id].cpus_per_worker
            gpus[node] += workers * gang_of[job_id].gpus_per_worker
    assert all(cpus[node.node_id] <= node.cpus and gpus[node.node_id] <= node.gpus for node in NODES.nodes)
