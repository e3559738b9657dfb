"""Drives a run without Ray: torchrun starts the processes, rank 0 prepares the data, a plain reader feeds the loop."""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch.distributed as dist

from cluster.errors import FleetuneError, OutOfMemory, RunFailed, RunTaken, StorageError
from cluster.local.memory import killed_since, memory_here
from cluster.settings import TorchrunWorld, expand_gpu_memory
from jobs.console import end_process, redirected_output, user_stream
from jobs.drivers.finetune.begin import begin_run
from jobs.drivers.finetune.machines import places_here
from jobs.drivers.finetune.memory_remedy import with_earlier_changes
from jobs.drivers.stop_request import StopRequest
from jobs.planning import with_workers
from jobs.preflight.ready import ready_data
from jobs.preflight.run_plan import earlier_choice, with_fields, with_planned_fields
from jobs.preflight.validate import enter_working_dir
from jobs.remedies.out_of_memory import advice
from jobs.run.attempts import check_held, count_attempts, take_run
from jobs.run.events import Announcer, Watch
from jobs.run.manifest import run_facts
from jobs.run.outcome import Outcome, Status
from jobs.run.paths import JobPaths
from jobs.run.progress import PlainProgress, Progress
from jobs.run.record import concluded, ending_of, write_manifest
from jobs.spec.finetune import Spec
from jobs.storage import files as storage
from jobs.training.ending import failures_of, outcome_of
from jobs.training.faults import first_line
from jobs.training.loop.loop import train
from jobs.training.loop.worker import guarded
from jobs.training.worker_context import TorchrunWorkerContext, end_superseded, worker_device
from jobs.training.worker_input import Job

# Other ranks wait this long for rank 0 to prepare the data. In training, a hanging rank is given up much earlier.
_PREPARE_TIMEOUT = datetime.timedelta(hours=6)
_TRAIN_TIMEOUT = datetime.timedelta(minutes=30)
EVERY_S = 1.0  # seconds between two checks for failures
# Seconds in which the main thread may notice the failure itself, and end the run in the ordinary way.
GRACE_S = 5.0


def run_under_torchrun(spec: Spec, world: TorchrunWorld, resume: str | None = None) -> Outcome:
    """Run one process of the job. torchrun's number of processes replaces the spec's num_workers.

    Args:
        resume: root of an earlier run to continue.

    Raises:
        InputError: rank 0 found a mistake before anything was written; the other ranks end without a message.
    """
    spec = with_workers(spec, world.world_size)
    if spec.resources.gpus_per_worker:
        expand_gpu_memory()
    device = worker_device(spec.resources.gpus_per_worker, world.local_rank)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_TRAIN_TIMEOUT)
    waiting = dist.new_group(backend="gloo", timeout=_PREPARE_TIMEOUT)
    if world.rank == 0:
        outcome = _lead(spec, world, resume, waiting, PlainProgress(user_stream()))
    else:
        outcome = _follow(world, waiting)
    if outcome.status is not Status.FAILED and dist.is_initialized():  # otherwise NCCL would wait for lost ranks
        dist.destroy_process_group()
    return outcome


def _lead(spec: Spec, world: TorchrunWorld, resume: str | None, waiting: Any, progress: Progress) -> Outcome:
    """Lead as rank 0: validate, prepare, send the job to the other ranks, train, conclude."""
    told = False

    def tell(job: Job | None) -> None:
        nonlocal told
        told = True
        dist.broadcast_object_list([job], src=0, group=waiting)

    try:
        begun = begin_run(spec, resume)
        paths = begun.paths
        with contextlib.closing(Announcer(paths, progress)) as announce, redirected_output(paths.log("rank-0")):
            begun.tell(announce)
            drive = functools.partial(_prepare_and_train, begun.spec, world, paths, announce, progress, tell)
            outcome = concluded(paths, drive, announce)
            announce("ended", ending_of(paths, outcome), status=outcome.status)
        return outcome
    finally:
        if not told:
            tell(None)


