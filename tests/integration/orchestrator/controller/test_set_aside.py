"""One bad row or job never stops the others: they are planned and started, and the bad one is named."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from orchestrator.controller import planner
from orchestrator.controller.set_aside import KIND, without_faulty
from orchestrator.queue.records import Job
from orchestrator.queue.states import State
from orchestrator.scheduling.plan.plan import plan as planned
from tests.support.queuejobs import job
from tests.support.queueworld import QueueWorld, new


def world(tmp_path: Path, *gpus: int) -> QueueWorld:
    return QueueWorld(*gpus, url=str(tmp_path / "queue.db"))


def spoil(tmp_path: Path, number: int, **columns: object) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "queue.db")) as raw, raw:
        for column, value in columns.items():
            raw.execute(f'UPDATE jobs SET "{column}" = ? WHERE number = ?', (value, number))


@pytest.mark.parametrize(
    "columns",
    [{"reason": "of-a-newer-release"}, {"cpus_per_worker": 2**31}, {"after": "{"}, {"state": "of-a-newer-release"}],
)
def test_the_others_start_and_one_event_names_the_row(tmp_path: Path, columns: dict[str, Any]) -> None:
    here = world(tmp_path, 4)
    bad, good = here.submit(new("bad"), new("good"))
    spoil(tmp_path, 1, **columns)
    here.passes(5)
    assert here.job(good).state is State.RUNNING
    here.server = here.another("second")  # another leader says it no second time
    here.clock.advance(60.0)
    here.passes(3)
    assert [event.kind for event in here.store.events(bad)].count(KIND) == 1
    assert [row.name for row in here.store.unreadable()] == [bad]
    here.until_all_end()
    assert here.job(good).state is State.SUCCEEDED


def test_what_a_job_that_cannot_be_read_holds_is_given_to_nobody(tmp_path: Path) -> None:
    here = world(tmp_path, 4)
    here.backend.script("*", runs_s=10_000.0)
    (bad,) = here.submit(new("bad", 3))
    here.passes(3)
    spoil(tmp_path, 1, reason="of-a-newer-release", changed=10**6)
    here.server = here.another("second")
    here.clock.advance(60.0)
    large, small = here.submit(new("large", 2), new("small", 1))
    for _ in range(4):
        here.clock.advance(1.0)
        here.server.step()
    assert here.states(large, small) == [State.QUEUED, State.RUNNING]
    assert [one.ended for one in here.backend.submissions() if one.submission == f"{bad}-1"] == [False]  # left alone


def test_a_job_after_one_that_cannot_be_read_waits(tmp_path: Path) -> None:
    here = world(tmp_path, 4)
    (parent,) = here.submit(new("parent"))
    here.until_all_end()
    (child,) = here.submit(new("child", after=(parent,)))
    spoil(tmp_path, 1, reason="of-a-newer-release")
    here.passes(3)
    assert here.states(child) == [State.QUEUED]
    spoil(tmp_path, 1, reason="finished", changed=10**6)
    here.until_all_end()
    assert here.states(child) == [State.SUCCEEDED]


def test_a_job_that_no_plan_can_be_made_with_is_set_aside_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    here = QueueWorld(8)

    def plan(snapshot: Any, policy: Any) -> Any:
        if 5.0 in snapshot.jobs.size[snapshot.waiting]:
            raise OverflowError("too large")
        return planned(snapshot, policy)

    monkeypatch.setattr(planner, "plan", plan)
    ids = here.submit(*[new(f"job{gpus}", gpus) for gpus in (1, 2, 5, 3)])
    here.passes(3)
    assert here.states(*ids) == [State.RUNNING, State.RUNNING, State.QUEUED, State.RUNNING]
    (row,) = here.server.set_aside()
    assert row.name == ids[2] and "OverflowError: too large" in row.problem
    assert [event.kind for event in here.store.events(ids[2])].count(KIND) == 1
    monkeypatch.setattr(planner, "plan", planned)
    here.server = here.another("second")  # which tries it again
    here.clock.advance(60.0)
    here.until_all_end()
    assert not here.server.set_aside()


def test_a_row_that_no_rule_is_for_is_set_aside(tmp_path: Path) -> None:
    here = world(tmp_path, 4)
    here.backend.script("*", runs_s=10_000.0)
    bad, good = here.submit(new("bad"), new("good"))
    here.passes(3)
    spoil(tmp_path, 1, state="stopping", reason="retried", changed=10**6)
    here.backend.lose(f"{bad}-1")
    (late,) = here.submit(new("late"))
    here.passes(3)
    assert here.states(bad, good, late) == [State.STOPPING, State.RUNNING, State.RUNNING]
    assert [row.name for row in here.server.set_aside()] == [bad]


def test_the_jobs_that_are_to_blame_are_found_among_many() -> None:
    jobs = [job(f"job{number}") for number in range(100)]
    bad = {"job0", "job17", "job99"}
    noted: list[str] = []

    def work(some: Any) -> list[str]:
        names = [one.job_id for one in some]
        if bad & set(names):
            raise ValueError("bad")
        return names

    def note(one: Job, error: Exception) -> None:
        noted.append(one.job_id)

    assert without_faulty(jobs, work, note) == [one.job_id for one in jobs if one.job_id not in bad]
    assert set(noted) == bad


def test_where_no_waiting_job_is_to_blame_the_error_is_raised() -> None:
    def work(some: Any) -> None:
        raise ValueError("always")

    with pytest.raises(ValueError, match="always"):
        without_faulty([job("a"), job("b")], work, lambda *_: None)
