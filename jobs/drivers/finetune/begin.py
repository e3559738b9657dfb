"""Starts a run: from the command's arguments to an open run directory, new or resumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cluster.errors import InputError, SpecError
from jobs.preflight.validate import validate
from jobs.run.events import Announcer
from jobs.run.find import find_run, storage_root, sweep_of
from jobs.run.paths import JobPaths
from jobs.run.progress import Progress
from jobs.run.record import open_run, reopen_run, resume_command
from jobs.run.resume import check_resumable
from jobs.spec.compare import CompareSpec
from jobs.spec.finetune import Spec
from jobs.spec.load import load_to_run
from jobs.spec.sweep import Search, SweepSpec

UNCHANGED = (
    "a comparison goes on with the spec that it began with, so that its methods stay comparable: give --resume alone, "
    "or start a new comparison"
)


def load_job(path: str | None, overrides: Sequence[str], resume: str | None) -> tuple[Spec, str | None]:
    """Load the spec of one job, and find the root of the run to resume (see `load_work`).

    Raises:
        InputError: see `load_work`; or the spec is that of a sweep.
    """
    spec, root = load_work(path, overrides, resume)
    if isinstance(spec, Search):
        file = path or JobPaths(str(root)).spec
        raise SpecError(
            f"{file} is of kind {spec.kind}: fleetune run {file}, or python -m jobs.{spec.kind} {file}, runs it"
        )
    return spec, root


def load_work(
    path: str | None, overrides: Sequence[str], resume: str | None
) -> tuple[Spec | SweepSpec | CompareSpec, str | None]:
    """Load the spec of a job, sweep or comparison, and find the root of the run to resume; None for a new run.

    Args:
        path: path of the spec; None takes the run's spec.
        overrides: see `load_spec`.
        resume: name, start of a name, path or URL of the run. Names are looked up under the spec's storage_path, or,
            without a spec, where the environment says.

    Raises:
        InputError: no run or several runs match, the spec is wrong, a comparison is to be resumed with a change, or
            the run is a trial of a sweep, which only the sweep resumes.
    """
    if path is not None:
        spec = load_to_run(path, overrides)
        if resume is not None and isinstance(spec, CompareSpec):
            raise SpecError(UNCHANGED)
        base = spec.base if isinstance(spec, Search) else spec
        return spec, None if resume is None else _run_to_resume(resume, base.storage_path)
    if resume is None:
        raise SpecError("give the spec of a new run, or --resume RUN to continue an earlier one")
    root = _run_to_resume(resume, storage_root(None))
    spec = load_to_run(JobPaths(root).spec, overrides)
    if overrides and isinstance(spec, CompareSpec):
        raise SpecError(UNCHANGED)
    return spec, root


def _run_to_resume(resume: str, storage_path: str) -> str:
    """Return the root of a run that is not part of a sweep. Raises InputError."""
    root = find_run(resume, storage_path)
    if (sweep := sweep_of(JobPaths(root))) is not None:
        raise InputError(
            f"{root} belongs to the sweep {sweep.name}, whose ledger would not know what was trained. To resume the "
            f"sweep: {resume_command(sweep)}"
        )
    return root


@dataclass(frozen=True)
class Assignment:
    """What a queue assigns to a run in addition to its spec: the slots of one attempt.

    The queue knows that no other attempt drives the run.

    Attributes:
        places: node id of each worker; None lets Ray choose.
        num_workers: workers of this attempt; None means the number in the spec.
        variables: environment variables for every process of the run. They may be secret, and are never shown.
        run: root of the run if it is new; None makes a new name.
        gives_back: a search returns slots to the queue as soon as it has no trial for them. False if another search
            follows on the same slots.
    """

    places: tuple[str, ...] | None = None
    num_workers: int | None = None
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    run: str | None = None
    gives_back: bool = True


@dataclass(frozen=True)
class Begun:
    """A run whose directory is open, with the spec that is stored there."""

    spec: Spec
    paths: JobPaths
    warnings: tuple[str, ...]
    resumed: bool

    def tell(self, announce: Announcer) -> None:
        """Announce the first events of the run."""
        verb, paths = ("going on with run" if self.resumed else "run"), self.paths
        said = f"{verb} {paths.name} in {paths.root}"
        announce("phase", said, phase="start", root=paths.root, resumed=self.resumed)
        for warning in self.warnings:
            announce("warning", warning)


def begin_run(
    spec: Spec,
    resume: str | None = None,
    *,
    alone: bool = False,
    root: str | None = None,
    progress: Progress | None = None,
) -> Begun:
    """Check everything that can be checked before a worker starts, and open the run's directory.

    Args:
        resume: root of the run to continue.
        alone: the caller knows that no driver has that run any more.
        root: root of a new run; None makes a new name.
        progress: shows that the adapter of a new run is tried on its model, which takes seconds the first time. None:
            the driver tries it later, and a mistake such as a wrong LoRA target is the outcome of a failed run.

    Raises:
        InputError: a mistake was found, and nothing was written.
    """
    if resume is not None:
        check_resumable(JobPaths(resume), spec, alone=alone)
    found = validate(spec, estimates=False)
    if progress is not None and resume is None and found.spec.method.kind != "full":
        from jobs.preflight.ready import try_model  # imports numpy

        try_model(found.spec, progress)
    paths = open_run(found.spec, root) if resume is None else reopen_run(resume, found.spec)
    return Begun(found.spec, paths, found.warnings, resume is not None)
