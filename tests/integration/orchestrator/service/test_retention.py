"""A server removes old jobs in batches, on the machines first, and never what is young."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.backend import Launch
from cluster.capacity.inventory import Inventory, Node
from cluster.errors import BackendUnreachable, InputError
from cluster.local.backend import LocalBackend
from cluster.settings import retention_days
from orchestrator.queue.states import State
from orchestrator.service import retention
from orchestrator.service.retention import DAY_S, Retention, kept_since_s
from tests.support.processes import wait_for
from tests.support.queueworld import new
from tests.support.service import ServiceWorld


def retention_of(world: ServiceWorld) -> Retention:
    return Retention(world.context, lambda: world.store.leader().epoch)  # type: ignore[union-attr]


def test_old_jobs_and_what_machines_keep_of_them_go_and_the_others_stay() -> None:
    world = ServiceWorld(4, retention_days=90.0)
    world.backend.script("*", output=b"said\n")
    (old,) = world.submit(new("old"))
    world.until_all_end()
    submission = world.job(old).submission
    removes = retention_of(world)
    world.clock.advance(50 * DAY_S)
    assert removes() == 0 and world.backend.output(submission)
    world.clock.advance(50 * DAY_S)
    (young,) = world.submit(new("young"))
    world.until_all_end()
    removes._next_s = 0.0
    with world.backend.unreachable(), pytest.raises(BackendUnreachable):
        removes()
    assert world.job(old).state is State.SUCCEEDED  # machines first
    assert removes() == 1
    assert [job.job_id for job in world.store.jobs()] == [young]
    assert not world.backend.output(submission) and world.backend.output(world.job(young).submission)
    world.close()


def test_a_batch_at_a_time_and_nothing_where_all_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH", 2)
    world = ServiceWorld(8, retention_days=90.0)
    world.submit(*[new(f"job{number}") for number in range(5)])
    world.until_all_end()
    world.clock.advance(200 * DAY_S)
    world.passes(1)
    removes = retention_of(world)
    assert [removes() for _ in range(4)] == [2, 2, 1, 0]
    world.close()
    keeps = ServiceWorld(8)
    keeps.submit(new("job"))
    keeps.until_all_end()
    keeps.clock.advance(10_000 * DAY_S)
    assert retention_of(keeps)() == 0 and len(keeps.store.jobs()) == 1
    keeps.close()


def test_leases_of_this_month_and_the_last_are_kept_whatever_the_retention_is() -> None:
    now_s = 1_795_600_045.0  # 2026-11-25
    assert kept_since_s(now_s, 1.0, DAY_S) == 1_790_812_800.0  # 2026-10-01
    assert kept_since_s(now_s, 90.0, DAY_S) == now_s - 90 * DAY_S
    assert kept_since_s(now_s, 1.0, 20 * DAY_S) == now_s - 200 * DAY_S


def test_the_folder_of_a_local_job_goes_when_it_is_discarded(tmp_path: Path) -> None:
    backend = LocalBackend(tmp_path, Inventory((Node("n0", 4),)))
    backend.start(Launch("a-1", ("echo", "said")), 1)
    wait_for(lambda: all(one.ended for one in backend.submissions()), "it has ended")
    backend.start(Launch("b-1", ("sleep", "1000")), 1)
    backend.forget(["a-1"])
    assert backend.output("a-1") == b"said\n"
    backend.discard(["a-1", "b-1", "unknown-1"])
    assert backend.output("a-1") == b"" and [one.submission for one in backend.submissions()] == ["b-1"]
    assert not list(tmp_path.glob("*/a-1"))
    backend.stop("b-1", hard=True)
    wait_for(lambda: all(one.ended for one in backend.submissions()), "it has ended")


@pytest.mark.parametrize(("text", "days"), [(None, 90.0), ("", 90.0), ("0", 0.0), ("30.5", 30.5)])
def test_the_retention_is_read_from_the_environment(text: Any, days: float) -> None:
    assert retention_days({} if text is None else {"FLEETUNE_RETENTION_DAYS": text}) == days


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "ever"])
def test_a_retention_that_is_no_number_of_days_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="FLEETUNE_RETENTION_DAYS"):
        retention_days({"FLEETUNE_RETENTION_DAYS": text})
