"""Makes the next change of the spec after a worker group ran out of memory, stores it and announces it.

`jobs.remedies.out_of_memory` decides which change is next. The driver under Ray then starts a new worker group
(`ray_driver`). Under torchrun nothing can be started again; there, `with_earlier_changes` alone is used.
"""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cluster.errors import OutOfMemory, StorageError
from cluster.text import many
from jobs.planning import plan_batching
from jobs.preflight.plan_text import gib
from jobs.remedies.out_of_memory import (
    Change,
    Rung,
    Shortage,
    Where,
    advice,
    fields_of_batch,
    format_tried,
    next_change,
    remedies_in,
    with_change,
    with_remedies,
    worker_kind,
)
from jobs.run.attempts import count_attempts, retake_run
from jobs.run.checkpoints import newest_step
from jobs.run.events import DRIVER, Announcer
from jobs.run.paths import JobPaths
from jobs.run.remedies import Remedy, RemedyReport, next_time, read_remedies, write_remedies
from jobs.run.run_plan import read_plan
from jobs.spec.finetune import Spec
from jobs.storage import files as storage
from jobs.storage.journal import JournalReader, part_names, read_part
from jobs.training.ending import failures_of
from jobs.training.faults import Fault
from jobs.training.on_ray.crash import Crash
from jobs.training.worker_input import Job

REMEDY = "out_of_memory"  # as in `jobs.spec.remedies`


def with_earlier_changes(spec: Spec, paths: JobPaths, announce: Announcer) -> Spec:
    """Return the spec with the changes that earlier attempts of the run made for memory, and announce them.

    Raises:
        StorageError: the changes cannot be read.
    """
    earlier = read_remedies(paths) if spec.remedies.out_of_memory else ()
    spec, changes = with_remedies(spec, earlier)
    for one in changes:
        effect = f"an earlier attempt of this run ran out of memory with {one.before}"
        said = f"{effect}, so this one begins with {one}. To prevent that, set another value in the spec"
        report = RemedyReport(REMEDY, "an earlier attempt ran out of memory", str(one), effect)
        report.tell(announce, said, stage="earlier", **facts_of(one))
    if earlier and not changes:
        announce(
            "warning",
            f"the spec or the kind of workers has changed, so the changes in {paths.remedies} are not applied",
        )
    return spec


def facts_of(change: Change) -> dict[str, Any]:
    return {"rung": change.rung, "field": change.field, "before": change.before, "after": change.after}


@dataclass
class Group:
    """The present worker group, as the run's files describe it."""

    paths: JobPaths
    attempts: int = 0  # of the run, before this group began to train
    step: int = 0  # newest step of this group; 0: none yet
    supports_checkpointing: bool | None = None  # None: the model is not loaded yet
    eval_rows: int | None = None
    _where: Where = Where.LOADING
    _events: JournalReader = field(init=False)
    _metrics: frozenset[str] = field(init=False)  # parts that earlier groups have written

    def __post_init__(self) -> None:
        self.attempts = count_attempts(self.paths)
        self._events = JournalReader(self.paths.events, skip=DRIVER)
        self._events.pass_over()
        self._metrics = frozenset(part_names(self.paths.metrics))

    def look(self) -> None:
        """Read what the group has written since the last look. Raises StorageError."""
        newest = part_names(self.paths.metrics)[-1:]
        if not self._metrics.issuperset(newest):
            self.step = int(read_part(self.paths.metrics, newest[0])[-1]["step"])
        for one in self._events.new():
            self._take(one["kind"], one["data"])

    def _take(self, kind: str, data: Mapping[str, Any]) -> None:
        if kind == "plan":
            self.supports_checkpointing = bool(data.get("supports_gradient_checkpointing"))
        elif kind == "evaluated":
            self._where = Where.TRAINING
        elif data.get("phase") == "evaluate":
            self._where, self.eval_rows = Where.EVALUATION, data.get("rows")
        elif data.get("phase") in ("best", "export"):
            self._where = Where.EXPORT

    @property
    def where(self) -> Where:
        """The phase that the group is in. A group that begins to train adds a file to `attempts/` and no event."""
        begun = self._where is Where.LOADING and count_attempts(self.paths) > self.attempts
        return Where.TRAINING if begun else self._where


