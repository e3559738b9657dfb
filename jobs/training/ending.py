"""Turns a worker group's result or its failures into the outcome of the run. Light to import."""

from __future__ import annotations

import datetime
import json

from jobs.run.outcome import Outcome, Status
from jobs.run.paths import JobPaths
from jobs.storage import files as storage
from jobs.storage.journal import Record
from jobs.training.faults import Fault

# Faults that may have caused the others: for example, ranks fail in other ways after one of them ran out of memory.
_CAUSES_FIRST = (Fault.MEMORY, Fault.MACHINE, Fault.STORAGE)


def failures_of(paths: JobPaths) -> list[Record]:
    """Read the failures that ranks reported. Possible causes of other failures come first, then the lowest rank."""
    names = storage.list_names(paths.failures)
    found = [json.loads(storage.read_bytes(storage.join(paths.failures, name))) for name in names]
    return sorted(found, key=lambda failure: (failure["fault"] not in _CAUSES_FIRST, int(failure["rank"])))


def outcome_of(paths: JobPaths, result: Record | None, failures: list[Record]) -> Outcome:
    """Make the run's outcome from the result of rank 0 and the failures that ranks reported."""
    now = datetime.datetime.now(datetime.UTC)
    if failures or result is None or "failure" in result:
        silent = (result or {}).get("failure", "the workers ended without a result")
        first = failures[0] if failures else {"reason": silent, "fault": Fault.PROGRAM}
        broken = [str(failure["node"]) for failure in failures if failure["fault"] == Fault.MACHINE]
        return Outcome(
            status=Status.FAILED,
            reason=first["reason"],
            bad_input=first["fault"] == Fault.INPUT,
            diverged=first["fault"] == Fault.DIVERGENCE,
            out_of_memory=first["fault"] == Fault.MEMORY,
            lost=first["fault"] in (Fault.MACHINE, Fault.STORAGE),
            faulty_nodes=tuple(sorted(set(broken))),
            rank=first.get("rank"),
            ended_at=now,
        )
    stopped = result["stopped"]
    kept = "is kept" if result["kept"] else "could not be written; the one before is kept"
    return Outcome(
        status=Status.INTERRUPTED if stopped else Status.SUCCEEDED,
        reason=f"stopped on request after step {result['step']}, whose checkpoint {kept}" if stopped else None,
        model_path=None if stopped else paths.model,
        ended_at=now,
        **{name: value for name, value in result.items() if name in Outcome.model_fields},
    )
