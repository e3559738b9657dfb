"""Opens a run's directory with its spec, writes its outcome however it ends, and reopens it for a resume."""

from __future__ import annotations

import contextlib
import datetime
import json
import re
import shlex
import traceback
from collections.abc import Callable
from typing import Any

from cluster.errors import (
    Diverged,
    FleetuneError,
    InputError,
    Interrupted,
    MachinesFailed,
    OutOfMemory,
    RunFailed,
    RunTaken,
    StorageError,
    StorageOutage,
)
from cluster.text import many
from jobs.run.attempts import newest_start
from jobs.run.events import Announcer
from jobs.run.outcome import Outcome, Status, write_outcome
from jobs.run.paths import JobPaths, new_run_name
from jobs.run.remedies import MACHINE, RemedyReport, Trouble, read_remedies, trouble_rows, troubles_of
from jobs.run.run_plan import FIRST_STEPS, PlanCheck, check_of, read_plan
from jobs.spec.compare import CompareSpec
from jobs.spec.finetune import Spec
from jobs.spec.load import dump_spec
from jobs.spec.sweep import SweepSpec
from jobs.storage import files as storage
from jobs.storage.journal import Record, part_names, read_journal, read_part

_UNREADABLE = (StorageError, ValueError, LookupError, TypeError)  # a newer release wrote the file, or it is damaged
_MOST_PARTS = 200  # of the metrics, that a comparison with the plan reads


def open_run(spec: Spec | SweepSpec | CompareSpec, root: str | None = None) -> JobPaths:
    """Make the directory of a run, sweep or comparison, with the spec in it; under a new name if `root` is None."""
    if root is None:
        job = spec if isinstance(spec, Spec) else spec.base
        paths = JobPaths.of(job.storage_path, new_run_name(spec.name, datetime.datetime.now(datetime.UTC)))
    else:
        paths = JobPaths(root)
    storage.write_bytes(paths.spec, dump_spec(spec))
    return paths


def reopen_run(run_root: str, spec: Spec | SweepSpec | CompareSpec) -> JobPaths:
    """Prepare the directory of an earlier run, sweep or comparison for a resume.

    Metrics, events, logs and checkpoints stay. Spec, manifest and outcome of the attempt that ended are kept under its
    number. Requests to that attempt, and its failures, are removed.
    """
    paths = JobPaths(run_root)
    number = 1 + max(
        (int(match[1]) for name in storage.list_names(run_root) if (match := _EARLIER.match(name))), default=0
    )
    kept = (
        (paths.spec, paths.earlier("spec", number)),
        (paths.manifest, paths.earlier("manifest", number)),
        (paths.outcome, paths.earlier("outcome", number)),
    )
    for newest, earlier in kept:
        if storage.exists(newest):
            storage.write_bytes(earlier, storage.read_bytes(newest))
    storage.write_bytes(paths.spec, dump_spec(spec))
    storage.remove_dir(paths.failures)
    for gone in (paths.stop_request, paths.save_request, paths.outcome):
        storage.remove_file(gone)
    return paths


_EARLIER = re.compile(r"^(?:spec|manifest|outcome)-(\d+)\.json$")


def concluded(
    paths: JobPaths, drive: Callable[[], Outcome], announce: Announcer, *, starts_elsewhere: bool = True
) -> Outcome:
    """Call `drive` and write its outcome. An error becomes the outcome, and its traceback goes to the log.

    Args:
        starts_elsewhere: `remedies.machine` of the spec: a queue may start another attempt if the machines have failed.

    Raises:
        RunTaken: the outcome is another driver's to write.
    """
    before = _newest_part(paths)
    try:
        outcome = drive()
    except RunTaken:
        raise
    except Exception as error:
        traceback.print_exc()
        is_of_storage = isinstance(error, StorageError) and not isinstance(error, StorageOutage)
        has_trained = _newest_part(paths) not in (None, before)
        outcome = outcome_of_error(failure_of_storage(error) if is_of_storage and has_trained else error)
    except KeyboardInterrupt as error:
        outcome = outcome_of_error(Interrupted(str(error) or "stopped on request"))
    if outcome.status is not Status.SUCCEEDED and outcome.step == 0:
        outcome = outcome.model_copy(update=last_record(paths))
    if outcome.lost:
        action, effect = "the attempt ends", "a queue starts another one; by hand, use --resume"
        cause = outcome.reason or "a machine or the storage has failed"
        if not starts_elsewhere:
            effect = "no other one is started, because remedies.machine is false"
            outcome = outcome.model_copy(update={"lost": False, "reason": f"{cause}. remedies.machine is false"})
        RemedyReport(MACHINE, cause, action, effect).tell(announce, f"{action}: {effect}", step=outcome.step)
    outcome = outcome.model_copy(update=_stored_facts(paths, announce))
    write_outcome(paths, outcome)
    return outcome


