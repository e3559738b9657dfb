"""Trainings that live through faults of a real cluster: of its server, its head, its processes, nodes and lines."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from jobs.data.preparation.prepare import prepare
from jobs.run.checkpoints import committed_steps
from jobs.run.paths import JobPaths
from jobs.spec.load import dump_spec, load_spec
from jobs.storage.journal import read_journal
from orchestrator.queue.records import Job
from orchestrator.queue.states import State
from orchestrator.store import open_store
from tests.support import tiny
from tests.support.hostcluster import DEAD_AFTER_S, HEAD, WORKERS, HostCluster, awaited, host_cluster
from tests.support.hosts import available, cut_off, cut_off_for, reconnect
from tests.support.memorylimit import kill_by_signal
from tests.support.reference import plain_losses

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not available(), reason="needs root, iproute2 and util-linux to make hosts"),
]

# Of half a second each; of more rows, Ray Data would read most of them, which costs two actors and a process a worker.
STEPS, ELASTIC_STEPS, FURTHER = 30_000, 4_000, 2
SAVED_EVERY_MINUTES = 0.03
TRAINS_WITHIN_S = 240.0
ENDS_WITHIN_S = 120.0
WHOLE_NODE = 2  # CPUs
MOST_COMPARED = 500  # losses; the first changes of size are among them
OTHER = {
    "kind": "command", "name": "other", "command": ["sleep", "1000"],
    "resources": {"num_workers": 1, "gpus_per_worker": 0, "cpus_per_worker": WHOLE_NODE},
}  # fmt: skip


@dataclass
class Training:
    """A gang on one of the two workers."""

    cluster: HostCluster
    job_id: str
    num_workers: int = 2

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
        assert workers == self.num_workers
        return next(name for name, node_id in self.cluster.known_nodes().items() if node_id == node)

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

    def begins(self) -> None:
        """Returns once the server knows its run, and it has computed a step."""
        awaited(lambda: self.job.run, "the server knows the run", TRAINS_WITHIN_S, self.cluster.told)
        awaited(lambda: self.groups() and self.steps(), "it trains", TRAINS_WITHIN_S, self.told)

    def is_untouched(self) -> None:
        """Returns once all nodes are there, and it has gone on and saved since its workers began."""
        awaited(lambda: set(self.cluster.nodes()) >= set(WORKERS), "all nodes are there", TRAINS_WITHIN_S, self.told)
        self.goes_on()
        begun_at = self.groups()[-1]
        awaited(lambda: self.saved() > begun_at, "it has saved since it began", TRAINS_WITHIN_S, self.told)

    def is_heard_after(self, moment_s: float) -> None:
        awaited(lambda: (self.job.heard_s or 0.0) > moment_s, "it is heard again", TRAINS_WITHIN_S, self.told)

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


def submitted(cluster: HostCluster, name: str, num_workers: int = 2, **changes: Any) -> Training:
    spec = tiny.spec_of(
        cluster.shared / "runs", cluster.shared / "llama", cluster.shared / "text.jsonl", name=name,
        train__warmup_ratio=0.0, checkpoint__save_minutes=SAVED_EVERY_MINUTES,
        **{"train__max_steps": STEPS, "resources__num_workers": num_workers, "resources__cpus_per_worker": 1} | changes,
    )  # fmt: skip
    return Training(cluster, queued(cluster, name, dump_spec(spec)), num_workers)


def queued(cluster: HostCluster, name: str, spec: bytes) -> str:
    """The job's id."""
    file = cluster.shared / f"{name}.json"
    file.write_bytes(spec)
    return cluster.fleetune("submit", str(file)).split()[0]


def begun(trainings: Sequence[Training]) -> None:
    for one in trainings:
        one.begins()


def all_run_once(trainings: Sequence[Training]) -> None:
    """Each has one driver, one gang and one lease, and there are no others."""
    cluster, told = trainings[0].cluster, trainings[0].told
    workers = sum(one.num_workers for one in trainings)
    ids = sorted(one.job_id for one in trainings)

    def are_alone() -> bool:
        """What was lost may end later than what follows it begins."""
        with contextlib.closing(open_store(str(cluster.head.private / ".fleetune/queue.db"))) as store:
            leased = sorted(lease.job_id for lease in store.leases(held=True))
        return leased == ids and len(cluster.trainers()) == workers and len(cluster.drivers()) == len(trainings)

    awaited(are_alone, "there is one driver, one gang and one lease of each", ENDS_WITHIN_S, told)


@pytest.fixture(scope="module")
def cluster() -> Iterator[HostCluster]:
    with host_cluster() as found:
        tiny.save_model(found.shared / "llama", "llama")
        tiny.write_text(found.shared / "text.jsonl", 300)
        yield found


