"""Servers as real processes on one SQLite file and a made-up cluster in a process of its own: killed, and frozen."""

from __future__ import annotations

import contextlib
import random
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.backend import Phase
from cluster.capacity.gang import Gang
from cluster.testing import FakeBackend, double_runs, most_gpus, served
from orchestrator.queue.errors import JobEnded
from orchestrator.queue.records import NewJob
from orchestrator.queue.states import ENDED, DesiredState, State
from orchestrator.queue.store import Change, Store
from orchestrator.queue.tenants import Tenant
from orchestrator.store import open_store
from tests.support.gangs import FORKED
from tests.support.queueservers import TERM_S, Servers, servers
from tests.support.queueworld import new
from tests.support.raycluster import ray_head


@dataclass
class World:
    store: Store
    backend: FakeBackend
    servers: Servers
    file: Path  # of the store


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    store = open_store(str(tmp_path / "queue.db"))
    for tenant in "ab":
        store.put_tenant(Tenant(tenant), time.time())
    with (
        contextlib.closing(store),
        served(tmp_path, "--nodes", "3", "--rate", "1.0", "--runs-s", "0.2") as backend,
        servers(tmp_path / "queue.db", tmp_path / "cluster") as found,
    ):
        yield World(store, backend, found, tmp_path / "queue.db")