def _newest_part(paths: JobPaths) -> str | None:
    """Return the name of the newest part of the metrics; None: there is none, or it cannot be read."""
    with contextlib.suppress(StorageError):
        return next(reversed(part_names(paths.metrics)), None)
    return None


def failure_of_storage(error: Exception) -> RunFailed:
    """Make the error for a storage that refuses a file after training has begun. The input is no mistake then."""
    return RunFailed(f"{error}. Free or repair the storage, then resume the run")


def _stored_facts(paths: JobPaths, announce: Announcer) -> dict[str, Any]:
    """Return what the run's files add to its outcome, by fields. What cannot be read is left out."""

    def troubles() -> tuple[Trouble, ...]:
        announce.flush()
        return troubles_of(read_journal(paths.events))

    readers: dict[str, Callable[[], object]] = {
        "remedies": lambda: read_remedies(paths),
        "plan": lambda: read_check(paths),
        "troubles": troubles,
    }
    facts: dict[str, Any] = {}
    for field, read in readers.items():
        with contextlib.suppress(*_UNREADABLE):
            facts[field] = read()
    return facts


def last_record(paths: JobPaths) -> dict[str, Any]:
    """Return the step and metrics that a failed run had reached, as fields of an outcome."""
    try:
        written, events = read_journal(paths.metrics), read_journal(paths.events)
    except StorageError:
        return {}
    evaluated = [event["data"] for event in events if event["kind"] == "evaluated"]
    before: dict[str, float] = next((one["metrics"] for one in reversed(evaluated) if one["step"] == 0), {})
    if not written:
        return {"metrics_before": before}
    newest = written[-1]  # an earlier attempt may have reached a later step, but that work is lost
    steps = [record for record in one_of_each_step(written) if record["step"] <= newest["step"]]
    evaluations = (record for record in reversed(steps) if any(name.startswith("eval_") for name in record))
    last: Record = next(evaluations, {})
    known = {name: value for name, value in last.items() if name.startswith("eval_")}
    return {
        "step": newest["step"],
        "metrics": {**known, "loss": newest["loss"]},
        "evaluated_step": last.get("step"),
        "metrics_before": before,
    }


def read_steps(paths: JobPaths) -> list[Record]:
    """Read the metrics: one record for each step, in the order of steps. Raises StorageError.

    An attempt that goes back to a checkpoint repeats some steps; the record that was written last counts.
    """
    return one_of_each_step(read_journal(paths.metrics))


def read_check(paths: JobPaths) -> PlanCheck | None:
    """Compare the plan of a run with the newest steps of its newest attempt; None: it has no plan.

    Raises:
        StorageError: the run cannot be read.
    """
    plan = read_plan(paths)
    if plan is None:
        return None
    start, parts = newest_start(paths), part_names(paths.metrics)[-_MOST_PARTS:]
    records = [record for part in parts for record in read_part(paths.metrics, part)]
    steps = [step for step in one_of_each_step(records) if step["step"] > start]
    return check_of(plan, steps if steps and steps[0]["step"] == start + 1 else [{}] * FIRST_STEPS + steps)


def known_check(paths: JobPaths) -> PlanCheck | None:
    """Return the same; also None if the run cannot be read."""
    with contextlib.suppress(*_UNREADABLE):
        return read_check(paths)
    return None


