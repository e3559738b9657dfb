"""One attempt of a queued fine-tuning job, sweep or comparison."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TextIO

from cluster.capacity.occupancy import workers_in
from cluster.errors import DIVERGED_EXIT, OUT_OF_MEMORY_EXIT, MachinesFailed, SpecError, StorageError
from cluster.local.gpus import held_gpus
from cluster.local.machine import this_machine
from cluster.ray.connection import THIS_MACHINE
from cluster.settings import add_to_environment, ray_address, visible_gpus
from cluster.text import many
from jobs.compare import run_comparison
from jobs.drivers.finetune.begin import Assignment
from jobs.drivers.link.link import Link, Say
from jobs.drivers.link.messages import Registered
from jobs.drivers.link.progress_reporter import ProgressReporter
from jobs.drivers.stop_request import StopRequest
from jobs.finetune import run_on_ray
from jobs.run.outcome import Outcome, Status, read_outcome
from jobs.run.paths import JobPaths
from jobs.run.progress import PlainProgress
from jobs.spec.command import CommandSpec
from jobs.spec.compare import CompareSpec
from jobs.spec.finetune import Spec
from jobs.spec.load import spec_of
from jobs.spec.sweep import Search, SweepSpec
from jobs.storage import files as storage
from jobs.sweep import run_sweep


def drive_training(registered: Registered, link: Link, stop: StopRequest, stream: TextIO, say: Say) -> int:
    """Start the job's run, or resume it, and return the exit code.

    Raises:
        FleetuneError: an error found before anything was written.
    """
    spec = spec_of(registered.spec)
    if isinstance(spec, CommandSpec):
        raise SpecError(f"the server says that the job trains, but its spec is of kind {spec.kind}")
    succeeded, resume = run_so_far(registered.run)
    if succeeded:
        say(f"its run has succeeded in an earlier attempt: {registered.run}")
        link.tell(run=registered.run)
        return 0
    add_to_environment(registered.secrets)
    local = registered.engine == "local"
    resources = spec.resources if isinstance(spec, Spec) else spec.base.resources
    elastic = isinstance(spec, Search) or resources.min_workers is not None
    num_workers = workers_in(registered.placement) if elastic else resources.num_workers
    places = None if local else nodes_of_workers(registered, num_workers)
    progress = ProgressReporter(PlainProgress(stream), link, _places_to_give_back(registered, spec, num_workers))
    with contextlib.closing(progress), local_gpus(num_workers * resources.gpus_per_worker if local else 0, say):
        address = THIS_MACHINE if local else ray_address() or "auto"
        given = Assignment(places, num_workers, registered.secrets, registered.run)
        if isinstance(spec, SweepSpec):
            outcome = run_sweep(spec, address=address, progress=progress, resume=resume, assignment=given, stop=stop)
        elif isinstance(spec, CompareSpec):
            outcome, _ = run_comparison(
                spec, address=address, progress=progress, resume=resume, assignment=given, stop=stop
            )
        else:
            outcome = run_on_ray(spec, address=address, progress=progress, resume=resume, assignment=given, stop=stop)
    if outcome.faulty_nodes:
        link.tell(faulty=outcome.faulty_nodes)
    return exit_code_of(outcome)


def exit_code_of(outcome: Outcome) -> int:
    """Return the exit code that tells the queue how the run ended."""
    if outcome.out_of_memory:
        return OUT_OF_MEMORY_EXIT
    return DIVERGED_EXIT if outcome.diverged else outcome.exit_code


def run_so_far(run: str | None) -> tuple[bool, str | None]:
    """Return whether the run has succeeded, and the root to resume from; None if the run is new.

    Raises:
        MachinesFailed: the storage does not answer. It did when the job was submitted, so another attempt may succeed.
    """
    try:
        outcome = None if run is None else read_outcome(JobPaths(run))
        left = run is not None and storage.exists(JobPaths(run).spec)
        return outcome is not None and outcome.status is Status.SUCCEEDED, run if left else None
    except StorageError as error:
        raise MachinesFailed(f"the files of the run cannot be read now: {error}") from error


def nodes_of_workers(registered: Registered, num_workers: int) -> tuple[str, ...]:
    """Return the node of each worker, in the order of the lease. Raises MachinesFailed."""
    places = tuple(node for node, workers in registered.placement for _ in range(workers))
    if len(places) != num_workers:
        raise MachinesFailed(f"the lease has room for {many(len(places), 'worker')}, but the job has {num_workers}")
    return places


def _places_to_give_back(registered: Registered, spec: Spec | Search, num_workers: int) -> tuple[str, ...]:
    """Return the node of each worker of a search, or () if nothing can be given back, as on one machine with GPUs."""
    if isinstance(spec, Spec) or (registered.engine == "local" and spec.base.resources.gpus_per_worker):
        return ()
    return nodes_of_workers(registered, num_workers)


@contextlib.contextmanager
def local_gpus(count: int, say: Say) -> Iterator[tuple[str, ...]]:
    """Take GPUs of this machine for this process alone, while the context is open, and hide all others from it.

    Raises:
        MachinesFailed: other processes hold the GPUs.
    """
    seen = visible_gpus()
    gpus = seen if seen is not None or count == 0 else [str(index) for index in range(this_machine().gpus)]
    with held_gpus(count, gpus or (), say=say) as taken:
        if taken:
            add_to_environment({"CUDA_VISIBLE_DEVICES": ",".join(taken)})
        yield taken
