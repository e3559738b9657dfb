"""The record of a run: opened with its spec, closed with its outcome, whatever happens in between."""

from __future__ import annotations

import datetime
import json
import traceback
from collections.abc import Callable
from typing import Any

from jobs import storage
from jobs.errors import FleetuneError, InputError, Interrupted, StorageError
from jobs.journal import read_journal
from jobs.load import dump_spec
from jobs.outcome import Outcome, Status, write_outcome
from jobs.paths import JobPaths, new_run_name
from jobs.spec import Spec


def open_run(spec: Spec) -> JobPaths:
    """Make the run's directory, under a new name, with the resolved spec in it."""
    paths = JobPaths.of(spec.storage_path, new_run_name(spec.name, datetime.datetime.now(datetime.UTC)))
    storage.write_bytes(paths.spec, dump_spec(spec))
    return paths


def concluded(paths: JobPaths, drive: Callable[[], Outcome]) -> Outcome:
    """Call `drive` and write what came of it; an error becomes the outcome, its traceback goes to the log."""
    try:
        outcome = drive()
    except Exception as error:
        traceback.print_exc()
        outcome = outcome_of_error(paths, error)
    except KeyboardInterrupt:
        outcome = outcome_of_error(paths, Interrupted("interrupted"))
    if outcome.status is not Status.SUCCEEDED and outcome.step == 0:
        outcome = outcome.model_copy(update=last_record(paths))
    write_outcome(paths, outcome)
    return outcome


def last_record(paths: JobPaths) -> dict[str, Any]:
    """Step and metrics that a run had reached when it failed, as fields of an outcome."""
    try:
        records = read_journal(paths.metrics)
    except StorageError:
        return {}
    if not records:
        return {}
    known = {name: value for record in records for name, value in record.items() if name.startswith("eval_")}
    return {"step": records[-1]["step"], "metrics": {**known, "loss": records[-1]["loss"]}}


def outcome_of_error(paths: JobPaths, error: Exception) -> Outcome:
    now = datetime.datetime.now(datetime.UTC)
    if isinstance(error, Interrupted):
        return Outcome(status=Status.INTERRUPTED, reason=str(error), ended_at=now)
    known = isinstance(error, FleetuneError)
    reason = str(error) if known else f"{type(error).__name__}: {error}"
    return Outcome(status=Status.FAILED, reason=reason, bad_input=isinstance(error, InputError), ended_at=now)


def ending_of(paths: JobPaths, outcome: Outcome) -> str:
    """The last line about a run."""
    if outcome.status is Status.SUCCEEDED:
        return f"succeeded after {outcome.step} steps; the model is in {outcome.model_path}"
    return f"{outcome.status}: {outcome.reason}\nlogs: {paths.logs}"


def write_manifest(paths: JobPaths, facts: dict[str, Any]) -> None:
    """What ran where (see `JobPaths.manifest`)."""
    storage.write_bytes(paths.manifest, json.dumps(facts, indent=1).encode())
