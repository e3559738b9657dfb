"""The commands `fleetune sweep extend` and `narrow`, which change the budget and the ranges of a sweep."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from jobs.drivers.finetune.begin import load_work
from jobs.errors import InputError
from jobs.run.paths import JobPaths
from jobs.run.record import resume_command
from jobs.search.changes import Change, Changes, changed, is_driven, larger, narrower
from jobs.search.trials import Trials
from jobs.spec.sweep import SweepSpec
from orchestrator.cli.commands.sweep import SweepArgument, app, trials_of
from orchestrator.cli.edge import Address, Quiet, Storage, edge, refuse_dashboard
from orchestrator.cli.meant import job_that_goes_on
from orchestrator.cli.sweep_reading import run_sweep_here

__all__ = ["app"]


def _goes_on(trials: Trials) -> bool:
    """Return whether a driver is at work on the sweep, or the queue will start one."""
    return is_driven(JobPaths(trials.root)) or job_that_goes_on(trials.root) is not None


@app.command(epilog="Example:  fleetune sweep extend reviews-lr-20261127 --runs 4")
def extend(
    sweep: SweepArgument,
    runs: Annotated[float | None, typer.Option("--runs", metavar="N", min=0.0, help="Runs to add.")] = None,
    trials: Annotated[int | None, typer.Option("--trials", metavar="N", min=1, help="Trials to add.")] = None,
    tokens: Annotated[int | None, typer.Option("--tokens", metavar="N", min=1, help="Tokens to add.")] = None,
    minutes: Annotated[float | None, typer.Option("--minutes", metavar="N", min=0.0, help="Minutes to add.")] = None,
    gpu_hours: Annotated[
        float | None, typer.Option("--gpu-hours", metavar="N", min=0.0, help="GPU-hours to add.")
    ] = None,
    address: Address = None,
    storage: Storage = None,
    quiet: Quiet = False,
) -> None:
    """Add to the budget of a sweep. A sweep that has ended is resumed here.

    A running sweep uses the larger budget at once. Paused trials may continue from their checkpoints.
    """
    with edge():
        found = trials_of(sweep, storage)
        asked = {"runs": runs, "trials": trials, "tokens": tokens, "minutes": minutes, "gpu_hours": gpu_hours}
        change = larger(found, asked)
        if _goes_on(found):
            _ask(found, change)
            return
        refuse_dashboard(address, ["--resume", found.root])
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
    with edge():
        found = trials_of(sweep, storage)
        change = narrower(found.sweep, set_)
        if not _goes_on(found):
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
