"""Drives one run on a Ray cluster: prepares the data, starts worker groups, and watches them."""

from __future__ import annotations

import contextlib
import functools
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cluster.capacity.gang import Gang
from cluster.capacity.inventory import Inventory
from cluster.errors import CapacityError, FleetuneError, Interrupted, MachinesFailed, RunFailed, StorageError
from cluster.job_environment import JobEnvironment
from cluster.ray.connection import (
    check_alive,
    connected,
    free_now,
    is_own,
    keep_actors_here,
    leaving_nodes,
    snapshot,
)
from cluster.ray.node_tasks import ask_nodes
from jobs.drivers.finetune.begin import Assignment
from jobs.drivers.finetune.hang_watch import HangWatch
from jobs.drivers.finetune.lost_workers import LostWorkers
from jobs.drivers.finetune.machines import find_room, places_under_ray
from jobs.drivers.finetune.memory_remedy import MemoryRemedy, with_earlier_changes
from jobs.drivers.finetune.node_draining import Draining
from jobs.drivers.native_crash import with_signal
from jobs.drivers.stop_request import STOPPED_AGAIN, STOPPED_EARLY, StopRelay, StopRequest
from jobs.model_files.directory import supports_checkpointing
from jobs.planning import gang_of, most_workers, with_workers, worker_numbers
from jobs.preflight.ready import ready_data
from jobs.preflight.run_plan import earlier_choice, with_fields, with_planned_fields
from jobs.run.attempts import check_held, count_attempts, retake_run, take_run
from jobs.run.checkpoints import newest_step
from jobs.run.events import Announcer, Watch
from jobs.run.manifest import run_facts
from jobs.run.outcome import Outcome
from jobs.run.paths import JobPaths
from jobs.run.progress import Progress
from jobs.run.record import write_manifest
from jobs.spec.finetune import Spec
from jobs.storage import files as storage
from jobs.storage.journal import Record
from jobs.training.ending import failures_of, outcome_of
from jobs.training.faults import first_line
from jobs.training.on_ray.crash import Crash, How, crashes_of, examined
from jobs.training.on_ray.fit import fit
from jobs.training.vitals import dead_ranks
from jobs.training.worker_input import Job

_LOOK_AT_NODES_S = 5.0
_NEEDED = ("ray.data", "jobs.training.on_ray.controller")  # modules that this process needs to start workers
_MOST_EXAMINED = 8  # dead processes whose nodes are asked about them


def drive_on_ray(
    spec: Spec,
    paths: JobPaths,
    address: str | None,
    announce: Announcer,
    progress: Progress,
    stop: StopRequest,
    assignment: Assignment | None = None,
) -> Outcome:
    """Run the job to its outcome.

    Raises:
        InputError: the data or the gang is impossible.
        RunFailed: the workers were lost too often, or they ran out of memory and no remedy is left.
        MachinesFailed: an assigned node or its cluster is gone, or workers were lost there too often.
        Interrupted: a second Ctrl-C, or a request to stop while the workers prepare to train.
        Stopped: a request to stop before the workers started.
        RunTaken: another driver has taken the run.
    """
    given = assignment or Assignment()
    most = spec.resources.num_workers
    if given.num_workers is not None:
        spec = with_workers(spec, given.num_workers)
    facts, driver_id = run_facts(), take_run(paths)
    announce("phase", "connecting to Ray", phase="connect")
    least = gang_of(with_workers(spec, worker_numbers(spec)[0]))
    with connected_as_given(spec, least, address, given, _NEEDED) as inventory:
        facts |= {"nodes": len(inventory.nodes), "cluster_cpus": inventory.cpus, "cluster_gpus": inventory.gpus}
        if not is_own(address):
            keep_actors_here()
        watch = Watch(paths, progress)
        driver = Driver(paths, driver_id, facts, stop, announce, watch, given.places, is_own(address), most)
        return trained(spec, driver)


@dataclass(frozen=True)
class Driver:
    """The parts of a run's driver that do not change while it is connected to Ray.

    Attributes:
        driver_id: see `JobPaths.driver`.
        facts: content of the manifest.
        watch: looks while workers run.
        places: node of each worker, as a queue assigned it; None lets Ray choose.
        alone: this process has started Ray, which ends with it.
        most_workers: largest number of workers that the job may get.
    """

    paths: JobPaths
    driver_id: str
    facts: Mapping[str, Any]
    stop: StopRequest
    announce: Announcer
    watch: Watch
    places: tuple[str, ...] | None
    alone: bool
    most_workers: int = 1


