"""The output of `fleetune gc`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from cluster.text import byte_size, long_duration, many
from orchestrator.gc.remove import Removed
from orchestrator.gc.values import Bounds, Found, GcPlan, PreparedVerdict, RunVerdict, ToRemove
from orchestrator.pages.tables import columns

OPTIONS: Final = (
    "nothing was removed. To remove runs that ended more than 30 days ago: --older-than 30d. To remove the oldest "
    "until the rest fits: --max-size 500GB. To only print what would be removed: --dry-run"
)


def page(plan: GcPlan, found: Found, bounds: Bounds, now_s: float) -> str:
    """Format the plan as a table with totals. It is the same for a dry run; without a bound, the largest come first."""
    rows = [_run_row(verdict, now_s) for verdict in plan.runs]
    going = "the rest" if plan.leftovers else ""
    rows += [
        _row(left.name, "half removed", "", left.size, "", going, left.size if going else 0) for left in found.leftovers
    ]
    rows += [_prepared_row(verdict, now_s) for verdict in plan.prepared]
    if not bounds.any:
        rows.sort(key=lambda row: -row[0])
    head = ("RUN", "STATUS", "AGE", "SIZE", "CHECKPOINTS", "REMOVE", "KEEP", "WHY")
    table = columns(head, [row for _, row in rows]) if rows else "no runs"
    return "\n".join([table, *_totals(plan, found)])


Row = tuple[int, tuple[str, ...]]  # (size, cells)


def _row(name: str, status: str, age: str, size: int, checkpoints: str, goes: str, freed: int, why: str = "") -> Row:
    return size, (name, status, age, byte_size(size), checkpoints, goes, byte_size(size - freed), why)


def _run_row(verdict: RunVerdict, now_s: float) -> Row:
    run = verdict.run
    goes = {ToRemove.NOTHING: "", ToRemove.CHECKPOINTS: "checkpoints", ToRemove.RUN: "all of it"}[verdict.to_remove]
    checkpoints = byte_size(run.checkpoint_size) if run.checkpoint_size else ""
    age = long_duration(now_s - run.since_s)
    return _row(run.name, run.status, age, run.size, checkpoints, goes, verdict.freed, verdict.why)


def _prepared_row(verdict: PreparedVerdict, now_s: float) -> Row:
    one, goes = verdict.prepared, "all of it" if verdict.to_remove else ""
    age = long_duration(now_s - one.touched_s)
    return _row(f"prepared/{one.name}", "", age, one.size, "", goes, verdict.freed, verdict.why)


def _totals(plan: GcPlan, found: Found) -> list[str]:
    checkpoints = sum(run.checkpoint_size for run in found.runs)
    prepared = sum(one.size for one in found.prepared)
    lines = [
        f"total {byte_size(plan.size)}: {many(len(found.runs), 'run')} ({byte_size(checkpoints)} are checkpoints) "
        f"and {byte_size(prepared)} of prepared data; to remove: {byte_size(plan.freed)}; "
        f"to keep: {byte_size(plan.left)}"
    ]
    if found.other_size:
        lines.append(f"not counted and never removed: {byte_size(found.other_size)} of other files")
    if plan.over:
        lines.append(f"what is kept exceeds --max-size by {byte_size(plan.over)}, for the reasons above")
    return lines


def ending(removed: Sequence[Removed]) -> str:
    """Say what was removed, and what could not be removed."""
    problems = [f"could not remove {one.name}: {one.problem}" for one in removed if one.problem]
    done = [one for one in removed if not one.problem]
    return "\n".join([*problems, f"removed {byte_size(sum(one.freed for one in done))} in {many(len(done), 'place')}"])


def as_json(plan: GcPlan, found: Found, storage_path: str, removed: Sequence[Removed] | None) -> str:
    """Format the result for programs. `removed`: None for a dry run, or without a bound."""
    facts: dict[str, Any] = {
        "storage": storage_path,
        "dry_run": removed is None,
        "size": plan.size,
        "goes": plan.freed,
        "stays": plan.left,
        "over": plan.over,
        "other_size": found.other_size,
        "runs": [
            {name: getattr(verdict.run, name) for name in ("name", "status", "since_s", "size", "checkpoint_size")}
            | {"goes": verdict.to_remove, "freed": verdict.freed, "why": verdict.why}
            for verdict in plan.runs
        ],
        "prepared": [
            {name: getattr(verdict.prepared, name) for name in ("name", "touched_s", "size")}
            | {"goes": verdict.to_remove, "why": verdict.why}
            for verdict in plan.prepared
        ],
        "half_removed": [{"name": left.name, "size": left.size} for left in found.leftovers],
        "removed": None if removed is None else sum(one.freed for one in removed),
        "problems": {one.name: one.problem for one in removed or () if one.problem},
    }
    return json.dumps(facts)