@pytest.fixture(scope="module")
def training(cluster: HostCluster) -> Training:
    made = submitted(cluster, "endures")
    begun([made])
    return made


@pytest.fixture(scope="module")
def running(training: Training) -> list[Training]:
    """All that train."""
    return [training]


@pytest.fixture(autouse=True)
def untouched(running: list[Training]) -> Iterator[None]:
    """Each fault comes upon a cluster that is whole, and trainings that go on and have a checkpoint."""
    for one in running:
        one.is_untouched()
    all_run_once(running)
    yield
    for one in running:
        one.is_written_by_one_at_a_time()


@pytest.fixture(scope="class")
def two(cluster: HostCluster, running: list[Training]) -> Iterator[list[Training]]:
    """A gang of two workers, and one of one beside it."""
    beside = submitted(cluster, "beside", num_workers=1)
    try:
        begun([beside])
        running.append(beside)
        yield running
    finally:
        running[:] = [one for one in running if one is not beside]
        cluster.fleetune("cancel", beside.job_id)
        awaited(lambda: beside.job.state is State.CANCELLED, "it has ended", ENDS_WITHIN_S, beside.told)


class TestTwoTrain:
    def test_a_server_that_was_killed_adopts_them(self, cluster: HostCluster, two: list[Training]) -> None:
        """Two drivers go on without a server, and the next one takes them as they are: none starts anew."""
        attempts, groups = [one.job.attempt for one in two], [one.groups() for one in two]
        processes, drivers = cluster.trainers(), cluster.drivers()
        cluster.kill_server()
        for one in two:
            one.goes_on()
        killed_at_s = time.time()
        cluster.start_server()
        for one in two:
            one.is_heard_after(killed_at_s)
            one.goes_on()
        assert [one.job.state for one in two] == [State.RUNNING] * 2
        assert [one.job.attempt for one in two] == attempts and [one.groups() for one in two] == groups
        assert (cluster.trainers(), cluster.drivers()) == (processes, drivers)
        for one in two:
            steps = one.steps()
            assert steps == list(range(1, len(steps) + 1))
        all_run_once(two)

    def test_they_go_on_once_the_head_and_all_nodes_are_there_again(
        self, cluster: HostCluster, two: list[Training]
    ) -> None:
        """Ray keeps nothing of itself: the operator starts all of it anew, and the queue knows what is to run."""
        attempts, groups = [one.job.attempt for one in two], [one.groups() for one in two]
        saved = [one.saved() for one in two]
        for name in (HEAD, *WORKERS):
            cluster.power_off(name)
        cluster.start_ray(HEAD)
        cluster.start_rays(*WORKERS)
        for one, had in zip(two, groups, strict=True):
            one.begins_again(len(had))
            one.goes_on()
        for one, attempt, had, at_least in zip(two, attempts, groups, saved, strict=True):
            assert one.job.attempt > attempt and one.groups()[len(had)] >= at_least
        all_run_once(two)


def test_a_worker_process_that_was_killed_is_replaced_within_the_lease(
    cluster: HostCluster, training: Training
) -> None:
    """The driver sees to it alone: the queue counts no attempt."""
    attempt, groups, saved = training.job.attempt, training.groups(), training.saved()
    (driver,) = cluster.drivers()
    kill_by_signal(cluster.trainers()[0], lambda: training.begins_again(len(groups)))
    training.goes_on()
    assert training.groups()[len(groups)] >= saved
    assert training.job.attempt == attempt and cluster.drivers() == [driver]
    all_run_once([training])


def test_a_training_leaves_a_node_that_ray_takes_away_with_the_step_that_it_stops_at(
    cluster: HostCluster, training: Training
) -> None:
    """As it does for a spot notice."""
    awaited(lambda: actors_of_ray_data(cluster) == {HEAD}, "a drain waits for no actor", ENDS_WITHIN_S, cluster.told)
    attempt, groups, where, before = training.job.attempt, training.groups(), training.where, len(training.steps())
    cluster.drain(where)
    training.begins_again(len(groups))
    training.goes_on()
    assert training.job.attempt == attempt + 1 and training.where != where
    steps = training.steps()[before - 1 :]
    assert steps == list(range(steps[0], steps[0] + len(steps)))  # none was lost, none computed twice
    assert cluster.fleetune("events").count("Ray is about to take") == 1
    awaited(lambda: where not in cluster.known_nodes(), "Ray has taken it away", TRAINS_WITHIN_S, training.told)
    cluster.power_off(where)
    cluster.start_ray(where)


def actors_of_ray_data(cluster: HostCluster) -> set[str]:
    """The names of the nodes with the two actors of Ray Data that a cluster has once, and that outlive a run."""
    names = {node["node_id"]: str(node["node_name"]) for node in cluster.ray_lists("nodes")}
    places = {one["class_name"]: one["node_id"] for one in cluster.ray_lists("actors") if one["state"] == "ALIVE"}
    return {names.get(places.get(name), "nowhere") for name in ("_StatsActor", "_AutoscalingCoordinatorActor")}


