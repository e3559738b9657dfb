"""The steps of `fleetune submit`: read and check specs, submit them, and wait for the jobs."""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from cluster.errors import DataError, FleetuneError, InputError, SpecError
from jobs.comparison.checking import checked_methods
from jobs.preflight.validate import validate, validate_command
from jobs.search.rules.checking import check_search, checked_sweep, sweep_warnings
from jobs.spec.checking.lines import Mark
from jobs.spec.command import CommandSpec
from jobs.spec.compare import CompareSpec
from jobs.spec.finetune import Spec
from jobs.spec.load import AnySpec, file_of_paths, trained_job
from jobs.spec.queue import MOST_PRIORITY
from jobs.spec.references import run_named
from jobs.spec.sweep import Search
from jobs.spec.vary import SWEEP, field_varied, sweep_values, varied
from jobs.storage import files as storage
from orchestrator.api import MOST_JOBS, JobView, Nodes, Server, Submission
from orchestrator.cli.log_printing import print_logs
from orchestrator.client.client import checked_key, iter_completed, send_specs, with_queue_settings
from orchestrator.client.connection import Connection
from orchestrator.client.handle import JobHandle
from orchestrator.client.lookup import find_job
from orchestrator.client.plans import gangs_of, plan_gang, planned_jobs
from orchestrator.client.spec_names import Named, load_named, place_errors
from orchestrator.pages.queue import format_labels, format_metrics, format_size
from orchestrator.pages.tables import printable_lines
from orchestrator.queue.states import State

Say = Callable[[str], None]
NAMED: Final = 5  # most jobs to name in a message
_PLANS: Final = 5  # most plans to show of jobs that fit


@dataclass(frozen=True)
class SubmitOptions:
    """The options of `fleetune submit`."""

    specs: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    sweep: tuple[str, ...] = ()
    tenant: str | None = None
    priority: int | None = None
    after: tuple[str, ...] = ()
    key: str | None = None
    check: bool = True
    follow: bool = False


def submit_all(server: Connection, options: SubmitOptions, say: Say) -> list[JobView]:
    """Submit all jobs, or none.

    Raises:
        InputError: an option or a spec is wrong, or a parent does not exist.
    """
    _check_options(options)
    key = checked_key(options.key)
    specs = _vary_all(load_named(options.specs, options.overrides), options.sweep)
    server.get("/v1/server", Server)  # fails now, not after the checks, if the server cannot be used
    if options.check:
        _plan(_check(specs, say), len(specs) > 1, server, say)
    parents = tuple(find_job(server, job).job_id for job in options.after)
    bodies = with_queue_settings(specs, options.tenant, options.priority, parents)
    body = Submission(specs=tuple(bodies), key=key)
    jobs = list(send_specs(server, body, specs))
    for job in jobs:
        after = f", after {', '.join(job.after)}" if job.after else ""
        labels = f", {format_labels(job.labels)}" if job.labels else ""
        say(f"{job.state} {job.job_id} ({job.kind}, {format_size(job)}, tenant {job.tenant}{after}{labels})")
    return jobs


def _vary_all(specs: Sequence[Named], sweep: Sequence[str]) -> list[Named]:
    """Return one spec for each combination of the swept fields. Raises SpecError."""
    if not sweep:
        return list(specs)
    fields, found = sweep_values(sweep), list[Named]()
    for one in specs:
        try:
            made = varied(one.spec, fields, file_of_paths(one.name, one.marks))
        except SpecError as error:
            raise SpecError.of(replace(mistake, place=SWEEP) for mistake in error.mistakes) from error
        marks = _marks_of(one, fields)
        found += [Named(spec, f"{one.name} ({spec.name})", marks, is_checked=True) for spec in made]
    if len(found) > MOST_JOBS:
        raise InputError(
            f"these are {len(found):,} jobs, but at most {MOST_JOBS:,} are accepted at once: give --sweep fewer values"
        )
    return found


def _marks_of(spec: Named, swept: Iterable[str]) -> dict[str, Mark]:
    """Return the places of the fields after a sweep: those that it varies are written in its options."""
    names = [field_varied(type(spec.spec), given) for given in swept]
    within = tuple(f"{name}." for name in names)
    kept = {name: mark for name, mark in spec.marks.items() if not f"{name}.".startswith(within)}
    return kept | dict.fromkeys(names, Mark(SWEEP))


def _check_options(options: SubmitOptions) -> None:
    if options.follow and (len(options.specs) > 1 or options.sweep):
        raise InputError("--follow prints the logs of one job: give one SPEC, or use --wait")
    if len(options.specs) > MOST_JOBS:
        raise InputError(f"{len(options.specs):,} specs are too many at once: at most {MOST_JOBS:,}")
    if options.priority is not None and not -MOST_PRIORITY <= options.priority <= MOST_PRIORITY:
        raise InputError(f"--priority {options.priority} is out of range: {-MOST_PRIORITY} to {MOST_PRIORITY}")
    if options.key == "":
        raise InputError("--key is empty: leave it out, or give a text")
    if options.tenant == "":
        raise InputError("--tenant is empty: leave it out, or give a name")


