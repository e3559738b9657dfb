"""`python -m jobs.finetune SPEC.yaml`: one fine-tuning run, on Ray, or without Ray if torchrun starts the processes.

    fleetune run SPEC                                                 on a Ray of this machine, or on --address
    ray job submit --working-dir . -- python -m jobs.finetune SPEC    on a cluster's head; the job is queued if the
                                                                      cluster has an orchestrator
    torchrun --nproc_per_node N -m jobs.finetune SPEC                 without Ray

With --resume RUN an earlier run continues in its directory, however it was started.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace

from cluster.errors import CapacityError, FleetuneError, Interrupted, SpecError, StorageError
from cluster.imports import quick_imports
from cluster.ray.connection import check_local, is_own
from cluster.ray.session_record import SessionRecord
from cluster.settings import WITHOUT_SERVER, RayJob, TorchrunWorld, set_default, torchrun_world
from jobs.console import Console, end_process, redirected_output, user_stream
from jobs.drivers.finetune.begin import Assignment, begin_run, load_job
from jobs.drivers.ray_submitted import host_of_this_program, queue_and_wait
from jobs.drivers.stop_request import StopRequest
from jobs.planning import gang_of
from jobs.preflight.validate import no_gpu_here
from jobs.run.events import Announcer
from jobs.run.outcome import Outcome, log_is_lost
from jobs.run.progress import PlainProgress, Progress
from jobs.run.record import concluded, ending_of
from jobs.spec.finetune import Spec


def run_on_ray(
    spec: Spec,
    *,
    address: str | None = None,
    progress: Progress,
    resume: str | None = None,
    assignment: Assignment | None = None,
    stop: StopRequest | None = None,
) -> Outcome:
    """Run a job on the cluster at `address` or RAY_ADDRESS, or on a Ray of this machine, and return its outcome.

    Args:
        resume: root of an earlier run to continue from its newest checkpoint.
        assignment: slots that a queue has given to this run; None for a run outside of a queue.
        stop: the request to stop of this process, if it has one already.

    Raises:
        InputError: a mistake found before anything was written. Later errors become the outcome's reason.
    """
    if assignment is None and is_own(address):  # checked before the run has a directory
        _check_this_machine(spec, address)
    if assignment is None:
        begun = begin_run(spec, resume, progress=progress)
    else:  # a job of a queue must record each failure
        begun = begin_run(spec, resume, alone=True, root=assignment.run)
    paths, outcome = begun.paths, None
    try:
        with contextlib.closing(Announcer(paths, progress)) as announce, redirected_output(paths.log("driver")):
            begun.tell(announce)

            def drive() -> Outcome:
                with held.raising():
                    with quick_imports():
                        from jobs.drivers.finetune.ray_driver import drive_on_ray

                    return drive_on_ray(begun.spec, paths, address, announce, progress, held, assignment)

            with (stop or StopRequest()).watching(paths) as held:
                outcome = concluded(paths, drive, announce, starts_elsewhere=begun.spec.remedies.machine)
            announce("ended", ending_of(paths, outcome, is_part=assignment is not None), status=outcome.status)
    except StorageError as error:
        if outcome is None:
            raise
        progress.event(log_is_lost(error))
    return outcome


def _check_this_machine(spec: Spec, address: str | None) -> None:
    """Check that this machine can hold the smallest gang of the job. Raises CapacityError."""
    if address is None and (problem := no_gpu_here(spec)):
        raise CapacityError(problem)
    check_local(replace(gang_of(spec), num_workers=spec.resources.min_workers or spec.resources.num_workers))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a driver and return its exit code: 0 succeeded, 1 failed, 2 bad input, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python -m jobs.finetune", description="Run one fine-tuning job.")
    parser.add_argument("spec", nargs="?", help="YAML or JSON file; with --resume it may be left out: the run's spec")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a value of the spec")
    parser.add_argument("--resume", metavar="RUN", help="continue an earlier run: its name, path or URL")
    options = parser.parse_args(arguments)
    world = torchrun_world()
    try:
        spec, resume = load_job(options.spec, options.set, options.resume)
        code = _run(spec, resume) if world is None else _run_under_torchrun(spec, resume, world)
    except FleetuneError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        code = Interrupted.exit_code
    except Exception:
        traceback.print_exc()
        code = FleetuneError.exit_code
    if world is not None:
        # gloo's threads may still hold tensors. Freeing those during the interpreter's shutdown aborts the process
        # (pytorch#179291), even after the groups were destroyed. NCCL would wait for ranks that have failed.
        end_process(code)
    return code


def _run(spec: Spec, resume: str | None) -> int:
    if (host := host_of_this_program()) is not None:
        return _through_the_queue(spec, resume, *host)
    return run_on_ray(spec, progress=PlainProgress(user_stream()), resume=resume).exit_code


def _run_under_torchrun(spec: Spec, resume: str | None, world: TorchrunWorld) -> int:
    if problem := no_gpu_here(spec):
        raise CapacityError(problem)
    if spec.resources.gpus_per_worker == 0:  # otherwise DeepSpeed warns at its import that it found no GPU
        set_default("DS_ACCELERATOR", "cpu")
    with quick_imports():
        from jobs.drivers.finetune.torchrun_driver import run_under_torchrun

    return run_under_torchrun(spec, world, resume).exit_code


def _through_the_queue(spec: Spec, resume: str | None, job: RayJob, record: SessionRecord) -> int:
    """Queue the run with the cluster's orchestrator, and return its exit code. Raises FleetuneError."""
    if resume is not None:
        raise SpecError(
            f"this cluster has an orchestrator ({record.url}), which resumes its own jobs, and --resume would bypass "
            "it. To use what the run has learnt, start a new run with model.path: run:NAME, or the path of its model. "
            f"To bypass the queue and use free slots, submit with the variable FLEETUNE_URL={WITHOUT_SERVER}"
        )
    return queue_and_wait(spec, job, record, Console())


if __name__ == "__main__":
    sys.exit(main())