def trained(spec: Spec, driver: Driver) -> Outcome:
    """Prepare the data and train on the connected cluster. Returns the outcome, which is not yet written.

    Raises:
        FleetuneError: see `drive_on_ray`.
    """
    paths, announce = driver.paths, driver.announce
    prepared = ready_data(spec, "ray", announce)
    facts = {**driver.facts, "data_fingerprint": prepared.manifest.fingerprint}
    write_manifest(paths, facts)
    numbers = worker_numbers(spec)
    if spec.resources.min_workers is not None:  # decided only now, because preparation may have taken hours
        spec = with_workers(spec, most_workers(spec, free_now()))
    earlier = earlier_choice(spec, paths)
    spec = with_earlier_changes(with_fields(spec, earlier.fields), paths, announce)
    find_places = functools.partial(places_under_ray, spec, driver.places, driver.alone)
    spec = with_planned_fields(spec, earlier, prepared, find_places, paths, announce, driver.most_workers)
    announce("phase", f"starting {gang_of(spec)}", phase="workers")
    attempts, supports = count_attempts(paths), supports_checkpointing(spec)
    job = Job(spec, paths.root, prepared.root, spec.model.path, attempts, driver.driver_id, supports)
    draining = Draining(paths, announce, driver.places, driver.stop)
    training = Training(job, driver, draining, StopRelay(driver.stop, paths, announce), numbers)
    try:
        result = training.run()
    finally:  # workers that another driver has cut off look like lost ones
        check_held(paths, training.job.driver)
    write_manifest(paths, facts | (result or {}).get("facts", {}))
    return outcome_of(paths, result, failures_of(paths))


@contextlib.contextmanager
def connected_as_given(
    spec: Spec, gang: Gang, address: str | None, given: Assignment, needed: Sequence[str]
) -> Iterator[Inventory]:
    """Connect to the cluster at `address`, with the job's working directory and the variables that a queue assigned.

    Args:
        gang: the smallest gang with which the job can run.
        needed: modules to import while Ray starts.

    Raises:
        CapacityError: the gang can never fit.
        MachinesFailed: the gang no longer fits. The queue has seen it fit, so the machines have changed.
    """
    job_environment = JobEnvironment(spec.working_dir, given.variables, gpus=spec.resources.gpus_per_worker > 0)
    try:
        with connected(address, gang, job_environment, needed) as inventory:
            yield inventory
    except CapacityError as error:
        if given.places is None:
            raise
        raise MachinesFailed(f"the nodes of this attempt can no longer be had: {error}") from error