def _check(specs: Sequence[Named], say: Say) -> list[Named]:
    """Validate specs as `fleetune validate` does, if model and data are on this machine, and return these.

    Raises:
        InputError: a spec is wrong.
    """
    several, checked = len(specs) > 1, list[Named]()
    for one in specs:
        spec, path, judged, warnings = trained_job(one.spec), one.name, None, list[str]()
        if isinstance(one.spec, Search):
            with place_errors(one):
                check_search(one.spec)
                for sweep in one.spec.sweeps:
                    checked_sweep(sweep)  # also its prior
            judged, warnings = one.spec.judged, sweep_warnings(one.spec)
        if isinstance(one.spec, CommandSpec):
            with contextlib.suppress(SpecError):  # its folder may be on the nodes only
                warnings += validate_command(one.spec).warnings
        for warning in warnings if spec is None else ():
            say(f"warning: {path}: {warning}" if several else f"warning: {warning}")
        if spec is None:
            continue
        if hint := _similar_directory(spec.model.path, path):
            say(f"warning: {path}: model.path {spec.model.path} is read as a model of the hub; {hint}")
        if _is_here(spec):
            with place_errors(one):
                warnings += _warnings_of(one.spec, spec, judged)
            checked.append(one)
        else:
            say(f"not checked: model and data of {path}, because they are not all on this machine")
        for warning in warnings:
            say(f"warning: {path}: {warning}" if several else f"warning: {warning}")
    return checked


def _warnings_of(spec: AnySpec, job: Spec, judged: str | None) -> list[str]:
    """Validate the job that a spec trains, and for a comparison each of its methods. Raises InputError."""
    if not isinstance(spec, CompareSpec):
        return list(validate(job, judged=judged).warnings)
    return list(dict.fromkeys(warning for one in checked_methods(spec) for warning in one.found.warnings))


def _similar_directory(model: str, path: str) -> str:
    """Suggest a directory beside the spec whose name is similar to the model's; '': there is none."""
    base = "" if storage.is_url(path) else os.path.dirname(os.path.abspath(path))
    if not base or not storage.is_local(model) or os.path.isabs(model):
        return ""
    folder, name = os.path.split(model)
    try:
        near = [
            os.path.join(one, two) if folder else two
            for one in _alike(base, folder)
            for two in _alike(os.path.join(base, one), name)
        ]
    except OSError:
        return ""
    return f"did you mean ./{near[0]}?" if near else ""


def _alike(folder: str, name: str) -> list[str]:
    """Return directories with a similar name. Raises OSError."""
    if not name:
        return [""]
    names = [one for one in os.listdir(folder) if os.path.isdir(os.path.join(folder, one))]
    return difflib.get_close_matches(name, names, n=1, cutoff=0.8)


def _is_here(spec: Spec) -> bool:
    """Whether model, data and storage of a spec can be read on this machine."""
    if run_named(spec.model.path) is not None:
        return False
    named = [spec.model.path, *(source.path for _, source in spec.sources)]
    local = [storage.local_path(path) for path in named if storage.is_local(path)]
    folder = os.path.dirname(storage.local_path(spec.storage_path)) if storage.is_local(spec.storage_path) else "."
    return all(map(os.path.exists, local)) and os.path.isdir(folder)


def _plan(specs: Sequence[Named], several: bool, server: Connection, say: Say) -> None:
    """Say what is planned, and warn of jobs that do not fit. Without torch on this machine, nothing is planned."""
    if importlib.util.find_spec("torch") is None or not any(planned_jobs(one.spec) for one in specs):
        return
    try:
        gangs = gangs_of(specs, server.get("/v1/nodes", Nodes).nodes, several)
    except FleetuneError as error:  # the server queues jobs meanwhile
        say(f"not planned: {error}")
        return
    if gangs:
        say("planning the memory of the workers")
    shown = 0
    for gang in gangs:
        try:
            plan = plan_gang(gang)
        except DataError as error:  # a worker may have other versions
            say(f"warning: memory is not planned: {error}")
            continue
        name = f" of {plan.name}" if plan.name else ""
        if not plan.fits:
            say(f"warning: the plan{name}: {plan}")
        elif shown < _PLANS:
            shown += 1
            say(f"plan{name}: {plan}")


def wait_for(server: Connection, jobs: Sequence[JobView], *, follow: bool, as_json: bool, say: Say) -> list[JobView]:
    """Wait for the jobs, and report the end of each. Returns their last states, in the order of submission."""
    try:
        if follow:
            ended = [print_logs(server, jobs[0], follow=True, source=None, tail=None, as_json=as_json)]
            say(_end(ended[0], server))
            return ended
        handles = [JobHandle(server, job) for job in jobs]
        say(f"waiting for {'its end' if len(jobs) == 1 else 'their ends'}; meanwhile: fleetune queue")
        for handle in iter_completed(server, handles):
            say(_end(handle.view, server))
        return [handle.view for handle in handles]
    except KeyboardInterrupt:
        ids = " ".join(job.job_id for job in jobs[:NAMED]) + (" ..." if len(jobs) > NAMED else "")
        say(
            f"{'it goes' if len(jobs) == 1 else 'they go'} on. To watch: fleetune logs {jobs[0].job_id} -f; "
            f"to end: fleetune cancel {ids}"
        )
        raise


def _end(job: JobView, server: Connection) -> str:
    """Describe the end of a job, with the end of its log if it has failed."""
    return printable_lines(_raw_end(job, server))


def _raw_end(job: JobView, server: Connection) -> str:
    if job.state is State.SUCCEEDED:
        metrics = format_metrics(job)
        return f"{job.job_id} succeeded{f'  {metrics}' if metrics else ''}{f'  run {job.run}' if job.run else ''}"
    if job.state is State.CANCELLED:
        return f"{job.job_id} was cancelled"
    try:
        return str(JobHandle(server, job).exception())
    except FleetuneError as error:
        return f"{job.job_id} {job.state}: {job.message} ({error})"
