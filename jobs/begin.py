"""How a run begins: from what was typed to a run's directory that is open, new or gone on with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jobs import storage
from jobs.errors import SpecError
from jobs.findrun import find_run, storage_root
from jobs.load import load_spec, load_sweep
from jobs.paths import JobPaths
from jobs.record import open_run, reopen_run
from jobs.resume import check_resumable
from jobs.runref import with_model_of_run
from jobs.search.spec import SweepSpec
from jobs.spec import Spec
from jobs.validate import validate
from jobs.watch import Announcer


def load_job(path: str | None, overrides: Sequence[str], resume: str | None) -> tuple[Spec, str | None]:
    """The spec, and the root of the run that goes on with it; None for a new run.

    Args:
        path: of the spec; left out, it is the run's own.
        overrides: as `load_spec` takes them.
        resume: name, start of a name, path or URL of the run. Names are looked for under the spec's storage_path, or
            where the environment says when there is no spec.

    Raises:
        InputError: no run, or several, are meant; or the spec is wrong.
    """
    if resume is None:
        if path is None:
            raise SpecError("give the spec of a new run, or --resume RUN to go on with an earlier one")
        return load_spec(path, overrides), None
    if path is not None:
        spec = load_spec(path, overrides)
        return spec, find_run(resume, spec.storage_path)
    root = find_run(resume, storage_root(None))
    return load_spec(JobPaths(root).spec, overrides), root


def load_sweep_job(
    path: str | None, overrides: Sequence[str], resume: str | None
) -> tuple[SweepSpec, str | None] | None:
    """The same for a sweep; None where neither the spec nor what goes on is one.

    Raises:
        InputError: as `load_job`.
    """
    if path is not None and (sweep := load_sweep(path, overrides)) is not None:
        return sweep, None if resume is None else find_run(resume, sweep.base.storage_path)
    if path is None and resume is not None:
        root = find_run(resume, storage_root(None))
        if storage.exists(JobPaths(root).spec) and (sweep := load_sweep(JobPaths(root).spec, overrides)) is not None:
            return sweep, root
    return None


@dataclass(frozen=True)
class Begun:
    """A run whose directory is open, with its spec as it is in there."""

    spec: Spec
    paths: JobPaths
    warnings: tuple[str, ...]
    resumed: bool

    def tell(self, announce: Announcer) -> None:
        """The first events of the run."""
        verb = "going on with run" if self.resumed else "run"
        announce(
            "phase",
            f"{verb} {self.paths.name} in {self.paths.root}",
            phase="start",
            root=self.paths.root,
            resumed=self.resumed,
        )
        for warning in self.warnings:
            announce("warning", warning)


def begin_run(spec: Spec, resume: str | None = None, *, alone: bool = False, root: str | None = None) -> Begun:
    """Check everything that can be checked before a worker starts, and open the run's directory.

    Args:
        resume: root of the run to go on with.
        alone: the caller knows that nobody drives that run any more.
        root: of a new run; None: under a new name.

    Raises:
        InputError: nothing was written.
    """
    if resume is not None:
        check_resumable(JobPaths(resume), spec, alone=alone)
    warnings = validate(spec).warnings
    spec = with_model_of_run(spec)
    paths = open_run(spec, root) if resume is None else reopen_run(resume, spec)
    return Begun(spec, paths, warnings, resume is not None)
