"""GPU-hours of the running month, carried forward from pass to pass, and what a tenant that has used them up may do."""

from __future__ import annotations

import datetime
from dataclasses import replace

import pytest

from cluster.capacity.gang import Gang
from orchestrator.controller.ledger import Cluster, orders, snapshot
from orchestrator.queue.months import MonthTotal, MonthUse, month_around, month_of, spent, totals_of
from orchestrator.queue.records import Job, Lease
from orchestrator.queue.states import State
from orchestrator.queue.tenants import Restrictions, Tenant
from orchestrator.scheduling.plan.plan import plan
from tests.support.queuejobs import NOW_S, inventory, job

HOUR_S = 3600.0


def at(*when: int) -> float:
    return datetime.datetime(*when, tzinfo=datetime.UTC).timestamp()  # type: ignore[arg-type, misc]


def lease(begin_s: float, end_s: float | None, gpus: int = 2, tenant: str = "a") -> Lease:
    return Lease("x", 1, tenant, Gang(gpus, 4, 1), (("n0", gpus),), begin_s, end_s)


def released(*leases: Lease) -> list[MonthTotal]:
    """Of November 2026, as a store adds them up."""
    return [total for total in totals_of(leases) if total.month == "2026-11"]


def running(since_s: float, gpus: int = 2, name: str = "runs") -> Job:
    return job(name, State.RUNNING, gpus, started_s=since_s)


def test_a_month_has_a_begin_and_an_end() -> None:
    assert month_around(at(2026, 12, 31, 23, 59)) == (at(2026, 12, 1), at(2027, 1, 1))
    assert month_around(at(2026, 12, 1)) == (at(2026, 12, 1), at(2027, 1, 1))


def test_leases_that_have_ended_and_jobs_that_run_count_together() -> None:
    now_s = at(2026, 11, 2)
    use = MonthUse(released(lease(at(2026, 11, 1), at(2026, 11, 1, 3))), now_s)
    assert use.advance([running(now_s - HOUR_S)], now_s) == {"a": 3 * 2 + 2}
    assert use.advance([running(now_s - HOUR_S)], now_s + HOUR_S) == {"a": 3 * 2 + 4}


def test_a_job_counts_until_the_pass_that_sees_it_end() -> None:
    now_s = at(2026, 11, 2)
    use = MonthUse([], now_s)
    use.advance([running(now_s)], now_s)
    assert use.advance([], now_s + HOUR_S) == {"a": 2.0}
    assert use.advance([], now_s + 5 * HOUR_S) == {"a": 2.0}
    again = replace(running(now_s + 5 * HOUR_S), attempt=2)
    assert use.advance([again], now_s + 6 * HOUR_S) == {"a": 4.0}


def test_what_a_job_gives_back_counts_until_then() -> None:
    now_s = at(2026, 11, 2)
    use, whole = MonthUse([], now_s), running(now_s)
    use.advance([whole], now_s)
    part = replace(whole, gang=replace(whole.gang, num_workers=whole.gang.num_workers // 2))
    assert use.advance([part], now_s + HOUR_S) == {"a": 2.0}
    assert use.advance([part], now_s + 3 * HOUR_S) == {"a": 4.0}


def test_a_new_month_begins_with_what_was_held_since_its_begin() -> None:
    end_s = at(2026, 12, 1)
    use = MonthUse(released(lease(at(2026, 11, 3), at(2026, 11, 4))), end_s - HOUR_S)
    runs = running(end_s - HOUR_S)
    assert use.advance([runs], end_s - HOUR_S / 2) == {"a": 49.0}
    assert use.advance([runs], end_s + HOUR_S) == {"a": 2.0}


@pytest.mark.parametrize("now_s", [at(2026, 11, 9, 5), at(2026, 12, 1, 2)])
def test_it_agrees_with_what_usage_says(now_s: float) -> None:
    leases = [lease(at(2026, 10, 30), at(2026, 11, 1, 7)), lease(at(2026, 11, 8), at(2026, 11, 8, 5), 3)]
    held = lease(at(2026, 10, 31), None)
    use = MonthUse(released(*leases), at(2026, 11, 9))
    totals = totals_of([*leases, held], now_s)
    (gpu_s,) = [total.gpu_s for total in totals if total.month == month_of(now_s)]
    assert use.advance([running(held.granted_s)], now_s)["a"] == pytest.approx(gpu_s / HOUR_S)


def test_a_tenant_that_has_used_its_gpu_hours_starts_nothing_and_others_do() -> None:
    limited = Tenant("a", restrictions=Restrictions(max_gpu_hours_per_month=10.0)), Tenant("b")
    runs, on_cpus = job("runs", State.RUNNING, 1), replace(job("cpu"), gang=Gang(1, 1, 0))
    jobs = [runs, job("waits"), job("other", tenant="b"), on_cpus]
    for used, started in ((9.9, {"waits", "other", "cpu"}), (10.0, {"other", "cpu"})):
        cluster = Cluster(inventory(4), limited, gpu_hours={"a": used})
        found = orders(jobs, plan(snapshot(jobs, {}, cluster, NOW_S)), {}, cluster)
        assert {move.job_id for move in found.transitions} == started


def test_what_was_nominated_before_the_hours_were_used_up_still_starts() -> None:
    limited = (Tenant("a", restrictions=Restrictions(max_gpu_hours_per_month=10.0)),)
    jobs, nominations = [job("waits")], {"waits": (("n0", 1),)}
    cluster = Cluster(inventory(4), limited, gpu_hours={"a": 11.0})
    found = orders(jobs, plan(snapshot(jobs, nominations, cluster, NOW_S)), nominations, cluster)
    assert [move.to for move in found.transitions] == [State.STARTING]


def test_tenants_without_a_limit_are_never_spent() -> None:
    tenants = [Tenant("a"), Tenant("b", restrictions=Restrictions(max_gpu_hours_per_month=0.0))]
    assert spent(tenants, {"a": 1e9}) == {"b"}
