"""Runs a sweep, from its spec to its outcome: `python -m jobs.sweep SPEC`. `fleetune run` calls `run_sweep`."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from cluster.errors import CapacityError, FleetuneError, Interrupted, SpecError
from cluster.ray.connection import is_own
from jobs.console import Console, redirected_output, user_stream
from jobs.drivers.finetune.begin import Assignment
from jobs.drivers.ray_submitted import host_of_this_program, queue_and_wait
from jobs.drivers.stop_request import StopRequest
from jobs.preflight.validate import no_gpu_here, validate
from jobs.run.events import Announcer
from jobs.run.outcome import Outcome
from jobs.run.paths import JobPaths
from jobs.run.progress import PlainProgress, Progress
from jobs.run.record import concluded, ending_of, open_run, reopen_run
from jobs.search.rules.checking import (
    check_sweep,
    check_sweep_resumable,
    checked_sweep,
    sweep_warnings,
    with_stored_values,
)
from jobs.search.rules.spec_text import format_prior, format_space
from jobs.spec.checking.fields import kind_of
from jobs.spec.compare import CompareSpec
from jobs.spec.load import load_to_run
from jobs.spec.sweep import SweepSpec

AnySearch = TypeVar("AnySearch", SweepSpec, CompareSpec)


def run_sweep(
    sweep: SweepSpec,
    *,
    address: str | None = None,
    progress: Progress,
    resume: str | None = None,
    assignment: Assignment | None = None,
    root: str | None = None,
    stop: StopRequest | None = None,
) -> Outcome:
    """Search on the cluster at `address` or RAY_ADDRESS, or on a Ray of this machine. Returns the best trial's outcome.

    Args:
        resume: root of an earlier sweep to continue.
        assignment: slots that a queue has given to this sweep; None for a sweep outside of a queue.
        root: root of a new sweep; None: the assignment's, or a new name.
        stop: the request to stop of the comparison or attempt that the sweep is part of; None for any other sweep.

    Raises:
        InputError: a mistake found before anything was written. Later errors become the outcome's reason.
    """
    by_hand = assignment is None
    if by_hand and is_own(address) and (problem := no_gpu_here(sweep.base, "base.")):
        raise CapacityError(problem)
    sweep, prior_from, warnings = _completed(sweep, resume, by_hand)
    if resume is not None:
        check_sweep_resumable(JobPaths(resume), sweep, alone=not by_hand)
        paths = reopen_run(resume, sweep)
    else:
        if by_hand and root is None:  # a comparison has tried the model; a job of a queue must record the failure
            from jobs.preflight.ready import try_model  # imports numpy

            try_model(sweep.base, progress)
        paths = open_run(sweep, assignment.run if root is None and assignment is not None else root)
    with contextlib.closing(Announcer(paths, progress)) as announce, redirected_output(paths.log("driver")):
        verb, resumed = ("going on with sweep" if resume else "sweep"), resume is not None
        announce("phase", f"{verb} {paths.name} in {paths.root}", phase="start", root=paths.root, resumed=resumed)
        for warning in warnings:
            announce("warning", warning)
        announce("phase", f"searching {format_space(sweep)}{format_prior(sweep, prior_from)}", phase="search")

        def drive() -> Outcome:
            with held.raising():
                from jobs.search.driver.drive import drive_sweep

                return drive_sweep(sweep, paths, address, announce, progress, held, assignment)

        with (stop or StopRequest()).watching(paths) as held:
            outcome = concluded(paths, drive, announce)
        if resumed:
            _update_comparison(paths, announce)
        announce("ended", ending_of_sweep(paths, outcome, is_part=stop is not None), status=outcome.status)
    return outcome


def _completed(sweep: SweepSpec, resume: str | None, by_hand: bool) -> tuple[SweepSpec, str | None, tuple[str, ...]]:
    """Check a sweep, and return it as it will be stored.

    Returns:
        The sweep; the source of its prior's learning rate, None if an earlier driver has stored the prior; warnings.

    Raises:
        InputError: the sweep, its job or its data has a mistake.
    """
    found = validate(sweep.base, estimates=False, judged=sweep.judged)
    sweep, prior_from = sweep.model_copy(update={"base": found.spec}), None
    if resume is not None:
        sweep = with_stored_values(sweep, JobPaths(resume), by_hand=by_hand)
    if not sweep.prior or resume is None:
        sweep, prior_from = checked_sweep(sweep)
    check_sweep(sweep)
    sweep = sweep.model_copy(update={"space": sweep.dimensions})  # so that a range can be changed later
    return sweep, prior_from, (*found.warnings, *sweep_warnings(sweep))


def _update_comparison(paths: JobPaths, announce: Announcer) -> None:
    """Write the figures of an ended comparison again, if the sweep is one of its methods."""
    from jobs.comparison.measured import write_again_after  # imports numpy

    try:
        if write_again_after(paths):
            announce("phase", "the figures of the comparison are written again", phase="comparison")
    except FleetuneError as error:
        announce("warning", f"the figures of the comparison are those from before: {error}")


def ending_of_sweep(paths: JobPaths, outcome: Outcome, is_part: bool = False) -> str:
    """Describe the end of a sweep in its last lines of output. `is_part`: see `ending_of`."""
    model = f"\nmodel: {outcome.model_path}" if outcome.model_path else ""
    said = f"succeeded; the best trial's spec, which runs as it is: {paths.best}{model}"
    return ending_of(paths, outcome, said, is_part=is_part)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a sweep and return the exit code: 0 succeeded, 1 failed, 2 bad input, 130 interrupted."""
    return main_of(SweepSpec, lambda sweep, progress: run_sweep(sweep, progress=progress), arguments)


def main_of(
    kind: type[AnySearch], run: Callable[[AnySearch, Progress], Outcome], arguments: Sequence[str] | None
) -> int:
    """Load the spec of a sweep or a comparison, run it or have it queued, and return the exit code (see `main`)."""
    name = kind_of(kind)
    parser = argparse.ArgumentParser(prog=f"python -m jobs.{name}", description=f"Run a spec of kind {name}.")
    parser.add_argument("spec", help=f"YAML or JSON file of kind {name}")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a value of the spec")
    options = parser.parse_args(arguments)
    try:
        spec = load_to_run(options.spec, options.set)
        if not isinstance(spec, kind):
            raise SpecError(f"{options.spec} is of kind {spec.kind}: python -m jobs.{spec.kind} {options.spec} runs it")
        if (host := host_of_this_program()) is not None:
            return queue_and_wait(spec, *host, say=Console())
        return run(spec, PlainProgress(user_stream())).exit_code
    except FleetuneError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return Interrupted.exit_code


if __name__ == "__main__":
    sys.exit(main())
