"""Summarises the runs under a storage path from their files. Never writes, and needs no cluster."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable
from typing import Any

from pydantic import ConfigDict, Field

from cluster.errors import FleetuneError, StorageError
from jobs.frozen import Frozen
from jobs.run.find import read_spec_json, run_names, sweep_of
from jobs.run.outcome import Outcome, Status, read_outcome
from jobs.run.paths import JobPaths, rank_name, time_in_name
from jobs.run.record import how_to_go_on
from jobs.run.remedies import Trouble, troubles_of
from jobs.run.run_plan import PlanCheck, check_of, read_plan
from jobs.spec.checking.fields import SEARCHES
from jobs.storage import files as storage
from jobs.storage.journal import Record, newest_record, part_names, read_journal, read_part, written_at_s
from jobs.storage.text import read_end

SILENT_AFTER_S = 300.0  # a run that has written nothing for this long counts as lost
LOG_TAIL_BYTES = 4096  # a screen of text
LAST_EVENTS = 10  # shown by `fleetune show`
_MOST_PARTS = 3  # of the metrics, in which a list of runs looks for the last evaluation; `show` reads the events, too

Now = Callable[[], datetime.datetime]
# Fields of an outcome that a summary has too.
_OF_OUTCOME = {"status", "step", "metrics", "evaluated_step", "reason"}


class _Read(Frozen):
    """Values that were read. NaN and infinity are allowed, because a viewer must see them; in JSON they are null."""

    model_config = ConfigDict(allow_inf_nan=True, ser_json_inf_nan="null")


class RunSummary(_Read):
    """One run in the table of `fleetune runs`."""

    name: str
    root: str
    status: str = Field(
        description="succeeded, failed, interrupted, running, lost (silent for 5 minutes) or unreadable."
    )
    started_at: datetime.datetime | None
    silent_s: float | None = Field(description="Seconds since the run last wrote something; None if it has ended.")
    step: int
    metrics: dict[str, float] = Field(description="Last loss, and the last eval_* that were measured after a step.")
    evaluated_step: int | None = Field(None, description="The step after which these eval_* were measured.")
    reason: str | None


class RunDetails(_Read):
    """Everything that `fleetune show` prints."""

    summary: RunSummary
    spec: dict[str, Any]
    total_steps: int | None
    trainable: int | None = Field(None, description="Elements of the parameters that are trained.")
    parameters: int | None = Field(None, description="Elements of all parameters.")
    metrics_before: dict[str, float]
    exported_step: int | None = Field(None, description="Step of the exported checkpoint, if it is not the last step.")
    exported_metrics: dict[str, float] = Field(default_factory=dict, description="eval_* after that step.")
    confusion: tuple[tuple[int, ...], ...] | None = Field(
        None, description="Held-out samples: true class by predicted."
    )
    last_step: Record | None
    paths: dict[str, str]
    resume: str | None = Field(description="The command that resumes a run that ended early.")
    troubles: tuple[Trouble, ...] = Field((), description="What went wrong, and what the run did about it.")
    plan: PlanCheck | None = Field(None, description="What was predicted and measured; None: nothing was planned.")
    events: tuple[Record, ...]
    log_tail: str | None = Field(description="End of the most useful log, if the run failed or was lost.")


def utc_now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def list_runs(storage_path: str) -> list[RunSummary]:
    """List all runs directly under `storage_path`, newest last.

    Raises:
        StorageError: the storage path does not exist or cannot be read.
    """
    if not storage.is_dir(storage_path):
        raise StorageError(
            f"no runs: there is no directory {storage_path}. Give --storage, or set FLEETUNE_STORAGE_PATH"
        )
    runs = [summarise(JobPaths.of(storage_path, name)) for name in run_names(storage_path)]
    return sorted(
        runs, key=lambda run: (run.started_at or datetime.datetime.min.replace(tzinfo=datetime.UTC), run.name)
    )


def plan_checks(storage_path: str) -> dict[str, PlanCheck]:
    """Return the plans of all runs directly under `storage_path` beside what was measured, by name.

    Raises:
        StorageError: the storage path does not exist, or no run there has a plan.
    """
    roots = {run.name: run.root for run in list_runs(storage_path)}
    plans = {name: _plan(JobPaths(root), _outcome(JobPaths(root))) for name, root in roots.items()}
    found = {name: plan for name, plan in plans.items() if plan is not None}
    if not found:
        raise StorageError(
            f"no run in {storage_path} has a plan: runs of earlier releases, and those on unknown GPUs, have none"
        )
    return found


def summarise(paths: JobPaths, now: Now = utc_now) -> RunSummary:
    """Summarise one run with a few small reads. If one of the files is damaged, the status is `unreadable`."""
    named = {"name": paths.name, "root": paths.root}
    known: dict[str, Any] = {**named, "started_at": time_in_name(paths.name), "silent_s": None}
    try:
        outcome = read_outcome(paths)
        last = (newest_record(paths.metrics) if outcome is None else None) or {}
    except FleetuneError as error:
        return RunSummary(**known, status="unreadable", step=0, metrics={}, reason=str(error))
    if outcome is not None:
        return RunSummary(**known, **outcome.model_dump(include=_OF_OUTCOME))
    times = (_newest(paths.events), _newest(paths.metrics), known["started_at"])
    written_at = max((at for at in times if at), default=None)
    silent_s = max((now() - written_at).total_seconds(), 0.0) if written_at else None
    status = "running" if silent_s is not None and silent_s <= SILENT_AFTER_S else "lost"
    step, evaluation = int(last.get("step", 0)), _last_evaluation(paths, last)
    known |= {"silent_s": silent_s, "evaluated_step": evaluation.get("step")}
    metrics = _metrics_of(evaluation) | _metrics_of(last)
    return RunSummary(**known, status=status, step=step, metrics=metrics, reason=None)


def _last_evaluation(paths: JobPaths, newest: Record) -> Record:
    """Return the newest record with eval_* in the last parts of the metrics; {}: there is none.

    Records of later steps than the newest one do not count: the run has gone back since then.
    """
    for part in reversed(part_names(paths.metrics)[-_MOST_PARTS:]):
        with contextlib.suppress(StorageError):
            for record in reversed(read_part(paths.metrics, part)):
                if record["step"] <= newest.get("step", 0) and any(name.startswith("eval_") for name in record):
                    return record
    return {}


def _with_evaluation(run: RunSummary, events: list[Record]) -> RunSummary:
    """Add the last evaluation to the summary of a run that has not ended."""
    for event in reversed(events):
        found = event.get("data", {})
        if event.get("kind") == "evaluated" and 0 < found.get("step", 0) <= run.step:
            metrics = _metrics_of(found["metrics"]) | run.metrics
            return run.model_copy(update={"metrics": metrics, "evaluated_step": found["step"]})
    return run


def _metrics_before(events: list[Record]) -> dict[str, float]:
    """Return the metrics that were measured before the first step; {}: none were."""
    evaluated = (event.get("data", {}) for event in reversed(events) if event.get("kind") == "evaluated")
    return next((dict(one["metrics"]) for one in evaluated if one.get("step") == 0), {})


def _newest(folder: str) -> datetime.datetime | None:
    """Return the time at which the newest part was written."""
    names = part_names(folder)
    return datetime.datetime.fromtimestamp(written_at_s(names[-1]), datetime.UTC) if names else None


def _metrics_of(record: Record) -> dict[str, float]:
    wanted = {key: value for key, value in record.items() if key == "loss" or key.startswith("eval_")}
    return {key: float(value) for key, value in wanted.items() if isinstance(value, int | float)}


def describe_run(root: str, now: Now = utc_now) -> RunDetails:
    """Read everything that `fleetune show` prints.

    Raises:
        StorageError: the run cannot be read.
    """
    paths = JobPaths(root)
    summary = summarise(paths, now)
    events = read_journal(paths.events)
    plan: Record = next((one.get("data", {}) for one in reversed(events) if one.get("kind") == "plan"), {})
    outcome = _outcome(paths)
    if outcome is None and summary.evaluated_step is None:
        summary = _with_evaluation(summary, events)
    tells_enough = summary.status in ("running", Status.SUCCEEDED, Status.INTERRUPTED)  # without the log
    spec = read_spec_json(paths)
    is_search = spec.get("kind") in SEARCHES
    return RunDetails(
        summary=summary,
        spec=spec,
        total_steps=plan.get("total_steps"),
        trainable=plan.get("trainable"),
        parameters=plan.get("parameters"),
        metrics_before=outcome.metrics_before if outcome else _metrics_before(events),
        exported_step=outcome.exported_step if outcome else None,
        exported_metrics=outcome.exported_metrics if outcome else {},
        confusion=outcome.confusion if outcome else None,
        last_step=newest_record(paths.metrics),
        paths=_paths_of(paths, outcome, is_search),
        resume=resume_of(summary, is_search=is_search),
        troubles=troubles_of(events),
        plan=_plan(paths, outcome),
        events=tuple([event for event in events if event.get("kind") != "alive"][-LAST_EVENTS:]),
        log_tail=None if tells_enough else log_tail(paths, outcome.rank if outcome else None),
    )


def resume_of(run: RunSummary, *, is_search: bool) -> str | None:
    """Return the command that resumes a run that ended early; None if it runs, succeeded, or would fail again.

    A trial is resumed by its sweep, so the command is that of the sweep.
    """
    if run.status in ("running", "unreadable", Status.SUCCEEDED):
        return None
    paths = JobPaths(run.root)
    if not is_search and (sweep := sweep_of(paths)) is not None:
        return resume_of(summarise(sweep), is_search=True)
    return how_to_go_on(paths, _outcome(paths), is_search=is_search)


def _outcome(paths: JobPaths) -> Outcome | None:
    try:
        return read_outcome(paths)
    except FleetuneError:
        return None  # `summarise` reports it


def _plan(paths: JobPaths, outcome: Outcome | None) -> PlanCheck | None:
    if outcome is not None:
        return outcome.plan
    try:
        plan = read_plan(paths)
        return None if plan is None else check_of(plan, [])
    except (FleetuneError, ValueError):
        return None  # a newer release planned it


def _paths_of(paths: JobPaths, outcome: Outcome | None, is_search: bool) -> dict[str, str]:
    found = {"run": paths.root, "spec": paths.spec, "logs": paths.logs}
    if not is_search:  # the checkpoints of a search are in its trials
        found["checkpoints"] = paths.checkpoints
    if outcome and outcome.model_path and (model := _model_of(paths, outcome.model_path, is_search)):
        found["model"] = model
    return found


def _model_of(paths: JobPaths, exported: str, is_search: bool) -> str | None:
    """Return where a model lies now. The run may have been moved since it exported to `exported`; None: it is gone."""
    if not is_search:
        return paths.model if storage.is_dir(paths.model) else None
    inside = exported.rpartition(f"/{paths.name}/")[2]  # in the directory of a trial
    moved = storage.join(paths.root, inside)
    return moved if inside != exported and storage.is_dir(moved) else exported


def log_tail(paths: JobPaths, rank: int | None = None) -> str | None:
    """Return the end of this rank's log, or else of the driver's, or else of the first rank's; None if it is empty."""
    names = storage.list_names(paths.logs)
    wanted = ["driver.log", *names] if rank is None else [f"{rank_name(rank)}.log", "driver.log", *names]
    name = next((name for name in wanted if name in names), None)
    if name is None:
        return None
    path = storage.join(paths.logs, name)
    tail = read_end(path, LOG_TAIL_BYTES)
    return f"{path}\n{tail}" if tail else None