def _prepare_and_train(
    spec: Spec, world: TorchrunWorld, paths: JobPaths, announce: Announcer, progress: Progress, tell: Any
) -> Outcome:
    driver_id = take_run(paths)
    prepared = ready_data(spec, "plain", announce)
    facts = run_facts() | {"data_fingerprint": prepared.manifest.fingerprint}
    write_manifest(paths, facts)
    earlier = earlier_choice(spec, paths)
    spec = with_earlier_changes(with_fields(spec, earlier.fields), paths, announce)
    places = functools.partial(places_here, spec) if world.is_one_node else lambda: None
    spec = with_planned_fields(spec, earlier, prepared, places, paths, announce)
    job = Job(spec, paths.root, prepared.root, spec.model.path, count_attempts(paths), driver_id)
    tell(job)

    def end() -> None:
        try:
            check_held(paths, driver_id)
        except RunTaken:
            end_superseded()
        outcome = concluded(paths, lambda: outcome_of(paths, None, failures_of(paths)), announce)
        announce("ended", ending_of(paths, outcome), status=outcome.status)
        announce.close()
        end_process(outcome.exit_code)

    kills = memory_here().kills
    with FailureWatch(paths, end), Watch(paths, progress).in_background():
        try:
            result = guarded(job, _worker(job, world), train)
        except FleetuneError:  # such as a storage that does not answer
            raise
        except Exception as error:
            raise _lost_peer_error(error, kills, spec) from error
        finally:
            check_held(paths, driver_id)
    write_manifest(paths, facts | (result or {}).get("facts", {}))
    return outcome_of(paths, result, failures_of(paths))


def _lost_peer_error(error: Exception, kills: Sequence[int], spec: Spec) -> FleetuneError:
    """Make the error for a process that ended without a report. `kills`: see `Memory`; its value before training."""
    if killed_since(kills, memory_here().kills):
        host = os.uname().nodename
        return OutOfMemory(
            f"a process of this run is gone, and the kernel of {host} has killed a process for memory since the run "
            f"began. {advice(spec)}"
        )
    return RunFailed(f"a process of this run is gone ({first_line(error)}). The output of torchrun says how it ended")


class FailureWatch:
    """A context manager that ends this process if the gang fails, even while the main thread waits in a collective.

    NCCL waits half an hour for a rank that has left. One process of each node watches `failures/`; once it has ended,
    torchrun ends the other processes of that node.
    """

    def __init__(
        self, paths: JobPaths, end: Callable[[], None], *, every_s: float = EVERY_S, grace_s: float = GRACE_S
    ) -> None:
        """`end` is called in a thread and must end the process."""
        self._paths, self._end, self._every_s, self._grace_s = paths, end, every_s, grace_s
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="failures", daemon=True)

    def __enter__(self) -> FailureWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()  # if it is about to end the process, it has written the outcome

    def _run(self) -> None:
        while not self._closed.wait(self._every_s):
            if self._failed():
                if not self._closed.wait(self._grace_s):
                    self._end()
                return

    def _failed(self) -> bool:
        with contextlib.suppress(StorageError):  # the next look tries again
            return bool(storage.list_names(self._paths.failures))
        return False


def _follow(world: TorchrunWorld, waiting: Any) -> Outcome:
    """Follow as another rank: receive the job from rank 0 and train."""
    heard: list[Job | None] = [None]
    dist.broadcast_object_list(heard, src=0, group=waiting)
    job = heard[0]
    ended = datetime.datetime.now(datetime.UTC)
    if job is None:  # rank 0 has found a mistake and reports it, so this process ends without an error of its own
        return Outcome(status=Status.SUCCEEDED, ended_at=ended)
    enter_working_dir(job.spec)
    watch = FailureWatch(job.paths, lambda: end_process(1)) if world.local_rank == 0 else contextlib.nullcontext()
    with watch, redirected_output(job.paths.log(f"rank-{world.rank}")):
        guarded(job, _worker(job, world), train)
    failed = bool(storage.list_names(job.paths.failures))  # rank 0 reports the reason
    return Outcome(status=Status.FAILED if failed else Status.SUCCEEDED, ended_at=ended)


def _worker(job: Job, world: TorchrunWorld) -> TorchrunWorkerContext:
    """Make this process's context. A signal to stop is only recorded; the next all-reduce passes it to all ranks."""
    stop = StopRequest(patient=True)
    stop.defer()
    stop.hold()
    gpus = job.spec.resources.gpus_per_worker
    return TorchrunWorkerContext(job.paths, gpus, world, job.driver, lambda: stop.asked)
