"""The commands `fleetune sweep ...`: show a sweep, and stop one of its trials."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from jobs.errors import InputError
from jobs.run import requests as orders
from jobs.run.find import storage_root
from jobs.run.paths import JobPaths
from jobs.run.summary import summarise, utc_now
from jobs.search.report.status import DriverState, read_driver_state, read_status
from jobs.search.report.status import facts as status_facts
from jobs.search.report.trial_text import leaderboard as leaderboard_page
from jobs.search.report.trial_text import leaderboard_facts, trial_words
from jobs.search.trials import Trials
from jobs.spec.load import load_sweep
from jobs.storage.files import write_bytes
from orchestrator.cli.edge import Json, Storage, edge
from orchestrator.cli.help_groups import command_group
from orchestrator.cli.meant import run_meant

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
    spec = load_sweep(JobPaths(root).spec)
    if spec is None:
        raise InputError(f"{root} is a run, not a sweep: fleetune show {root}")
    return Trials(spec, root)


@app.command(epilog="Example:  fleetune sweep leaderboard reviews-lr-20261127")
def leaderboard(sweep: SweepArgument, storage: Storage = None, json_: Json = False) -> None:
    """List all trials of a running or ended sweep, the best first."""
    with edge():
        trials = trials_of(sweep, storage)
        typer.echo(json.dumps(leaderboard_facts(trials)) if json_ else leaderboard_page(trials))


@app.command(epilog="Example:  fleetune sweep status reviews-lr-20261127")
def status(sweep: SweepArgument, storage: Storage = None, json_: Json = False) -> None:
    """Show progress: trials by state, best trial, budget, time left."""
    with edge():
        from orchestrator.pages.sweep import status_page

        trials = trials_of(sweep, storage)
        paths = JobPaths(trials.root)
        run = summarise(paths)
        driver = read_driver_state(paths) if run.status == "running" else DriverState()
        found = read_status(trials, driver, utc_now())
        if json_:
            known = {name: getattr(run, name) for name in ("name", "root", "status", "silent_s", "reason")}
            typer.echo(json.dumps(known | status_facts(found)))
        else:
            typer.echo(status_page(run, found))


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
    with edge():
        from jobs.search.report.summary import facts, summary_lines

        trials = trials_of(sweep, storage)
        if html is not None:
            from jobs.search.report.page import sweep_page

            write_bytes(html, sweep_page(trials).encode())
        if json_:
            typer.echo(json.dumps(facts(trials)))
            return
        best = trials.best
        typer.echo(f"best: {trial_words(best)}, {best.score:.4f}" if best is not None else "no trial has finished yet")
        for line in summary_lines(trials):
            typer.echo(line)


@app.command(epilog="Example:  fleetune sweep stop reviews-lr-20261127 7")
def stop(
    sweep: SweepArgument,
    trial: Annotated[int, typer.Argument(metavar="TRIAL", help="Number of the trial.")],
    storage: Storage = None,
) -> None:
    """Make a running trial save a checkpoint and end. The sweep continues with other trials.

    To stop the sweep: fleetune stop SWEEP.
    """
    with edge():
        found = trials_of(sweep, storage)
        if trial not in found.trials:
            raise InputError(f"there is no trial {trial}: the sweep has begun {len(found.trials)} so far")
        if found.trials[trial].is_over:
            raise InputError(f"trial {trial} has ended: {found.trials[trial].state}")
        typer.echo(orders.ask_to_stop(found.trials[trial].paths.root))
