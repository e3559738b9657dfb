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

from cluster.errors import FleetuneError, Interrupted, OutOfMemory, RunFailed, RunTaken, StorageError
from cluster.local.memory import killed_since, memory_here
from cluster.settings import TorchrunWorld, expand_gpu_memory
from jobs.console import end_process, redirected_output, user_stream
from jobs.drivers.finetune.begin import begin_run
from jobs.drivers.finetune.machines import places_here
from jobs.drivers.finetune.memory_remedy import with_earlier_changes
from jobs.drivers.finetune.torchrun_watch import (
    EVERY_S,
    FailureWatch,
    LostPeers,
    Peer,
    StoppableContext,
    ended_early,
    following,
)
from jobs.drivers.stop_request import STOPPED_EARLY, StopRequest
from jobs.model_files.directory import supports_checkpointing
from jobs.planning import with_workers
from jobs.preflight.ready import ready_data
from jobs.preflight.run_plan import earlier_choice, with_fields, with_planned_fields
from jobs.preflight.validate import enter_working_dir
from jobs.remedies.out_of_memory import advice
from jobs.run.attempts import check_held, count_attempts, take_run
from jobs.run.events import Announcer, Watch, repeatedly
from jobs.run.manifest import run_facts
from jobs.run.outcome import Outcome, Status, log_is_lost
from jobs.run.paths import JobPaths, rank_name
from jobs.run.progress import NoProgress, PlainProgress, Progress
from jobs.run.record import concluded, ending_of, write_manifest
from jobs.spec.finetune import Spec
from jobs.storage import files as storage
from jobs.storage.journal import Record
from jobs.training.collectives import from_rank_0, make_patient_group, of_all_ranks
from jobs.training.ending import failures_of, outcome_of
from jobs.training.faults import fault_of, first_line
from jobs.training.loop.loop import train
from jobs.training.loop.worker import guarded, record_failure
from jobs.training.worker_context import end_superseded, worker_device
from jobs.training.worker_input import Job

# Other ranks wait this long for rank 0 to prepare the data. In training, a hanging rank is given up much earlier.
_TRAIN_TIMEOUT = datetime.timedelta(minutes=30)


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
    waiting = make_patient_group()
    stop = StopRequest(patient=True)
    stop.defer()
    stop.hold()
    if world.rank == 0:
        outcome = _lead(spec, world, resume, waiting, PlainProgress(user_stream()), stop)
    else:
        outcome = _follow(world, waiting, stop)
    if outcome.status is not Status.FAILED and dist.is_initialized():  # otherwise NCCL would wait for lost ranks
        dist.destroy_process_group()
    return outcome


def _lead(
    spec: Spec, world: TorchrunWorld, resume: str | None, waiting: Any, progress: Progress, stop: StopRequest
) -> Outcome:
    """Lead as rank 0: validate, prepare, send the job to the other ranks, train, conclude."""
    told, outcome = False, None

    def tell(job: Job | None) -> None:
        nonlocal told
        told = True
        from_rank_0(job, waiting)

    try:
        begun = begin_run(spec, resume)
        paths = begun.paths
        with contextlib.closing(Announcer(paths, progress)) as announce, redirected_output(paths.log(rank_name(0))):
            begun.tell(announce)

            def drive() -> Outcome:
                with repeatedly(lambda: stop.look_for_file(paths), EVERY_S, "file"):
                    with stop.raising():
                        job, facts = _prepared(begun.spec, world, paths, announce)
                    tell(job)
                    result = _trained(job, world, waiting, announce, progress, stop)
                write_manifest(paths, facts | (result or {}).get("facts", {}))
                return outcome_of(paths, result, failures_of(paths))

            outcome = concluded(paths, drive, announce)
            announce("ended", ending_of(paths, outcome), status=outcome.status)
        return outcome
    except StorageError as error:
        if outcome is None:
            raise
        progress.event(log_is_lost(error))
        return outcome
    finally:
        if not told:
            with contextlib.suppress(Exception):  # a rank that is gone does not hide why this one ends
                tell(None)


def _prepared(spec: Spec, world: TorchrunWorld, paths: JobPaths, announce: Announcer) -> tuple[Job, dict[str, Any]]:
    """Prepare the data and the plan. Returns the job of all ranks, and the content of the manifest."""
    driver_id = take_run(paths)
    prepared = ready_data(spec, "plain", announce)
    facts = run_facts() | {"data_fingerprint": prepared.manifest.fingerprint}
    write_manifest(paths, facts)
    earlier = earlier_choice(spec, paths)
    spec = with_earlier_changes(with_fields(spec, earlier.fields), paths, announce)
    places = functools.partial(places_here, spec) if world.is_one_node else lambda: None
    spec = with_planned_fields(spec, earlier, prepared, places, paths, announce)
    attempts, supports = count_attempts(paths), supports_checkpointing(spec)
    return Job(spec, paths.root, prepared.root, spec.model.path, attempts, driver_id, supports), facts


