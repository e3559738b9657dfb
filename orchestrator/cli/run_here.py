"""Runs a sweep or a comparison in this process, for commands that start or resume one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import typer

from cluster.errors import FleetuneError
from jobs.run.find import find_run, read_spec_json, storage_root
from jobs.run.outcome import Event
from jobs.run.paths import JobPaths
from jobs.run.progress import Progress
from jobs.spec.checking.fields import SEARCHES
from jobs.spec.compare import CompareSpec
from jobs.spec.load import load_marked
from jobs.spec.sweep import SweepSpec
from orchestrator.cli.output import progress_of, users_output


class ProgressWithRoot:
    """Passes events on, and remembers the run's root."""

    def __init__(self, inner: Progress) -> None:
        self._inner, self.step, self.close = inner, inner.step, inner.close
        self.root: str | None = None

    def event(self, event: Event) -> None:
        self.root = event.data.get("root", self.root)
        self._inner.event(event)


def as_ray_job(spec: str | None, overrides: Sequence[str], resume: str | None) -> list[str] | None:
    """Return module and arguments of a Ray job that does what `fleetune run` does. None: there is no such module.

    A spec or run that cannot be read on this machine counts as that of a single job.
    """
    try:
        if resume is None:
            kind = load_marked(str(spec), overrides).spec.kind
        else:
            kind = read_spec_json(JobPaths(find_run(resume, storage_root(None)))).get("kind", "finetune")
    except FleetuneError:
        kind = "finetune"
    changes = [word for one in overrides for word in ("--set", one)]
    if kind == "finetune":
        return ["jobs.finetune", *([spec] if spec else []), *(["--resume", resume] if resume else []), *changes]
    return [f"jobs.{kind}", str(spec), *changes] if kind in SEARCHES and resume is None else None


def run_sweep_here(sweep: SweepSpec, resume: str | None, address: str | None, quiet: bool) -> int:
    """Run a sweep, and return the exit code. `resume`: root of an earlier sweep. Raises FleetuneError."""
    with closing(ProgressWithRoot(progress_of(quiet, sweep=True))) as progress:
        from jobs.sweep import ending_of_sweep, run_sweep

        outcome = run_sweep(sweep, address=address, progress=progress, resume=resume)
    if quiet:
        typer.echo(ending_of_sweep(JobPaths(progress.root or ""), outcome))
    return outcome.exit_code


def run_comparison_here(
    spec: CompareSpec, resume: str | None, address: str | None, quiet: bool, price: float | None
) -> int:
    """Run a comparison, print its table, and return the exit code.

    Args:
        resume: root of an earlier comparison.
        price: see `run_comparison`.

    Raises:
        FleetuneError: a mistake found before anything was written.
    """
    from jobs.compare import ending_of_comparison, run_comparison
    from jobs.comparison.measured import read_comparison
    from jobs.comparison.page import comparison_text

    stream = users_output()
    outcome, paths = run_comparison(
        spec,
        address=address,
        progress=progress_of(quiet, stream, events_only=True),
        display=lambda: progress_of(quiet, stream, sweep=True),
        resume=resume,
        price=price,
    )
    if (found := read_comparison(paths)) is not None:
        typer.echo(comparison_text(found))
    if quiet:
        typer.echo(ending_of_comparison(paths, outcome))
    return outcome.exit_code