def test_a_line_that_is_cut_for_a_moment_costs_nothing(cluster: HostCluster, training: Training) -> None:
    """A silence that is shorter than Ray's patience is no loss of a node: the same processes train on."""
    while True:
        attempt, groups, processes = training.job.attempt, training.groups(), set(cluster.trainers())
        where = training.where
        if cut_off_for(cluster.hosts[where], DEAD_AFTER_S / 5) < DEAD_AFTER_S / 3:
            break
        cluster.power_off(where)  # this machine stood still meanwhile, and to Ray the node may be gone
        cluster.start_ray(where)
        training.goes_on()
        all_run_once([training])
    training.goes_on()
    time.sleep(DEAD_AFTER_S)
    training.goes_on()
    assert (training.job.attempt, training.groups()) == (attempt, groups), training.told()
    all_run_once([training])
    assert set(cluster.trainers()) == processes


def test_a_training_whose_node_is_silent_goes_on_on_another_one_once_its_workers_there_have_ended(
    cluster: HostCluster, training: Training
) -> None:
    """To the cluster the node is gone. Its workers still see the storage, and one another: only the run can tell them.

    Rank 0 alone writes metrics and markers; the other one waits for it until its raylet gives up, and can do nothing.
    """
    attempt, groups, saved, where = training.job.attempt, training.groups(), training.saved(), training.where
    cut_off(cluster.hosts[where])
    training.begins_again(len(groups))  # long before a collective would give up
    left = cluster.trainers(where)
    training.goes_on()
    training.is_written_by_one_at_a_time()
    assert len(left) < 2, training.told()
    assert training.job.attempt == attempt + 1 and training.where != where
    assert training.groups()[len(groups)] >= saved
    reconnect(cluster.hosts[where])
    all_run_once([training])
    cluster.power_off(where)  # its raylet has ended by itself, or does not belong to the cluster any more
    cluster.start_ray(where)
    training.goes_on()
    all_run_once([training])


def test_an_elastic_one_shrinks_and_grows_with_what_there_is_and_computes_the_same(
    cluster: HostCluster, training: Training, running: list[Training]
) -> None:
    """For another job, with a node that is gone, and once that is there again."""
    running.remove(training)
    cluster.fleetune("cancel", training.job_id)
    awaited(lambda: training.job.state is State.CANCELLED, "it has ended", ENDS_WITHIN_S, training.told)
    size: dict[str, Any] = {"resources__num_workers": {"min": 1, "max": 2}, "resources__cpus_per_worker": WHOLE_NODE}
    size |= {"train__global_batch_size": 8, "train__per_device_train_batch_size": 4}
    elastic = submitted(cluster, "elastic", **size, train__max_steps=ELASTIC_STEPS)
    goes_on_with(elastic, 2)

    other = queued(cluster, "other", json.dumps(OTHER).encode())
    goes_on_with(elastic, 1)
    steps = elastic.steps()
    assert steps == list(range(1, len(steps) + 1))
    assert elastic.job.interruptions == 0
    story = cluster.story(elastic.job_id)
    assert any(f"goes on with 1 worker instead of 2: {other} goes first" in line for line in story), story
    cluster.fleetune("cancel", other)
    goes_on_with(elastic, 2)

    cut_off(cluster.hosts[WORKERS[0]])
    cluster.power_off(WORKERS[0])
    goes_on_with(elastic, 1)
    reconnect(cluster.hosts[WORKERS[0]])
    elastic.is_written_by_one_at_a_time()
    spec = load_spec(elastic.paths.spec)
    cluster.fleetune("cancel", elastic.job_id)
    awaited(lambda: elastic.job.state is State.CANCELLED, "it has ended", ENDS_WITHIN_S, elastic.told)
    losses = {record["step"]: record["loss"] for record in read_journal(elastic.paths.metrics) if "loss" in record}
    prepared = prepare(spec, spec.model.path, engine="plain", say=lambda text: None)
    undisturbed = plain_losses(spec, prepared, min(len(losses), MOST_COMPARED)).loss
    assert list(losses) == list(range(1, len(losses) + 1))
    assert list(losses.values())[:MOST_COMPARED] == pytest.approx(undisturbed, rel=1e-3)


def goes_on_with(training: Training, num_workers: int) -> None:
    def true() -> bool:
        job = training.job
        there = job.state is State.RUNNING and job.run is not None
        return there and sum(workers for _, workers in job.placement) == num_workers

    awaited(true, f"it has {num_workers} workers", TRAINS_WITHIN_S, training.told)
    training.goes_on()
    assert true(), training.told()
    training.goes_on()