@dataclass
class Training:
    """Runs the worker groups of one driver in turn, until one succeeds or another start would not help.

    Attributes:
        numbers: of workers with which the run can go on without a queue; only one if it is not elastic.
    """

    job: Job
    driver: Driver
    draining: Draining
    relay: StopRelay
    numbers: tuple[int, ...] = ()
    _looked_at_s: float = field(default_factory=time.monotonic)
    _groups_before: int = 0  # worker groups that had begun to train when the present one started
    memory: MemoryRemedy = field(init=False)
    hangs: HangWatch = field(init=False)
    losses: LostWorkers = field(init=False)

    def __post_init__(self) -> None:
        self.memory = MemoryRemedy(self.job.paths, self.driver.announce)
        self.hangs = HangWatch(self.driver.announce, self.driver.places)
        self.losses = LostWorkers(self.job.paths, self.driver.announce, self.driver.places)

    def run(self) -> Record | None:
        """Return rank 0's result; None if a worker reported a failure.

        Raises:
            RunFailed, MachinesFailed: see `drive_on_ray`.
            RunTaken: another driver has taken the run.
            Interrupted: a stop before the workers train, a second signal, or workers were lost before they could answer
                a request to stop.
            Stopped: a request to stop while no workers were running.
        """
        while True:
            self._find_room()
            self.driver.stop.defer()
            self.memory.begin()
            try:
                result = self._fitted()
                smaller = None if self.driver.stop.asked else self.memory.job_after_failure(self.job)
                if smaller is None:
                    return result
                self.job = smaller
            except FleetuneError:
                raise
            except Exception as error:
                traceback.print_exc()
                check_held(self.job.paths, self.job.driver)
                crash = crash_of(error, self.job.driver, self.driver.places or ())
                self._go_on_after(self.hangs.named(crash and with_signal(crash, self.job.paths)), error)
                storage.remove_dir(self.job.paths.failures)
                # Old workers that are cut off, and still reach the storage, see the new id and end.
                self.job = replace(self.job, driver=retake_run(self.job.paths, self.job.driver))
            self.driver.stop.defer(False)

    def _find_room(self) -> None:
        spec = self.job.spec
        found = find_room(spec, self.driver.places, self.driver.announce, self._look_for_stop, self.numbers)
        if found is not spec:
            self.job = replace(self.job, spec=found)
            self.driver.announce("phase", f"there is no room for {gang_of(spec)}: going on with {gang_of(found)}")

    def _look_for_stop(self) -> None:
        """Raise Stopped if a stop was requested, while there are no workers that save a checkpoint first."""
        self.driver.stop.look_for_file(self.job.paths)
        self.driver.stop.defer(False)

    def _fitted(self) -> Record | None:
        """Run one worker group. Raises any exception of `fit`; Interrupted for a stop before its first step."""
        self._groups_before = count_attempts(self.job.paths)
        self.hangs.begin(self.job, self.driver.watch.newest)
        self.losses.begin(self.driver.watch.newest)
        try:
            return fit(self.job, self.driver.places, self.driver.alone, self._look, wakeup=self.driver.stop.wakeup)
        finally:
            self.driver.watch.look()
            self.losses.look(self.driver.watch.newest)
            self.hangs.leave()

    def _look(self) -> None:
        self.driver.watch.look_when_due()
        self.memory.look()
        self.hangs.look(self.driver.watch.newest)
        self.losses.look(self.driver.watch.newest)
        self._end_before_first_step()
        self.relay.check()
        if time.monotonic() - self._looked_at_s > _LOOK_AT_NODES_S:
            self.draining.look(leaving_nodes())
            check_alive(self.driver.places or (), snapshot())
            self._looked_at_s = time.monotonic()

    def _end_before_first_step(self) -> None:
        """Raise Interrupted if a stop was requested before the group trains: it would answer only at its first step.

        It may still load the model for minutes. `fit` then leaves the workers, and Ray ends all of them.
        """
        if not self.driver.stop.asked:
            return
        with contextlib.suppress(StorageError):  # then the workers answer, or the next look
            if count_attempts(self.job.paths) <= self._groups_before:
                reached = newest_step(self.job.paths)
                raise Interrupted(STOPPED_EARLY if not reached else f"{STOPPED_AGAIN} {reached}")

    def _go_on_after(self, crash: Crash | None, error: Exception) -> None:
        """Return if the workers should be started again; raise RunFailed, MachinesFailed or Interrupted otherwise."""
        if crash is None:
            raise RunFailed(f"Ray Train gave the run up: {first_line(getattr(error, 'controller_failure', error))}")
        if self.driver.stop.asked:
            raise Interrupted(f"asked to stop, but {crash} before a checkpoint was written") from error
        if crash.how is How.MEMORY:
            self.job = self.memory.job_after_kill(self.job, crash)
            return
        if crash.how is How.NO_ROOM and self.driver.places is None:
            return
        allowed, told = self.job.spec.remedies.lost_workers, self.hangs.has_ended_the_workers
        self.losses.go_on(crash, self.driver.watch.newest, allowed=allowed, told=told)


def crash_of(error: Exception, driver: str, places: Sequence[str] = ()) -> Crash | None:
    """Describe the end of the workers, with what their nodes know about it; None if no worker was lost.

    Args:
        error: exception of `DriverTrainer.fit`.
        driver: see `Job`.
        places: nodes that a queue has assigned.

    Raises:
        MachinesFailed: one of these nodes is gone.
    """
    nodes = snapshot()
    check_alive(places, nodes)
    found = [_examined(crash, nodes, driver) for crash in crashes_of(error)[:_MOST_EXAMINED]]
    return min(found, key=lambda crash: list(How).index(crash.how), default=None)


def _examined(crash: Crash, nodes: Inventory, driver: str) -> Crash:
    if crash.node is None or crash.node not in {node.node_id for node in nodes.nodes}:
        return crash
    left = ask_nodes([crash.node], dead_ranks, driver)
    return examined(crash, left[crash.node]) if left else crash
