"""The output of `fleetune gc`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from cluster.text import byte_size, long_duration, many
from orchestrator.gc.remove import Removed
from orchestrator.gc.values import Bounds, Found, GcPlan, Goes
from orchestrator.pages.tables import columns

OPTIONS: Final = (
    "nothing was removed. To remove runs that ended more than 30 days ago: --older-than 30d. To remove the oldest "
    "until the rest fits: --max-size 500GB. --checkpoints-only removes only checkpoints, --keep-last N keeps the newest"
    " runs, --prepared also removes prepared data that no run uses, and --dry-run only prints what would be removed"
)


def page(plan: GcPlan, found: Found, bounds: Bounds, now_s: float) -> str:
    """Format the plan as a table with totals. It is the same for a dry run; without a bound, the largest come first."""
    rows = [*_run_rows(plan, now_s), *_leftover_rows(plan, found), *_prepared_rows(plan, now_s)]
    if not bounds.any:
        rows.sort(key=lambda row: -row[0])
    head = ("RUN", "STATUS", "AGE", "SIZE", "CHECKPOINTS", "GOES", "STAYS", "WHY")
    table = columns(head, [row for _, row in rows]) if rows else "no runs"
    return "\n".join([table, *_totals(plan, found)])


Row = tuple[int, tuple[str, ...]]  # (size, cells)


def _run_rows(plan: GcPlan, now_s: float) -> list[Row]:
    goes = {Goes.NOTHING: "", Goes.CHECKPOINTS: "checkpoints", Goes.RUN: "all of it"}
    return [
        (
            run.size,
            (
                run.name,
                run.status,
                long_duration(now_s - run.since_s),
                byte_size(run.size),
                byte_size(run.checkpoint_size) if run.checkpoint_size else "",
                goes[verdict.goes],
                byte_size(run.size - verdict.freed),
                verdict.why,
            ),
        )
        for verdict in plan.runs
        for run in (verdict.run,)
    ]


def _leftover_rows(plan: GcPlan, found: Found) -> list[Row]:
    goes = "the rest" if plan.leftovers else ""
    return [
        (left.size, (left.name, "half removed", "", byte_size(left.size), "", goes, byte_size(stays), ""))
        for left in found.leftovers
        for stays in (0 if goes else left.size,)
    ]


def _prepared_rows(plan: GcPlan, now_s: float) -> list[Row]:
    return [
        (
            one.size,
            (
                f"prepared/{one.name}",
                "",
                long_duration(now_s - one.touched_s),
                byte_size(one.size),
                "",
                "all of it" if verdict.goes else "",
                byte_size(one.size - verdict.freed),
                verdict.why,
            ),
        )
        for verdict in plan.prepared
        for one in (verdict.prepared,)
    ]


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
        lines.append(f"the rest exceeds --max-size by {byte_size(plan.over)}, and is kept for the reasons above")
    return lines


def ending(removed: Sequence[Removed]) -> str:
    """Say what was removed, and what could not be removed."""
    problems = [f"could not remove {one.name}: {one.problem}" for one in removed if one.problem]
    done = [one for one in removed if not one.problem]
    return "\n".join([*problems, f"removed {byte_size(sum(one.freed for one in done))} in {len(done)} places"])


def as_json(plan: GcPlan, found: Found, storage_path: str, removed: Sequence[Removed] | None) -> str:
    """Format the result for programs. `removed`: None for a dry run, or without a bound."""
    problems = {one.name: one.problem for one in removed or () if one.problem}
    facts: dict[str, Any] = {
        "storage": storage_path,
        "dry_run": removed is None,
        "size": plan.size,
        "goes": plan.freed,
        "stays": plan.left,
        "over": plan.over,
        "other_size": found.other_size,
        "runs": [
            {
                "name": verdict.run.name,
                "status": verdict.run.status,
                "since_s": verdict.run.since_s,
                "size": verdict.run.size,
                "checkpoint_size": verdict.run.checkpoint_size,
                "goes": verdict.goes,
                "freed": verdict.freed,
                "why": verdict.why,
            }
            for verdict in plan.runs
        ],
        "prepared": [
            {
                "name": verdict.prepared.name,
                "touched_s": verdict.prepared.touched_s,
                "size": verdict.prepared.size,
                "goes": verdict.goes,
                "why": verdict.why,
            }
            for verdict in plan.prepared
        ],
        "half_removed": [{"name": left.name, "size": left.size} for left in found.leftovers],
        "removed": None if removed is None else sum(one.freed for one in removed),
        "problems": problems,
    }
    return json.dumps(facts)
