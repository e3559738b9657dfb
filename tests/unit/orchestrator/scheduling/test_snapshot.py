"""From a store's rows to a snapshot."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from bench.schedule import NOW_S as BENCH_NOW_S
from bench.schedule import TENANTS, rows_of, waiting_job
from cluster.capacity.gang import Gang
from cluster.capacity.inventory import Inventory, Node
from orchestrator.queue.tenants import Tenant
from orchestrator.scheduling.job_table import HELD, RUNNING, WAITING
from orchestrator.scheduling.plan.decisions import Start
from orchestrator.scheduling.plan.plan import plan
from orchestrator.scheduling.snapshot import ROW, Snapshot, snapshot_of

INVENTORY = Inventory((Node("n1", 32, 8, "A100"), Node("n2", 32, 8, "H100")))
USUAL = dict.fromkeys(ROW) | {
    "tenant": "a",
    "priority": 0,
    "num_workers": 1,
    "cpus_per_worker": 4,
    "gpus_per_worker": 1,
    "state": WAITING,
    "submitted_s": 10.0,
    "waiting_since_s": 10.0,
    "waited_s": 0.0,
    "started_s": 0.0,
    "attained_s": 0.0,
    "preemptible": True,
    "interruptions": 0,
    "interruption_cost_s": 60.0,
}


def row(job_id: str, **values: Any) -> tuple[Any, ...]:
    return tuple({**USUAL, "job_id": job_id, **values}[name] for name in ROW)


def snapshot(*rows: tuple[Any, ...], now_s: float = 1000.0) -> Snapshot:
    return snapshot_of(rows, INVENTORY, [Tenant("a"), Tenant("b", 2.0)], {"b": 50.0}, now_s)


def test_rows_keep_their_numbers_and_what_nobody_knows_stays_unknown() -> None:
    found = snapshot(
        row("one", tenant="b", priority=3, num_workers=4, remaining_s=77.0, most_left_s=500.0),
        row("two", accelerator_type="H100", gpus_per_worker=2),
    )
    jobs = found.jobs
    assert jobs.gang_of(0) == Gang(4, 4, 1) and jobs.gang_of(1) == Gang(1, 4, 2, "H100")
    assert jobs.size.tolist() == [4, 2] and jobs.priority.tolist() == [3, 0] and jobs.tenant.tolist() == [1, 0]
    assert jobs.remaining_s[0] == 77.0 and math.isnan(jobs.remaining_s[1])
    assert jobs.most_left_s.tolist() == [500.0, math.inf] and found.used_s.tolist() == [0.0, 50.0]


def test_a_type_of_gpus_makes_no_difference_to_a_job_without_gpus() -> None:
    found = snapshot(
        row("one", gpus_per_worker=0, accelerator_type="H100"),
        row("two", gpus_per_worker=0),
        row("three", gpus_per_worker=1),
    )
    assert [found.jobs.gang_of(row) for row in range(3)] == [Gang(1, 4), Gang(1, 4), Gang(1, 4, 1)]


def test_running_jobs_hold_their_nodes() -> None:
    found = snapshot(
        row("one", state=RUNNING, num_workers=3, placement=(("n2", 3),)),
        row("two", state=RUNNING, num_workers=4, placement=(("n1", 1), ("n2", 3))),
    )
    assert found.cluster.free.tolist() == [7, 2] and found.cluster.cpus_free.tolist() == [28, 8]
    assert [(found.cluster.slots == one).sum() for one in (0, 1)] == [3, 4]


def test_a_job_waits_for_the_jobs_before_it_as_long_as_these_are_there() -> None:
    found = snapshot(row("parent"), row("child", after=("parent", "ended")), row("orphan", after=("ended",)))
    assert found.jobs.state.tolist() == [WAITING, HELD, WAITING] and found.parents == {1: (0,)}
    assert {one.row for one in plan(found).decisions} == {0, 2}


def test_a_job_does_not_start_before_its_time_nor_wait_before_it() -> None:
    rows = [row("later", not_before_s=2000.0)]
    assert plan(snapshot(*rows, now_s=1999.0)).decisions == ()
    due = snapshot(*rows, now_s=2000.0)
    assert plan(due).decisions == (Start(0, ((0, 1),)),)
    assert due.jobs.waiting_since_s[0] == 2000.0


def test_no_rows_are_a_snapshot_too() -> None:
    assert plan(snapshot()).decisions == ()


def test_a_node_that_is_held_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="n1 has 8 free slots, not 10"):
        snapshot(
            row("one", state=RUNNING, num_workers=5, placement=(("n1", 5),)),
            row("two", state=RUNNING, num_workers=5, placement=(("n1", 5),)),
        )


def test_the_rows_of_the_benchmark_are_rows() -> None:
    jobs = [waiting_job(number, random.Random(number)) for number in range(10)]
    now = snapshot_of(rows_of(jobs), INVENTORY, TENANTS, {}, BENCH_NOW_S)
    assert now.waiting[:10].all() and not now.sizes
