"""One training that lives through faults of a real cluster: of its server, its head, its processes, nodes and lines."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from jobs.checkpoints import committed_steps
from jobs.journal import read_journal
from jobs.load import dump_spec
from jobs.paths import JobPaths
from orchestrator.queue.records import Job
from orchestrator.queue.states import State
from orchestrator.store import open_store
from tests.support import tiny
from tests.support.hostcluster import DEAD_AFTER_S, WORKERS, HostCluster, awaited, host_cluster
from tests.support.hosts import available, cut_off, reconnect

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not available(), reason="needs root, iproute2 and util-linux to make hosts"),
]

STEPS, FURTHER = 1_000_000, 5  # where others share the cores, a step may take a second
SAVED_EVERY_MINUTES = 0.1
TRAINS_WITHIN_S = 240.0
BEYOND_START_S, ENDS_WITHIN_S = 60.0, 120.0


@dataclass
class Training:
    """A gang of two on one of the two workers.

    Attributes:
        start_s: from its submission to its first step.
    """

    cluster: HostCluster
    job_id: str
    start_s: float = 0.0

    @property
    def job(self) -> Job:
        return self.cluster.job(self.job_id)

    @property
    def paths(self) -> JobPaths:
        run = self.job.run
        assert run is not None
        return JobPaths(run)

    @property
    def where(self) -> str:
        """The name of the node of its lease."""
        ((node, workers),) = self.job.placement
        assert workers == 2
        return next(name for name, node_id in self.cluster.nodes().items() if node_id == node)

    def steps(self) -> list[int]:
        return [record["step"] for record in read_journal(self.paths.metrics)]

    def groups(self) -> list[int]:
        """At which step each group of workers has begun."""
        folder = Path(self.paths.attempt(0)).parent
        return [json.loads(path.read_bytes())["start"] for path in sorted(folder.glob("*"))]

    def saved(self) -> int:
        """The step of its newest checkpoint; 0: it has none."""
        return max(committed_steps(self.paths), default=0)

    def told(self) -> str:
        return "\n".join([*self.cluster.story(self.job_id), str(self.groups()), self.cluster.told()])

    def goes_on(self, within_s: float = TRAINS_WITHIN_S) -> float:
        """Returns once it has computed steps that it had not when this was called, and how long that took."""
        before = len(self.steps())
        return awaited(lambda: len(self.steps()) > before + FURTHER, "it trains on", within_s, self.told)

    def begins_again(self, groups: int, within_s: float = TRAINS_WITHIN_S) -> float:
        """Returns once a further group of workers has begun, and how long that took."""
        return awaited(lambda: len(self.groups()) > groups, "other workers go on with it", within_s, self.told)

    def is_written_by_one_at_a_time(self) -> None:
        """Steps follow each other, but where a group of workers begins at its checkpoint; none is left out."""
        steps, groups = self.steps(), self.groups()
        begun = [steps[0] - 1, *(now - 1 for before, now in pairwise(steps) if now != before + 1)]
        assert all(now <= before + 1 for before, now in pairwise(steps)), (begun, groups, steps)
        left = iter(groups)
        assert all(start in left for start in begun), (begun, groups)  # in this order; one that wrote nothing may lack

    def runs_once(self) -> None:
        awaited(lambda: len(self.cluster.trainers()) == 2, "there is one gang", ENDS_WITHIN_S, self.told)
        assert len(self.cluster.drivers()) == 1, self.told()
        with contextlib.closing(open_store(str(self.cluster.head.private / ".fleetune/queue.db"))) as store:
            assert [lease.job_id for lease in store.leases(held=True)] == [self.job_id]


@pytest.fixture(scope="module")
def cluster() -> Iterator[HostCluster]:
    with host_cluster() as found:
        tiny.save_model(found.shared / "llama", "llama")
        tiny.write_text(found.shared / "text.jsonl", 300)
        yield found


@pytest.fixture(scope="module")
def training(cluster: HostCluster) -> Training:
    spec = tiny.spec_of(
        cluster.shared / "runs", cluster.shared / "llama", cluster.shared / "text.jsonl", name="endures",
        train__max_steps=STEPS, train__warmup_ratio=0.0, resources__cpus_per_worker=1,
        checkpoint__save_minutes=SAVED_EVERY_MINUTES,
    )  # fmt: skip
    file = cluster.shared / "job.json"
    file.write_bytes(dump_spec(spec))
    began = time.monotonic()
    made = Training(cluster, cluster.fleetune("submit", str(file)).split()[0])
    awaited(lambda: made.job.run, "the server knows the run", TRAINS_WITHIN_S, cluster.told)
    awaited(lambda: made.groups() and made.steps(), "it trains", TRAINS_WITHIN_S, made.told)
    made.start_s = time.monotonic() - began
    return made


@pytest.fixture(autouse=True)
def untouched(training: Training) -> Iterator[None]:
    """Each fault comes upon a cluster that is whole, and a training that goes on and has a checkpoint."""
    awaited(lambda: set(training.cluster.nodes()) >= set(WORKERS), "all nodes are there", 120.0, training.told)
    training.goes_on()
    begun_at = training.groups()[-1]
    awaited(lambda: training.saved() > begun_at, "it has saved since it began", TRAINS_WITHIN_S, training.told)
    training.runs_once()
    yield
    training.is_written_by_one_at_a_time()


def test_a_server_that_was_killed_adopts_what_trains(cluster: HostCluster, training: Training) -> None:
    attempt, groups, processes = training.job.attempt, training.groups(), set(cluster.trainers())
    cluster.kill_server()
    training.goes_on()
    killed_at_s = time.time()
    cluster.start_server()
    awaited(lambda: (training.job.heard_s or 0.0) > killed_at_s, "the driver is heard again", 60.0, training.told)
    training.goes_on()
    assert (training.job.state, training.job.attempt) == (State.RUNNING, attempt)
    assert training.groups() == groups and set(cluster.trainers()) == processes
    steps = training.steps()
    assert steps == list(range(1, len(steps) + 1))
    training.runs_once()


def test_a_worker_process_that_was_killed_is_replaced_within_the_lease(
    cluster: HostCluster, training: Training
) -> None:
    attempt, groups, saved = training.job.attempt, training.groups(), training.saved()
    (driver,) = cluster.drivers()
    os.kill(cluster.trainers()[0], signal.SIGKILL)
    training.begins_again(len(groups))
    training.goes_on()
    assert training.groups()[len(groups)] >= saved
    assert training.job.attempt == attempt and cluster.drivers() == [driver]
    training.runs_once()


def test_a_training_whose_node_is_gone_goes_on_on_another_one(cluster: HostCluster, training: Training) -> None:
    attempt, groups, saved = training.job.attempt, training.groups(), training.saved()
    where = training.where
    cut_off(cluster.hosts[where])
    cluster.power_off(where)
    took_s = training.begins_again(len(groups))
    assert took_s < BEYOND_START_S + training.start_s, training.told()
    training.goes_on()
    assert training.job.attempt == attempt + 1 and training.where != where
    assert training.groups()[len(groups)] >= saved
    training.runs_once()
    reconnect(cluster.hosts[where])
    cluster.start_ray(where)


def test_a_training_leaves_a_node_that_ray_takes_away_with_the_step_that_it_stops_at(
    cluster: HostCluster, training: Training
) -> None:
    """As it does for a spot notice."""
    attempt, groups, where, before = training.job.attempt, training.groups(), training.where, len(training.steps())
    cluster.drain(where)
    training.begins_again(len(groups))
    training.goes_on()
    assert training.job.attempt == attempt + 1 and training.where != where
    steps = training.steps()[before - 1 :]
    assert steps == list(range(steps[0], steps[0] + len(steps)))  # none was lost, none computed twice
    assert cluster.fleetune("events").count("Ray is about to take") == 1
    awaited(lambda: where not in cluster.nodes(), "Ray has taken it away", 120.0, training.told)
    cluster.power_off(where)
    cluster.start_ray(where)


def test_a_training_goes_on_once_the_head_and_all_nodes_are_there_again(
    cluster: HostCluster, training: Training
) -> None:
    """Ray keeps nothing of itself: the operator starts all of it anew, and the queue knows what is to run."""
    attempt, groups, saved = training.job.attempt, training.groups(), training.saved()
    for name in ("head", *WORKERS):
        cluster.power_off(name)
    for name in ("head", *WORKERS):
        cluster.start_ray(name)
    took_s = training.begins_again(len(groups))
    assert took_s < BEYOND_START_S + training.start_s, training.told()
    training.goes_on()
    assert training.job.attempt == attempt + 1
    assert training.groups()[len(groups)] >= saved
    training.runs_once()


def test_a_line_that_is_cut_for_a_moment_costs_nothing(cluster: HostCluster, training: Training) -> None:
    attempt, groups, processes = training.job.attempt, training.groups(), set(cluster.trainers())
    host = cluster.hosts[training.where]
    cut_off(host)
    time.sleep(DEAD_AFTER_S / 5)
    reconnect(host)
    training.goes_on()
    time.sleep(DEAD_AFTER_S)
    training.goes_on()
    assert (training.job.attempt, training.groups()) == (attempt, groups), training.told()
    training.runs_once()
    assert set(cluster.trainers()) >= processes


def test_workers_that_were_cut_off_for_long_have_ended_before_others_go_on_with_their_run(
    cluster: HostCluster, training: Training
) -> None:
    """They still see the storage, and one another: nothing but the run itself can tell them.

    Rank 0 alone writes metrics and markers; the other one waits for it until its raylet gives up, and can do nothing.
    """
    attempt, groups, where = training.job.attempt, training.groups(), training.where
    cut_off(cluster.hosts[where])
    training.begins_again(len(groups))
    left = cluster.trainers(where)
    training.goes_on()
    training.is_written_by_one_at_a_time()
    assert len(left) < 2, training.told()
    assert training.job.attempt == attempt + 1 and training.where != where
    reconnect(cluster.hosts[where])
    training.runs_once()
    cluster.power_off(where)  # its raylet has ended by itself, or does not belong to the cluster any more
    cluster.start_ray(where)
    training.goes_on()
    training.runs_once()
