"""The commands `fleetune sweep ...`: show a sweep, change its budget or ranges, and stop one of its trials."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from cluster.errors import InputError
from jobs.drivers.finetune.begin import load_work
from jobs.run.find import storage_root
from jobs.run.outcome import Status, read_outcome
from jobs.run.paths import JobPaths, comparison_root
from jobs.run.record import resume_command
from jobs.run.requests import ask_to_stop, ask_trial_to_end
from jobs.run.summary import resume_of, summarise, utc_now
from jobs.search.changes import Change, Changes, changed, is_driven, larger, narrower
from jobs.search.report import trial_text
from jobs.search.report.status import DriverState, read_driver_state, read_status
from jobs.search.report.status import facts as status_facts
from jobs.search.trials import Trials
from jobs.spec.compare import CompareSpec
from jobs.spec.finetune import Spec
from jobs.spec.load import load_to_run
from jobs.spec.sweep import SweepSpec
from jobs.storage import strict_json
from jobs.storage.files import write_bytes
from orchestrator.cli.help_groups import command_group
from orchestrator.cli.options import Address, Json, Quiet, Storage, check_output_file, finite, refuse_dashboard
from orchestrator.cli.run_argument import check_not_queued, run_meant, unfinished_job
from orchestrator.cli.run_here import run_sweep_here
from orchestrator.pages.sweep import status_page

app = command_group(
    name="sweep",
    help="Show a sweep, change it, or stop a trial. Start a sweep with fleetune run or submit.",
    epilog="Start here:  fleetune run sweep.yaml  |  fleetune sweep leaderboard reviews-lr-20261127",
    no_args_is_help=True,
)

SweepArgument = Annotated[
    str, typer.Argument(metavar="SWEEP", help="Name of a sweep (or the start of it), its path or URL, or a job id.")
]


def trials_of(sweep: str, storage: str | None) -> Trials:
    """Return the trials of a sweep. Raises InputError."""
    root = run_meant(sweep, storage_root(storage))
    paths = JobPaths(root)
    spec = load_to_run(paths.spec)
    if isinstance(spec, CompareSpec):
        sweeps = ", ".join(shlex.quote(paths.method(method.name)) for method in spec.methods)
        raise InputError(f"{root} is a comparison: fleetune show {shlex.quote(root)}. Its sweeps are {sweeps}")
    if isinstance(spec, Spec):
        raise InputError(f"{root} is a run, not a sweep: fleetune show {shlex.quote(root)}")
    return Trials(spec, root)


@app.command(epilog="Example:  fleetune sweep leaderboard reviews-lr-20261127")
def leaderboard(sweep: SweepArgument, storage: Storage = None, json_: Json = False) -> None:
    """List all trials of a running or ended sweep, the best first."""
    trials = trials_of(sweep, storage)
    typer.echo(
        strict_json.for_programs(trial_text.leaderboard_facts(trials)) if json_ else trial_text.leaderboard(trials)
    )


@app.command(epilog="Example:  fleetune sweep status reviews-lr-20261127")
def status(sweep: SweepArgument, storage: Storage = None, json_: Json = False) -> None:
    """Show progress: trials by state, best trial, budget."""
    trials = trials_of(sweep, storage)
    paths = JobPaths(trials.root)
    run = summarise(paths)
    driver = read_driver_state(paths) if run.status == "running" else DriverState()
    found = read_status(trials, driver, utc_now())
    if json_:
        known = {name: getattr(run, name) for name in ("name", "root", "status", "silent_s", "reason")}
        typer.echo(strict_json.for_programs(known | status_facts(found)))
    else:
        typer.echo(status_page(run, found, resume_of(run, is_search=True)))


@app.command(epilog="Example:  fleetune sweep report reviews-lr-20261127 --html report.html")
def report(
    sweep: SweepArgument,
    html: Annotated[
        str | None, typer.Option("--html", metavar="FILE", help="Also write an HTML page with plots.")
    ] = None,
    storage: Storage = None,
    json_: Json = False,
) -> None:
    """Show results so far: best learning rate, tokens, GPU-hours."""
    from jobs.search.report.summary import facts, summary_lines

    trials = trials_of(sweep, storage)
    check_output_file("--html", html, {trials.root: "the directory of the sweep"})
    if html is not None:
        from jobs.search.report.page import sweep_page

        write_bytes(html, sweep_page(trials).encode())
    if json_:
        typer.echo(strict_json.for_programs(facts(trials)))
        return
    best = trials.best
    typer.echo(
        f"best: {trial_text.format_trial(best)}, {best.score:.4f}" if best is not None else "no trial has finished yet"
    )
    for line in summary_lines(trials):
        typer.echo(line)
    if html is not None:
        typer.echo(f"page: {html}")


@app.command(epilog="Example:  fleetune sweep stop reviews-lr-20261127 7")
def stop(
    sweep: SweepArgument,
    trial: Annotated[int, typer.Argument(metavar="TRIAL", help="Number of the trial.")],
    storage: Storage = None,
) -> None:
    """Make a trial save a checkpoint and end. The sweep continues with other trials.

    A trial that is paused, or waits for its training, ends without another step.

    To stop the sweep: fleetune stop SWEEP.
    """
    found = trials_of(sweep, storage)
    if trial not in found.trials:
        raise InputError(f"there is no trial {trial}: the sweep has begun {len(found.trials)} so far")
    if found.trials[trial].is_over:
        raise InputError(f"trial {trial} has ended: {found.trials[trial].state}")
    root, sweep_paths = found.trials[trial].paths.root, JobPaths(found.root)
    is_trained = summarise(sweep_paths).status == "running" and trial in read_driver_state(sweep_paths).running
    typer.echo(ask_to_stop(root, is_trial=True) if is_trained else ask_trial_to_end(root, trial))


def _is_active(trials: Trials) -> bool:
    """Return whether a driver runs the sweep, or the queue will start one.

    A queued comparison starts none for a sweep that has ended: it goes on with the next method.
    """
    paths = JobPaths(trials.root)
    if is_driven(paths):
        return True
    outcome = read_outcome(paths)
    has_ended = outcome is not None and outcome.status is not Status.INTERRUPTED
    is_left = has_ended and comparison_root(trials.root) is not None
    return not is_left and unfinished_job(trials.root) is not None


@app.command(epilog="Example:  fleetune sweep extend reviews-lr-20261127 --runs 4")
def extend(
    sweep: SweepArgument,
    runs: Annotated[float | None, typer.Option("--runs", metavar="N", help="Runs to add.", callback=finite)] = None,
    trials: Annotated[int | None, typer.Option("--trials", metavar="N", min=1, help="Trials to add.")] = None,
    tokens: Annotated[int | None, typer.Option("--tokens", metavar="N", min=1, help="Tokens to add.")] = None,
    minutes: Annotated[
        float | None, typer.Option("--minutes", metavar="N", help="Minutes to add.", callback=finite)
    ] = None,
    gpu_hours: Annotated[
        float | None, typer.Option("--gpu-hours", metavar="N", help="GPU-hours to add.", callback=finite)
    ] = None,
    address: Address = None,
    storage: Storage = None,
    quiet: Quiet = False,
) -> None:
    """Add to the budget of a sweep. A sweep that has ended is resumed here.

    A running sweep uses the larger budget at once. Paused trials may continue from their checkpoints.
    """
    found = trials_of(sweep, storage)
    asked = {"runs": runs, "trials": trials, "tokens": tokens, "minutes": minutes, "gpu_hours": gpu_hours}
    change = larger(found, asked)
    if _is_active(found):
        _ask(found, change)
        return
    refuse_dashboard(address)
    check_not_queued(found.root)  # the next attempt of a comparison resumes every sweep without an outcome
    loaded, root = load_work(None, [], found.root)
    assert isinstance(loaded, SweepSpec)
    raise typer.Exit(run_sweep_here(changed(loaded, change), root, address, quiet))


@app.command(epilog="Example:  fleetune sweep narrow reviews-lr-20261127 --set learning_rate.max=5e-4")
def narrow(
    sweep: SweepArgument,
    set_: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="New end of a range, e.g. learning_rate.max=5e-4.")
    ],
    storage: Storage = None,
) -> None:
    """Narrow or widen the ranges of a running sweep. Earlier trials still count."""
    found = trials_of(sweep, storage)
    change = narrower(found.sweep, set_)
    if not _is_active(found):
        changed(found.sweep, change)  # refuses what a resume would refuse
        settings = [f"space.{one.removeprefix('space.')}" for one in set_]
        given = " ".join(f"--set {shlex.quote(one)}" for one in settings)
        raise InputError(
            "the sweep is not running. To resume it with other ranges: "
            f"{resume_command(JobPaths(found.root))} {given}. If it has ended, give a larger budget too"
        )
    _ask(found, change)


def _ask(trials: Trials, change: Change) -> None:
    """Request a change from the sweep's driver. Raises SpecError: the change is impossible."""
    Changes(JobPaths(trials.root)).ask(change)
    typer.echo(f"asked the sweep for {change}. Its output says when the change is applied")