def _trained(
    job: Job, world: TorchrunWorld, waiting: Any, announce: Announcer, progress: Progress, stop: StopRequest
) -> Record | None:
    """Train as rank 0, and return its result; None after a failure that was reported.

    A thread ends this process if a stop comes before the first step, or if the gang fails.

    Raises:
        FleetuneError: a rank is gone, or the storage does not answer.
    """
    paths, kills = job.paths, memory_here().kills
    end = functools.partial(_end_from_thread, job, announce, threading.Lock())

    def ended() -> Outcome:  # torchrun also sends SIGTERM after another process has failed
        if failures := failures_of(paths):
            return outcome_of(paths, None, failures)
        if lost.look():
            raise _lost_peer_error(lost.text, kills, job)
        raise Interrupted(STOPPED_EARLY)

    worker, lost = StoppableContext(job, world, stop), LostPeers()
    with (
        FailureWatch(paths, lambda: end(ended), lost=lost.look),
        ended_early(worker, stop, lambda: end(ended)),
        Watch(paths, progress).in_background(),
    ):
        try:
            lost.watch(_peers_here(world, waiting))
            result = guarded(job, worker, train)
            if not failures_of(paths):
                _leave_together(waiting)
            lost.watch(())
            return result
        except FleetuneError:  # such as a storage that does not answer
            raise
        except Exception as error:
            raise _lost_peer_error(first_line(error), kills, job) from error
        finally:
            check_held(paths, job.driver)


def _peers_here(world: TorchrunWorld, waiting: Any) -> tuple[Peer, ...]:
    """Return the other processes on this host. Every rank must call it. `waiting`: a group of all ranks."""
    own = Peer(world.rank, os.getpid(), os.uname().nodename)
    found = of_all_ranks(own, waiting)
    first = world.rank - world.local_rank
    return tuple(peer for peer in found[first : first + world.local_world_size] if peer.rank != world.rank)


def _leave_together(waiting: Any) -> None:
    """Wait until all ranks have trained to their end, so that a process that is gone before has been lost.

    Every rank that has not failed must call it. `waiting`: a group of all ranks. Losses at this point are ignored.
    """
    with contextlib.suppress(Exception):
        dist.barrier(group=waiting)


def _end_from_thread(job: Job, announce: Announcer, ending: threading.Lock, drive: Callable[[], Outcome]) -> None:
    """Write the outcome of `drive`, and end this process. `ending` lets one thread do it."""
    ending.acquire()
    code = FleetuneError.exit_code
    try:
        check_held(job.paths, job.driver)
        outcome = concluded(job.paths, drive, announce)
        code = outcome.exit_code
        announce("ended", ending_of(job.paths, outcome), status=outcome.status)
        announce.close()
        take_run(job.paths)  # the other ranks see it, and end
    except RunTaken:
        end_superseded()
    finally:
        end_process(code)


def _lost_peer_error(what: str, kills: Sequence[int], job: Job) -> FleetuneError:
    """Make the error for a process that ended without a report. `kills`: see `Memory`; its value before training."""
    if killed_since(kills, memory_here().kills):
        host = os.uname().nodename
        return OutOfMemory(
            f"a process of this run is gone, and the kernel of {host} has killed a process for memory since the run "
            f"began. {advice(job.spec, checkpointing=job.supports_checkpointing)}"
        )
    return RunFailed(f"a process of this run is gone ({what}). The output of torchrun says how it ended")


def _conclude_for_rank_0(job: Job, error: FleetuneError) -> None:
    """Write the outcome of a run whose rank 0 was killed, unless rank 0 has written it. Raises StorageError, RunTaken.

    Called by rank 1.
    """
    check_held(job.paths, job.driver)
    if storage.exists(job.paths.outcome):
        return

    def drive() -> Outcome:
        if failures := failures_of(job.paths):
            return outcome_of(job.paths, None, failures)
        raise error

    with contextlib.closing(Announcer(job.paths, NoProgress())) as announce:
        outcome = concluded(job.paths, drive, announce)
        announce("ended", ending_of(job.paths, outcome), status=outcome.status)


def _follow(world: TorchrunWorld, waiting: Any, stop: StopRequest) -> Outcome:
    """Follow as another rank: receive the job from rank 0 and train."""
    job: Job | None = from_rank_0(None, waiting)
    ended = datetime.datetime.now(datetime.UTC)
    if job is None:  # rank 0 has found a mistake and reports it, so this process ends without an error of its own
        return Outcome(status=Status.SUCCEEDED, ended_at=ended)
    enter_working_dir(job.spec)
    kills, lost, worker = memory_here().kills, LostPeers(), StoppableContext(job, world, stop)

    def failed() -> None:
        with contextlib.suppress(StorageError, RunTaken):
            error = _lost_peer_error(lost.text, kills, job)
            if lost.peer is not None and lost.peer.rank == 0:
                _conclude_for_rank_0(job, error)
            elif lost.peer is not None and not failures_of(job.paths):
                record_failure(job, lost.peer.rank, lost.peer.host, error, fault_of(error))
        end_process(FleetuneError.exit_code)

    has_left = False
    watches = world.local_rank == 0 or world.rank == 1  # rank 1 is mostly on the node of rank 0, and watches that
    try:
        with (
            FailureWatch(job.paths, failed, lost=lost.look) if watches else contextlib.nullcontext(),
            following(job, world, worker, stop, lost, lambda: end_process(Interrupted.exit_code)),
            redirected_output(job.paths.log(rank_name(world.rank))),
        ):
            lost.watch(_peers_here(world, waiting))
            guarded(job, worker, train)
            failed_ranks = bool(failures_of(job.paths))  # rank 0 reports the reason
            if not failed_ranks:
                _leave_together(waiting)
            lost.watch(())
            has_left = True
    except StorageError:
        if not has_left:  # else only the end of this rank's log is not stored
            raise
    return Outcome(status=Status.FAILED if failed_ranks else Status.SUCCEEDED, ended_at=ended)