def logged_loss(paths: JobPaths, step: int, micro_batch: int, chain: str, device: str) -> float | None:
    """Return the loss that was last logged for `step`, the next step of a run; None if no attempt reached it.

    A loss that was computed with another micro-batch, on another kind of device or on other rows is not returned:
    dropout masks or samples were others. Reads backwards only as far as the step can be, so the length of the run does
    not matter. Records of the step that are older than one of an earlier step are ignored: the run has gone back since
    then. Raises StorageError.

    Args:
        chain: digest chain after the step, in hexadecimal digits.
        device: kind of all ranks' devices.
    """
    alike = {"micro_batch": micro_batch, "chain": chain, "device": device}
    for name in reversed(part_names(paths.metrics)):
        records = read_part(paths.metrics, name)
        for record in reversed(records):
            if record["step"] <= step:
                same = all(record.get(name, value) == value for name, value in alike.items())  # older ones lack some
                return float(record["loss"]) if record["step"] == step and same else None
    return None


def one_of_each_step(records: list[Record]) -> list[Record]:
    """Keep the last record of each step, in the order of steps."""
    newest = {record["step"]: record for record in records}
    return [newest[step] for step in sorted(newest)]


def outcome_of_error(error: Exception) -> Outcome:
    now = datetime.datetime.now(datetime.UTC)
    if isinstance(error, Interrupted):
        return Outcome(status=Status.INTERRUPTED, reason=str(error), ended_at=now)
    known = isinstance(error, FleetuneError)
    reason = str(error) if known else f"{type(error).__name__}: {error}"
    return Outcome(
        status=Status.FAILED,
        reason=reason,
        bad_input=isinstance(error, InputError) and not isinstance(error, StorageOutage),
        diverged=isinstance(error, Diverged),
        lost=isinstance(error, MachinesFailed | StorageOutage),
        out_of_memory=isinstance(error, OutOfMemory),
        is_final=isinstance(error, RunFailed) and error.is_final,
        rank=error.rank if isinstance(error, RunFailed) else None,
        ended_at=now,
    )


def ending_of(paths: JobPaths, outcome: Outcome, search_succeeded: str | None = None, *, is_part: bool = False) -> str:
    """Describe the end of a run, sweep or comparison in its last lines of output.

    Args:
        search_succeeded: text about a sweep or comparison that has succeeded; None for a run.
        is_part: a queue or a comparison decides how the run goes on, so that no command to resume it is printed.
    """
    lines = [f"{name}: {said}" for name, said in trouble_rows(outcome.troubles)]
    if outcome.status is Status.SUCCEEDED:
        said = f"succeeded after {many(outcome.step, 'step')}; the model is in {outcome.model_path}"
        return "\n".join([search_succeeded or said, *lines])
    how = None if is_part else how_to_go_on(paths, outcome, is_search=search_succeeded is not None)
    lines = [f"{outcome.status}: {outcome.reason}", *lines, f"logs: {paths.logs}"]
    return "\n".join([*lines, f"resume: {how}"] if how else lines)


def how_to_go_on(paths: JobPaths, outcome: Outcome | None, *, is_search: bool = False) -> str | None:
    """Return the command that resumes a run; None if it succeeded, would fail again, or has nothing left to do.

    A run that failed is resumed only from a checkpoint. Bad input, such as a metric that fails after hours, is then
    corrected first.

    Args:
        outcome: None for a run that was killed.
        is_search: the run is a sweep or a comparison.
    """
    if outcome is not None and (outcome.status is Status.SUCCEEDED or outcome.resume_is_useless):
        return None
    if outcome is None or outcome.lost or outcome.status is Status.INTERRUPTED or (is_search and not outcome.bad_input):
        return resume_command(paths)  # without a checkpoint, a run begins again
    from jobs.run.checkpoints import committed_steps  # imports numpy, which the command line must not wait for

    try:
        return resume_command(paths) if committed_steps(paths) else None
    except StorageError:
        return None


def resume_command(paths: JobPaths) -> str:
    return f"fleetune run --resume {shlex.quote(paths.root)}"


def write_manifest(paths: JobPaths, facts: dict[str, Any]) -> None:
    """Write the facts about a run (see `JobPaths.manifest`)."""
    storage.write_bytes(paths.manifest, json.dumps(facts, indent=1).encode())
