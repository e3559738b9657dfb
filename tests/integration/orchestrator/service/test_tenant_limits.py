"""What a tenant's jobs may ask for: priority, jobs in the queue, run time, GPU-hours of a month, secrets."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from jobs.drivers.link.messages import Register
from orchestrator.api import QuotaSent, RestrictionsSent, TenantSent
from orchestrator.queue.errors import Forbidden, QueueError, StoreBroken, TenantChanged, TooManyQueued
from orchestrator.queue.states import DesiredState, State
from orchestrator.queue.store import Change, Filter
from orchestrator.queue.tenants import Restrictions, Tenant
from orchestrator.service import drivers as driving
from orchestrator.service import tenants
from orchestrator.service.admission import follow_ups as followups
from orchestrator.service.admission import limits
from orchestrator.service.admission.admit import admit
from orchestrator.service.observability.explain import Explainer
from orchestrator.service.usage import UsageMonths
from tests.support.queueworld import START_S
from tests.support.service import ANNA, ANYBODY, ServiceWorld, command, queue

GPU: dict[str, Any] = {"resources": {"num_workers": 1, "gpus_per_worker": 1}}


@pytest.fixture
def world() -> Iterator[ServiceWorld]:
    made = ServiceWorld(4, secrets={"TOKEN": "hidden"})
    yield made
    made.close()


def limit(world: ServiceWorld, **given: object) -> Tenant:
    tenant = Tenant("a", restrictions=Restrictions(**given))  # type: ignore[arg-type]
    world.store.put_tenant(tenant, START_S)
    return tenant


def test_a_member_gives_no_higher_priority_than_the_tenant_has(world: ServiceWorld) -> None:
    with pytest.raises(Forbidden, match="priority 1 is above 0, the highest for members of tenant 'a'"):
        world.admit(command(**queue(priority=1)))
    assert [job.priority for job in world.admit(command(), command(**queue(priority=-5)))] == [0, -5]
    assert world.admit(command(**queue(priority=1000, tenant="a")), by=ANYBODY)[0].priority == 1000
    tenant = limit(world, max_priority=7)
    assert world.admit(command(**queue(priority=7)))[0].priority == 7
    with pytest.raises(Forbidden, match="8 is above 7"):
        limits.check_priority(8, tenant, ANNA)


def test_no_more_jobs_are_queued_than_the_tenant_may_have(world: ServiceWorld) -> None:
    limit(world, max_queued_jobs=3)
    world.admit(command(), command())
    with pytest.raises(TooManyQueued, match=r"may have at most 3 in the queue\. It has 2, and this would add 2"):
        world.admit(command(), command())
    world.admit(command())
    world.admit(command(**queue(tenant="b")), by=ANYBODY)
    assert len(world.store.jobs()) == 4


def test_submissions_at_once_do_not_pass_the_limit_together(world: ServiceWorld) -> None:
    limit(world, max_queued_jobs=5)
    new = admit(world.context, [command()], ANNA)

    def send(_: int) -> bool:
        try:
            return bool(world.store.submit(new, START_S))
        except TooManyQueued:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(send, range(24))) == 5
    assert len(world.store.jobs()) == 5


def test_a_job_runs_no_longer_than_its_tenant_allows(world: ServiceWorld) -> None:
    limit(world, max_runtime_s=3600.0)
    jobs = world.admit(command(), command(**queue(max_runtime_s=60)), command(**queue(max_runtime_s=3600)))
    assert [job.max_runtime_s for job in jobs] == [3600.0, 60.0, 3600.0]
    with pytest.raises(QueueError, match="3,601 s are asked for, and a job of tenant 'a' may run for 3,600 s"):
        world.admit(command(**queue(max_runtime_s=3601, tenant="a")), by=ANYBODY)


def test_what_follows_the_end_of_a_job_runs_no_longer_either(world: ServiceWorld) -> None:
    (job,) = world.admit(command(**queue(on_end={"command": ["sleep", "infinity"]})))
    limit(world, max_runtime_s=3600.0)
    world.store.ask(job.job_id, Change(wanted=DesiredState.CANCEL), START_S, "anna")
    world.passes(2)
    assert followups.follow_up(world.context) == 1
    assert [one.max_runtime_s for one in world.store.jobs(Filter(name="job-on-end"))] == [3600.0]


def test_a_tenant_that_has_used_its_gpu_hours_waits_for_the_next_month_and_is_told(world: ServiceWorld) -> None:
    limit(world, max_gpu_hours_per_month=2.0)
    first, second = world.admit(command(**GPU), command(**GPU))
    world.backend.script(f"{first.job_id}-1", runs_s=1e9)
    world.passes(3)
    world.clock.advance(3600.0)  # both hold a GPU
    (third,) = world.admit(command(**GPU))
    world.passes(3)
    states = {job.job_id: job.state for job in world.store.jobs()}
    assert states.pop(third.job_id) is State.QUEUED and State.QUEUED not in states.values()
    said = Explainer(world.context).why(third.job_id).text
    assert "tenant a has used 2.0 of its 2.0 GPU-hours of 1970-01" in said
    assert "start again on 1970-02-01 at 00:00 UTC; running ones go on" in said
    assert "has begun" not in said
    world.backend.lose(f"{first.job_id}-1")
    world.passes(2)
    said = Explainer(world.context).why(first.job_id).text
    assert world.job(first.job_id).state is State.QUEUED and "it has run before, and was put back" in said
    assert "also holds for a job that has begun and no longer runs; then it begins anew" in said
    view = tenants.tenants(world.context).tenants[0]
    assert view.gpu_hours == pytest.approx(2.0, abs=0.01)
    world.clock.advance(21 * 86_400.0)
    world.passes(2)
    assert world.job(third.job_id).state is not State.QUEUED
    assert {first.job_id, second.job_id} == set(states)


def test_a_secret_that_was_taken_back_is_given_to_no_driver(world: ServiceWorld) -> None:
    (job,) = world.admit(command(**queue(secrets=["TOKEN"])))
    world.passes(2)
    assert driving.register(world.context, Register(job_id=job.job_id, attempt=1)).secrets == {"TOKEN": "hidden"}
    limit(world)
    with pytest.raises(QueueError, match="fleetune tenants set a --secret TOKEN"):
        driving.register(world.context, Register(job_id=job.job_id, attempt=1))


def test_a_driver_waits_for_its_secrets_while_the_row_of_its_tenant_cannot_be_read(tmp_path: Path) -> None:
    with contextlib.closing(ServiceWorld(4, secrets={"TOKEN": "x"}, url=str(tmp_path / "queue.db"))) as world:
        (job,) = world.admit(command(**queue(secrets=["TOKEN"])))
        world.passes(2)
        with contextlib.closing(sqlite3.connect(tmp_path / "queue.db")) as raw, raw:
            raw.execute("UPDATE tenants SET restrictions = '{' WHERE name = 'a'")
        with pytest.raises(StoreBroken, match="the settings of tenant 'a' cannot be read"):
            driving.register(world.context, Register(job_id=job.job_id, attempt=1))


def test_a_tenant_keeps_its_limits_where_none_are_sent_and_each_change_is_an_event(world: ServiceWorld) -> None:
    sent = RestrictionsSent(max_priority=5, max_runtime_s=60.0, roots=("/shared/a/", "s3://bucket/a"), secrets=("K",))
    view = tenants.put(world.context, "new", TenantSent(restrictions=sent), "root")
    assert view.restrictions.roots == ("/shared/a", "s3://bucket/a")
    again = tenants.put(world.context, "new", TenantSent(weight=2.0), "root")
    assert again.restrictions == view.restrictions and again.weight == 2.0
    tenants.put(world.context, "new", TenantSent(weight=2.0), "root")
    told = [event.message for event in world.store.events() if event.kind == tenants.TENANT]
    assert told == [
        "root makes tenant new: max_priority 0 -> 5; max_runtime_s none -> 60; roots none -> /shared/a, s3://bucket/a; "
        "secrets none -> K",
        "root changes tenant new: weight 1 -> 2",
    ]


def test_a_change_of_settings_that_others_have_changed_meanwhile_is_refused(world: ServiceWorld) -> None:
    read = tenants.put(world.context, "new", TenantSent(weight=2.0), version="")
    with pytest.raises(TenantChanged, match="tenant 'new' was changed meanwhile: read its settings"):
        tenants.put(world.context, "new", TenantSent(weight=9.0), version="")
    now = tenants.put(world.context, "new", TenantSent(weight=3.0), version=read.version)
    with pytest.raises(TenantChanged):
        tenants.put(world.context, "new", TenantSent(weight=2.0, limit=(QuotaSent(gpus=8),)), version=read.version)
    assert tenants.put(world.context, "new", TenantSent(weight=3.0), version=now.version) == now


@pytest.mark.parametrize(
    "root",
    ["shared", "/a/../b", "a::b", "simplecache::s3://x", "file:///x", "s3://", "s3:///x", "://x", "/a\nb", "S3 ://x"],
)
def test_what_is_no_root_is_refused(world: ServiceWorld, root: str) -> None:
    with pytest.raises(QueueError, match="cannot be a root"):
        tenants.put(world.context, "a", TenantSent(restrictions=RestrictionsSent(roots=(root,))))


def test_each_month_is_added_up_once(world: ServiceWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[float] = []
    world.admit(command(**GPU))
    world.passes(2)

    class Counted:
        def month_totals(self, at_s: float, now_s: float) -> object:
            reads.append(at_s)
            return world.store.month_totals(at_s, now_s)

    months = UsageMonths(Counted(), world.clock)  # type: ignore[arg-type]
    world.clock.advance(30 * 86_400.0)
    first = months.usage()
    assert [(row.month, row.tenant) for row in first.rows] == [("1970-01", "a"), ("1970-02", "a")]
    assert len(reads) == 12
    assert months.usage() == first and months.usage("1970-01", "a").rows == first.rows[:1] and len(reads) == 12
    limited = Tenant("b", restrictions=Restrictions(max_gpu_hours_per_month=1.0))
    assert months.usage("1970-03").rows == () and months.gpu_hours([Tenant("a")]) == {}
    assert months.gpu_hours([Tenant("a"), limited]) == {"a": first.rows[1].gpu_hours}
    assert months.usage(tenant="b").rows == ()