class MemoryRemedy:
    """The remedies of one driver. Call `begin` before each worker group starts, and `look` while it runs."""

    def __init__(self, paths: JobPaths, announce: Announcer) -> None:
        self._paths, self._announce = paths, announce
        self._group: Group | None = None
        self._made: Remedy | None = None  # the newest remedy, until training goes on
        self._ran_out_at = 0.0  # seconds since 1970

    def begin(self) -> None:
        self._group = Group(self._paths)

    def look(self) -> None:
        """After a remedy, announce the first step of the new group."""
        group = self._group
        if group is None or self._made is None:
            return
        with contextlib.suppress(StorageError):  # the next look tries again
            group.look()
            if group.step > 0:
                self._announce_first_step(self._made)

    def _announce_first_step(self, made: Remedy) -> None:
        """Store and announce how long the remedy took, once the new group has trained a step. Raises StorageError."""
        seconds = max(time.time() - self._ran_out_at, 0.0)
        done = made.model_copy(update={"seconds": round(seconds, 1)})
        remedies = (*read_remedies(self._paths)[:-1], done)
        write_remedies(self._paths, remedies)
        self._made = None
        said = f"training goes on {seconds:.1f} s after it ran out of memory. For a new run, {next_time(remedies)}"
        effect = f"training goes on after {seconds:.1f} s"
        self._announce("remedy", said, remedy=REMEDY, effect=effect, seconds=done.seconds, field=done.field)

    def job_after_failure(self, job: Job) -> Job | None:
        """Return the changed job if a rank reported that it ran out of memory; None if none did.

        Raises:
            OutOfMemory: no change is left that could help.
        """
        failures = failures_of(self._paths) if job.spec.remedies.out_of_memory else []
        if not failures or failures[0]["fault"] != Fault.MEMORY:
            return None
        first = failures[0]
        self._ran_out_at = float(first["at"])
        where = Where.UPDATE if first.get("in_update") else None
        return self._changed(job, first["cause"], first["of_host"], int(first["rank"]), where)

    def job_after_kill(self, job: Job, crash: Crash) -> Job:
        """Return the changed job after a worker was killed for memory. Raises OutOfMemory."""
        self._ran_out_at = time.time()
        if not job.spec.remedies.out_of_memory:
            raise OutOfMemory(_said(str(crash), job, self._looked_at_group()), crash.rank)
        return self._changed(job, str(crash), True, crash.rank)

    def _looked_at_group(self) -> Group:
        group = self._group or Group(self._paths)
        group.look()
        return group

    def _changed(self, job: Job, cause: str, of_host: bool, rank: int | None, where: Where | None = None) -> Job:
        """Store and announce the next change, and return the job with it.

        Args:
            where: the part of the run that lacked memory; None: the files of the group tell it.
        """
        group = self._looked_at_group()
        where = where or group.where
        shortage = Shortage(where, of_host, group.eval_rows)
        change = next_change(job.spec, shortage, checkpointing=bool(group.supports_checkpointing))
        earlier = read_remedies(self._paths)
        if change is None:
            tried = format_tried(remedies_in(earlier, where))
            tried = f" These changes did not suffice: {tried}." if tried else ""
            of_device = not of_host or not job.spec.resources.gpus_per_worker
            raise OutOfMemory(f"{_said(cause, job, group)}{tried}{_planned(self._paths) if of_device else ''}", rank)
        self._made = made = self._remedy(job.spec, change, cause, where, group)
        write_remedies(self._paths, (*earlier, made))  # before the act, so that another driver goes on from here
        facts = {name: getattr(made, name) for name in ("where", "rung", "field", "before", "after", "from_step")}
        report_of(made, earlier).tell(self._announce, step=max(group.step, made.from_step), **facts)
        storage.remove_dir(self._paths.failures)
        # The driver gives a run up after several lost groups. This group does not count as one of them.
        begun = count_attempts(self._paths) - group.attempts
        # Workers of the old group that still wait for a rank that has left see the new id, and end.
        driver_id = retake_run(self._paths, job.driver)
        spec = with_change(job.spec, change)
        return replace(job, spec=spec, earlier_attempts=job.earlier_attempts + begun, driver=driver_id)

    def _remedy(self, spec: Spec, change: Change, cause: str, where: Where, group: Group) -> Remedy:
        gpus_per_worker, accelerator_type = worker_kind(spec)
        step = newest_step(self._paths)
        return Remedy(
            at=datetime.datetime.now(datetime.UTC),
            cause=cause,
            action=format_action(spec, with_change(spec, change), change),
            where=where,
            **facts_of(change),
            also=fields_of_batch(spec, change),
            gpus_per_worker=gpus_per_worker,
            accelerator_type=accelerator_type,
            from_step=step,
            steps_again=max(group.step - step, 0),
        )


def report_of(made: Remedy, earlier: Sequence[Remedy]) -> RemedyReport:
    """Describe a change after a lack of memory. `earlier`: the changes before it. Pure."""
    again = f"; {many(made.steps_again, 'step')} computed again" if made.steps_again else ""
    effect = f"the workers start again from step {made.from_step}, with the same global batch and order{again}"
    cause = f"out of memory in {made.where}: {made.cause}"
    return RemedyReport(REMEDY, cause, made.action, effect, next_time((*earlier, made)), made.steps_again)


def format_action(before: Spec, after: Spec, change: Change) -> str:
    """Describe a change with its values, and with the accumulation that follows from a smaller micro-batch."""
    if change.rung is not Rung.MICRO_BATCH:
        return str(change)
    old, new = plan_batching(before), plan_batching(after)
    return f"{change} (accumulation {new.accumulation} instead of {old.accumulation})"


def _said(cause: str, job: Job, group: Group) -> str:
    supports = job.supports_checkpointing and group.supports_checkpointing is not False
    return f"{cause}. {advice(job.spec, checkpointing=supports)}"


def _planned(paths: JobPaths) -> str:
    """Return a sentence with the memory that the run's plan predicted; empty: there is no plan."""
    plan = None
    with contextlib.suppress(StorageError, ValueError):  # a newer release may have written it
        plan = read_plan(paths)
    if plan is None:
        return ""
    room = "" if plan.room_bytes is None else f" of the {gib(plan.room_bytes)} GiB"
    return (
        f" The plan at the start expected {'at most ' * plan.is_bound}{gib(plan.total_bytes)} GiB{room} for a worker."
    )
