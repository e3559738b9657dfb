"""Runs a comparison, one sweep for each method, and then makes the table: `python -m jobs.compare SPEC`.

`fleetune run` calls `run_comparison`, and so does the driver of a queued comparison.
"""

from __future__ import annotations

import contextlib
import datetime
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from cluster.errors import (
    CapacityError,
    Diverged,
    FleetuneError,
    InputError,
    Interrupted,
    MachinesFailed,
    OutOfMemory,
    RunFailed,
)
from cluster.ray.connection import is_own
from jobs.comparison.checking import about_method, checked_methods
from jobs.console import redirected_output
from jobs.drivers.finetune.begin import Assignment
from jobs.drivers.stop_request import StopRequest
from jobs.preflight.validate import no_gpu_here
from jobs.run.events import Announcer
from jobs.run.outcome import Outcome, Status, read_outcome
from jobs.run.paths import JobPaths, new_run_name
from jobs.run.progress import Progress
from jobs.run.record import concluded, ending_of, open_run, reopen_run
from jobs.run.resume import check_not_driven
from jobs.spec.compare import CompareSpec
from jobs.spec.load import dump_spec, load_sweep
from jobs.storage import files as storage
from jobs.sweep import main_of, run_sweep


def run_comparison(
    spec: CompareSpec,
    *,
    address: str | None = None,
    progress: Progress,
    display: Callable[[], Progress] | None = None,
    resume: str | None = None,
    price: float | None = None,
    assignment: Assignment | None = None,
    stop: StopRequest | None = None,
) -> tuple[Outcome, JobPaths]:
    """Compare on the cluster at `address` or RAY_ADDRESS, or on a Ray of this machine.

    Args:
        progress: shows the events of the comparison.
        display: makes the display of one sweep, which is closed at its end; None: `progress` shows the sweeps too.
        resume: root of an earlier comparison to continue, with the same spec.
        price: of one GPU for one hour, or of one worker without GPU; None: no costs, or the price before the resume.
        assignment: slots that a queue has given to this comparison; all its sweeps use them, one after another.
        stop: the request to stop of the queue's attempt; None outside of a queue.

    Raises:
        InputError: a mistake found before anything was written. Later errors become the outcome's reason.
    """
    by_hand = assignment is None
    if by_hand and is_own(address) and (problem := no_gpu_here(spec.base, "base.")):
        raise CapacityError(problem)
    if resume is None:
        paths = open_comparison(spec, progress if by_hand else None, None if assignment is None else assignment.run)
    else:
        paths = reopen_comparison(spec, JobPaths(resume), alone=not by_hand)
    with contextlib.closing(Announcer(paths, progress)) as announce, redirected_output(paths.log("driver")):
        verb = "comparison" if resume is None else "resuming comparison"
        announce("phase", f"{verb} {paths.name} in {paths.root}", phase="start", root=paths.root)
        with (stop or StopRequest()).watching(paths) as held:

            def searched(sweep: JobPaths, is_last: bool) -> Outcome:
                given = None if assignment is None else replace(assignment, gives_back=is_last)
                with contextlib.nullcontext(progress) if display is None else contextlib.closing(display()) as shown:
                    return _searched(sweep, address, shown, held, given)

            def drive() -> Outcome:
                with held.raising():
                    return _compared(spec, paths, searched, announce, held, price, ends_if_lost=not by_hand)

            outcome = concluded(paths, drive, announce)
        announce("ended", ending_of_comparison(paths, outcome, is_part=stop is not None), status=outcome.status)
    return outcome, paths


def open_comparison(spec: CompareSpec, progress: Progress | None, root: str | None = None) -> JobPaths:
    """Check all methods, and make the comparison's directory with the spec of each sweep. Raises InputError.

    The prior of each search is fixed here, so that no search begins at the result of an earlier method's search.

    Args:
        progress: shows that each method is tried on the model. None: this is a job of a queue, whose sweeps record a
            failure.
        root: root of the comparison; None makes a new name.
    """
    checked = checked_methods(spec)
    if progress is not None:
        from jobs.preflight.ready import try_model  # imports numpy

        for one in checked:
            with about_method(one.name):
                try_model(one.sweep.base, progress)
    name = new_run_name(spec.name, datetime.datetime.now(datetime.UTC))
    paths = JobPaths.of(spec.base.storage_path, name) if root is None else JobPaths(root)
    for one in checked:
        storage.write_bytes(JobPaths(paths.method(one.name)).spec, dump_spec(one.sweep))
    return open_run(spec, paths.root)  # last: a directory with the comparison's spec is complete


def reopen_comparison(spec: CompareSpec, paths: JobPaths, *, alone: bool = False) -> JobPaths:
    """Prepare the directory of an earlier comparison for a resume.

    Args:
        alone: the caller knows that the comparison has no driver any more.

    Raises:
        InputError: it has succeeded, or it still has a driver.
    """
    outcome = read_outcome(paths)
    if outcome is None and not alone:
        for one in (paths, *(JobPaths(paths.method(method.name)) for method in spec.methods)):
            if read_outcome(one) is None:
                check_not_driven(one, time.time())
    if outcome is not None and outcome.status is Status.SUCCEEDED:
        raise InputError(
            f"comparison {paths.name} has succeeded: nothing is left to do. Its table: fleetune show {paths.root}"
        )
    return reopen_run(paths.root, spec)