def until(condition: Callable[[], bool], within_s: float = 120.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_server_killed_a_hundred_times_in_a_run_of_200_jobs_loses_none_and_runs_none_twice(world: World) -> None:
    """The README says so. Each is a process, killed by SIGKILL at any moment of a pass; the machines are made up."""
    chance = random.Random(7)
    world.backend.script("fails-*", runs_s=0.1, exit_code=1)
    world.backend.script("slow-*", runs_s=1.0, stops_after_s=0.1)
    world.backend.script("late-*", runs_s=0.1, starts_after_s=0.1)
    ids: list[str] = []
    for _ in range(100):
        name, gpus = chance.choice(("fast", "fast", "fails", "slow", "late")), chance.choice((1, 1, 2, 4, 8, 12))
        jobs = [new(name, gpus, chance.choice("ab"), priority=chance.choice((0, 0, 5))) for _ in range(2)]
        ids += [job.job_id for job in world.store.submit(jobs, time.time())]
        if chance.random() < 0.2:
            with contextlib.suppress(JobEnded):
                world.store.ask(chance.choice(ids), Change(wanted=DesiredState.CANCEL), time.time(), "test")
        pid = world.servers.start()
        time.sleep(TERM_S + chance.uniform(0.0, 0.25))  # it leads after a term, and is killed anywhere in a pass
        world.servers.send(pid, signal.SIGKILL)
    world.servers.start()
    until(lambda: all(world.store.job(job_id).state in ENDED for job_id in ids), 400.0)
    history = world.backend.history()
    assert not double_runs(history) and max(most_gpus(history).values()) <= 8
    assert not world.store.leases(held=True)
    until(lambda: not world.backend.submissions())
    for job_id in ids:
        job = world.store.job(job_id)
        last = [run for run in history if run.submission.startswith(f"{job_id}-")][-1:]
        ends = {State.SUCCEEDED: [Phase.SUCCEEDED], State.FAILED: [Phase.FAILED]}
        assert job.state is State.CANCELLED or [run.phase for run in last] == ends[job.state]
    assert {world.store.job(job_id).state for job_id in ids} == ENDED


def freeze(world: World, pid: int) -> None:
    """Freeze a server outside of a transaction: one that holds the lock of the file would stop all others."""
    while True:
        world.servers.send(pid, signal.SIGSTOP)
        with contextlib.closing(sqlite3.connect(world.file, timeout=1.0, isolation_level=None)) as database:
            try:
                database.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError:
                world.servers.send(pid, signal.SIGCONT)
                time.sleep(0.05)


def test_a_server_frozen_for_longer_than_its_term_is_refused_when_it_wakes_up(world: World) -> None:
    world.backend.script("*", runs_s=1e6)
    first = world.servers.start()
    until(lambda: world.store.leader() is not None)
    leader = world.store.leader()
    assert leader is not None and leader.holder.startswith("server-1-")
    ids = [job.job_id for job in world.store.submit([new("job", 8) for _ in range(12)], time.time())]
    until(lambda: len(world.backend.history()) > 0)
    freeze(world, first)
    before = max(run.fence for run in world.backend.history())
    world.servers.start()
    until(lambda: getattr(world.store.leader(), "holder", "").startswith("server-2-"))
    world.backend.script("*", runs_s=0.5)
    world.backend.advance(1e6)  # what the first one has started ends, so that the second one starts the others
    world.servers.send(first, signal.SIGCONT)
    until(lambda: all(world.store.job(job_id).state in ENDED for job_id in ids))
    history = world.backend.history()
    assert not double_runs(history) and max(most_gpus(history).values()) <= 8
    assert {world.store.job(job_id).state for job_id in ids} == {State.SUCCEEDED} and len(history) == 12
    # A server that stands still for a term leads anew, with another fence. Nothing starts with an earlier one.
    fences = [run.fence for run in sorted(history, key=lambda run: run.started_s)]
    assert fences == sorted(fences) and before < fences[-1]
    last = world.store.leader()
    assert last is not None and last.epoch >= fences[-1]


PROGRAM = """
exec 9> {folder}/{name}.lock
flock --nonblock 9 || echo twice >> {folder}/twice
echo begun >> {folder}/{name}
sleep {seconds}
echo ended >> {folder}/{name}
exit {code}
"""


def test_a_server_killed_ten_times_over_twenty_real_processes_loses_none_and_runs_none_twice(tmp_path: Path) -> None:
    folder = tmp_path / "machine"
    folder.mkdir()
    kill_ten_times(tmp_path, folder, gpus=1, between_s=(TERM_S, TERM_S + 0.3))


@pytest.mark.slow
def test_a_server_killed_ten_times_over_twenty_jobs_of_a_real_ray_loses_none_and_runs_none_twice(
    tmp_path: Path,
) -> None:
    """The only one that kills servers while Ray's own list of jobs tells what runs; each program says whether it ran
    twice.
    """
    with ray_head(num_cpus=8, PYTHONPATH=FORKED) as head:
        kill_ten_times(tmp_path, f"{head.dashboard} {head.token}", gpus=0, between_s=(1.0, 4.0))


def kill_ten_times(tmp_path: Path, where: Path | str, gpus: int, between_s: tuple[float, float]) -> None:
    """Twenty programs that say when they begin and end, and that two of one name overlap; every fifth of them fails."""
    kills = 10
    chance, work = random.Random(3), tmp_path / "work"
    work.mkdir()
    store = open_store(str(tmp_path / "queue.db"))
    store.put_tenant(Tenant("a"), time.time())
    codes = [0 if number % 5 else 1 for number in range(20)]
    jobs = []
    for number, code in enumerate(codes):
        program = PROGRAM.format(folder=work, name=number, seconds=chance.choice((0, 1)), code=code)
        jobs.append(NewJob("real", "command", "a", program, Gang(chance.choice((1, 2, 4)), 1, gpus), "test"))
    with contextlib.closing(store), servers(tmp_path / "queue.db", where) as found:
        ids = [job.job_id for job in store.submit(jobs, time.time())]
        for _ in range(kills):
            pid = found.start()
            time.sleep(chance.uniform(*between_s))
            found.send(pid, signal.SIGKILL)
        found.start()
        until(lambda: all(store.job(job_id).state in ENDED for job_id in ids), 240.0)
        assert not store.leases(held=True)
        assert [store.job(job_id).state for job_id in ids] == [
            State.FAILED if code else State.SUCCEEDED for code in codes
        ]
        # A server that is killed inside a start may leave a program that never ran, and is tried again.
        assert max(store.job(job_id).attempt for job_id in ids) <= 1 + kills
    assert not (work / "twice").exists()
    assert [(work / str(number)).read_text().split() for number in range(20)] == [["begun", "ended"]] * 20
