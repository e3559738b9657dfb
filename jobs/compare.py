"""Runs a comparison: one sweep for each method, one after another, and then the table. `fleetune run` calls it."""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Callable, Mapping

from cluster.errors import CapacityError, Diverged, FleetuneError, InputError, Interrupted, MachinesFailed, RunFailed
from cluster.ray.connection import is_own
from jobs.comparison.checking import about_method, checked_methods
from jobs.console import redirected_output
from jobs.drivers.stop_request import StopRequest
from jobs.preflight.validate import no_gpu_here
from jobs.run.events import Announcer
from jobs.run.outcome import Outcome, Status, read_outcome
from jobs.run.paths import JobPaths, new_run_name
from jobs.run.progress import Progress
from jobs.run.record import concluded, ending_of, reopen_run
from jobs.run.resume import check_not_driven
from jobs.spec.compare import CompareSpec
from jobs.spec.load import dump_spec, load_sweep
from jobs.storage import files as storage
from jobs.sweep import run_sweep


def run_comparison(
    spec: CompareSpec,
    *,
    address: str | None = None,
    progress: Progress,
    display: Callable[[], Progress],
    resume: str | None = None,
    price: float | None = None,
) -> tuple[Outcome, JobPaths]:
    """Compare on the cluster at `address` or RAY_ADDRESS, or on a Ray of this machine.

    Args:
        progress: shows the events of the comparison.
        display: makes the display of one sweep, which is closed at its end.
        resume: root of an earlier comparison to continue, with the same spec.
        price: of one GPU for one hour, or of one worker without GPU; None: no costs, or the price before the resume.

    Raises:
        InputError: a mistake found before anything was written. Later errors become the outcome's reason.
    """
    if is_own(address) and (problem := no_gpu_here(spec.base, "base.")):
        raise CapacityError(problem)
    paths = open_comparison(spec, progress) if resume is None else reopen_comparison(spec, JobPaths(resume))
    with contextlib.closing(Announcer(paths, progress)) as announce, redirected_output(paths.log("driver")):
        verb = "comparison" if resume is None else "resuming comparison"
        announce("phase", f"{verb} {paths.name} in {paths.root}", phase="start", root=paths.root)
        with StopRequest().watching(paths) as stop:

            def drive() -> Outcome:
                with stop.raising():
                    return _compared(spec, paths, address, announce, display, stop, price)

            outcome = concluded(paths, drive, announce)
        announce("ended", ending_of_comparison(paths, outcome), status=outcome.status)
    return outcome, paths


def open_comparison(spec: CompareSpec, progress: Progress) -> JobPaths:
    """Check all methods, and make the comparison's directory with the spec of each sweep. Raises InputError.

    The prior of each search is fixed here, so that no search begins at the result of an earlier method's search.
    """
    from jobs.preflight.ready import try_model  # imports numpy

    checked = checked_methods(spec)
    for one in checked:
        with about_method(one.name):
            try_model(one.sweep.base, progress)
    paths = JobPaths.of(spec.base.storage_path, new_run_name(spec.name, datetime.datetime.now(datetime.UTC)))
    for one in checked:
        storage.write_bytes(JobPaths(paths.method(one.name)).spec, dump_spec(one.sweep))
    storage.write_bytes(paths.spec, dump_spec(spec))  # last: a directory with it is complete
    return paths


def reopen_comparison(spec: CompareSpec, paths: JobPaths) -> JobPaths:
    """Prepare the directory of an earlier comparison for a resume.

    Raises:
        InputError: it has succeeded, or it still has a driver.
    """
    outcome = read_outcome(paths)
    if outcome is None:
        for one in (paths, *(JobPaths(paths.method(method.name)) for method in spec.methods)):
            if read_outcome(one) is None:
                check_not_driven(one, time.time())
    elif outcome.status is Status.SUCCEEDED:
        raise InputError(
            f"comparison {paths.name} has succeeded: nothing is left to do. Its table: fleetune show {paths.root}"
        )
    return reopen_run(paths.root, spec)


def _compared(
    spec: CompareSpec,
    paths: JobPaths,
    address: str | None,
    announce: Announcer,
    display: Callable[[], Progress],
    stop: StopRequest,
    price: float | None,
) -> Outcome:
    """Run the sweeps that have not succeeded yet.

    Raises:
        InputError: the input of all sweeps is wrong.
        Diverged: all sweeps diverged.
        MachinesFailed: sweeps were lost with a machine or the storage.
        RunFailed: sweeps have failed; the others have run.
        Interrupted: a request to stop.
    """
    from jobs.comparison.measured import measure, write_comparison  # imports numpy

    failed: dict[str, Outcome] = {}
    for number, method in enumerate(spec.methods, 1):
        sweep = JobPaths(paths.method(method.name))
        stop.defer(False)  # the sweep of the previous method has deferred it
        before = read_outcome(sweep)
        if before is not None and before.status is Status.SUCCEEDED:
            announce("phase", f"{method.name} has succeeded before", phase="method", method=method.name)
            continue
        said = f"method {number} of {len(spec.methods)}: {method.name}"
        announce("phase", said, phase="method", method=method.name)
        outcome = _searched(sweep, address, display, stop)
        comparison = measure(spec, paths, price=price)
        write_comparison(paths, comparison)
        if outcome.status is Status.INTERRUPTED:
            raise Interrupted(f"stopped during {method.name}: {outcome.reason}")
        if outcome.status is Status.FAILED:
            failed[method.name] = outcome
    comparison = measure(spec, paths, price=price)
    write_comparison(paths, comparison, page=True)
    if failed:
        raise failure_of(failed, len(spec.methods))
    if not comparison.ranked:
        said = f"no method has a finite {comparison.metric} with all its seeds, so none can be compared"
        raise RunFailed(f"{said}. Look at the metrics with fleetune sweep leaderboard {paths.root}/methods/NAME")
    metrics = {name: found.mean for name, found in comparison.ranked[0].metrics.items()}
    return Outcome(status=Status.SUCCEEDED, metrics=metrics, ended_at=datetime.datetime.now(datetime.UTC))


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
    return RunFailed(said)


def _searched(paths: JobPaths, address: str | None, display: Callable[[], Progress], stop: StopRequest) -> Outcome:
    """Run or resume the sweep of a method, whose directory has the spec."""
    sweep = load_sweep(paths.spec)
    assert sweep is not None
    begun = paths.root if storage.list_names(paths.events) else None
    with contextlib.closing(display()) as progress:
        return run_sweep(sweep, address=address, progress=progress, resume=begun, root=paths.root, stop=stop)


def ending_of_comparison(paths: JobPaths, outcome: Outcome) -> str:
    """Describe the end of a comparison."""
    return ending_of(paths, outcome, f"succeeded; figures: {paths.comparison}\npage: {paths.comparison_page}")