def _compared(
    spec: CompareSpec,
    paths: JobPaths,
    searched: Callable[[JobPaths, bool], Outcome],
    announce: Announcer,
    stop: StopRequest,
    price: float | None,
    *,
    ends_if_lost: bool,
) -> Outcome:
    """Run the sweeps that have not succeeded yet.

    Args:
        searched: runs a sweep, given its directory and whether it is the last one, and returns its outcome.
        ends_if_lost: end with the first sweep that is lost with a machine, because a queue gives other machines to the
            next attempt.

    Raises:
        InputError: the input of all sweeps is wrong.
        Diverged: all sweeps diverged.
        MachinesFailed: sweeps were lost with a machine or the storage.
        OutOfMemory: sweeps need more memory than there is; the others have run.
        RunFailed: sweeps have failed; the others have run.
        Interrupted: a request to stop.
    """
    from jobs.comparison.measured import measure, steps_of, write_comparison  # imports numpy

    sweeps = {method.name: JobPaths(paths.method(method.name)) for method in spec.methods}
    before = {name: read_outcome(sweep) for name, sweep in sweeps.items()}
    left = order_of(before)
    for name in [one for one in sweeps if one not in left]:
        announce("phase", f"{name} has succeeded before", phase="method", method=name)
    failed: dict[str, Outcome] = {}
    while left:
        stop.defer(False)  # the sweep of the previous method has deferred it
        name = left.pop(0)
        said = f"method {list(sweeps).index(name) + 1} of {len(sweeps)}: {name}"
        of_others = sum(steps_of(sweep) for other, sweep in sweeps.items() if other != name)
        steps = {"before": of_others, "done": steps_of(sweeps[name])}
        announce("phase", said, phase="method", method=name, left=len(left), steps=steps)
        outcome = searched(sweeps[name], not left)
        comparison = measure(spec, paths, price=price)
        write_comparison(paths, comparison)
        if outcome.status is Status.INTERRUPTED:
            raise Interrupted(f"stopped during {name}: {outcome.reason}")
        if outcome.status is Status.FAILED:
            failed[name] = outcome
        if outcome.lost and ends_if_lost:
            raise failure_of(failed, len(sweeps))
    comparison = measure(spec, paths, price=price)
    write_comparison(paths, comparison, page=True)
    if failed:
        raise failure_of(failed, len(spec.methods))
    if not comparison.ranked:
        said = f"no method has a finite {comparison.metric} with all its seeds, so none can be compared"
        raise RunFailed(f"{said}. Look at the metrics with fleetune sweep leaderboard {paths.root}/methods/NAME")
    metrics = {name: found.mean for name, found in comparison.ranked[0].metrics.items()}
    announce("phase", "all methods have ended", phase="compared", metrics=metrics)
    return Outcome(status=Status.SUCCEEDED, metrics=metrics, ended_at=datetime.datetime.now(datetime.UTC))


def order_of(outcomes: Mapping[str, Outcome | None]) -> list[str]:
    """Return the methods to search, in order: those that have failed before come last. Pure."""

    def has_failed(name: str) -> bool:
        outcome = outcomes[name]
        return outcome is not None and outcome.status is Status.FAILED and not outcome.lost

    left = [name for name, outcome in outcomes.items() if outcome is None or outcome.status is not Status.SUCCEEDED]
    return sorted(left, key=has_failed)


def failure_of(failed: Mapping[str, Outcome], methods: int) -> FleetuneError:
    """Return the error of a comparison from the outcomes of its sweeps that have failed, by their names. Pure."""
    said = "; ".join(f"{name}: {outcome.reason}" for name, outcome in failed.items())
    all_failed = len(failed) == methods
    if all_failed and all(outcome.bad_input for outcome in failed.values()):
        return InputError(said)
    if all_failed and all(outcome.diverged for outcome in failed.values()):
        return Diverged(said)
    if any(outcome.lost for outcome in failed.values()):  # the sweeps that were lost may go on
        return MachinesFailed(said)
    return OutOfMemory(said) if any(outcome.out_of_memory for outcome in failed.values()) else RunFailed(said)


def _searched(
    paths: JobPaths, address: str | None, progress: Progress, stop: StopRequest, assignment: Assignment | None
) -> Outcome:
    """Run or resume the sweep of a method, whose directory has the spec."""
    sweep = load_sweep(paths.spec)
    assert sweep is not None
    begun = paths.root if storage.list_names(paths.events) else None
    return run_sweep(
        sweep, address=address, progress=progress, resume=begun, assignment=assignment, root=paths.root, stop=stop
    )


def ending_of_comparison(paths: JobPaths, outcome: Outcome, is_part: bool = False) -> str:
    """Describe the end of a comparison. `is_part`: see `ending_of`."""
    said = f"succeeded; figures: {paths.comparison}\npage: {paths.comparison_page}"
    return ending_of(paths, outcome, said, is_part=is_part)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a comparison and return the exit code: 0 succeeded, 1 failed, 2 bad input, 130 interrupted."""
    return main_of(CompareSpec, lambda spec, progress: run_comparison(spec, progress=progress)[0], arguments)


if __name__ == "__main__":
    sys.exit(main())
