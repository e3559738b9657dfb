"""The output of `fleetune gc`, and the parsing of ages and sizes."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Final

from jobs.errors import InputError
from jobs.run.progress import duration
from orchestrator.gc.remove import Removed
from orchestrator.gc.values import Bounds, Found, GcPlan, Goes

_AGE = re.compile(r"^([0-9]{1,9}(?:\.[0-9]{1,9})?)(s|m|h|d|w)$")
_AGE_S: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_SIZE = re.compile(r"^([0-9]{1,15}(?:\.[0-9]{1,9})?) ?(?:([KMGTP])(i?))?B$", re.IGNORECASE)
_POWERS: Final = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}
_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB")

OPTIONS: Final = (
    "nothing was removed: that needs a bound. --older-than 30d removes runs that ended before that, --max-size 500GB "
    "the oldest until the rest fits; with --checkpoints-only only their checkpoints go, --keep-last N leaves the "
    "newest runs alone, --prepared lets prepared data go that no run uses; --dry-run shows what would go"
)


def age_s(text: str, option: str = "--older-than") -> float:
    """Parse an age such as `90m`, `12h`, `30d` or `2w`, to seconds. Raises InputError."""
    match = _AGE.match(text.strip().lower())
    if match is None:
        raise InputError(f"{option} {text!r} is not a duration: give a number and s, m, h, d or w, as in 30d")
    return float(match[1]) * _AGE_S[match[2]]


def size_bytes(text: str) -> int:
    """Parse a size such as `500GB` (powers of 1000) or `500GiB` (of 1024), to bytes. Raises InputError."""
    match = _SIZE.match(text.strip())
    if match is None:
        raise InputError(f"--max-size {text!r} is no size: give a number and B, kB, MB, GB, TB or GiB, as in 500GB")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** _POWERS[(match[2] or "").upper()])


def size_words(count: int) -> str:
    """Format a size: `0 B`, `312 kB`, `45.2 MB`, `1.3 TB`."""
    size, power = float(count), 0
    while size >= 999.5 and power < len(_UNITS) - 1:
        size, power = size / 1000, power + 1
    return f"{size:.0f} {_UNITS[power]}" if power < 2 else f"{size:.1f} {_UNITS[power]}"


def age_words(seconds: float) -> str:
    return f"{seconds / 86_400:.0f} d" if seconds >= 2 * 86_400 else duration(max(seconds, 0.0))


def page(plan: GcPlan, found: Found, bounds: Bounds, now_s: float) -> str:
    """Format the plan as a table with totals. It is the same for a dry run; without a bound, the largest come first."""
    rows = [*_run_rows(plan, now_s), *_leftover_rows(plan, found), *_prepared_rows(plan, now_s)]
    if not bounds.any:
        rows.sort(key=lambda row: -row[0])
    shown = [("RUN", "STATUS", "AGE", "SIZE", "CHECKPOINTS", "GOES", "STAYS", "WHY"), *(row for _, row in rows)]
    return "\n".join([*(_columns(shown) if rows else ["no runs"]), *_totals(plan, found)])


Row = tuple[int, tuple[str, ...]]  # (size, cells)


def _run_rows(plan: GcPlan, now_s: float) -> list[Row]:
    goes = {Goes.NOTHING: "", Goes.CHECKPOINTS: "checkpoints", Goes.RUN: "all of it"}
    return [
        (
            run.size,
            (
                run.name,
                run.status,
                age_words(now_s - run.since_s),
                size_words(run.size),
                size_words(run.checkpoint_size) if run.checkpoint_size else "",
                goes[verdict.goes],
                size_words(run.size - verdict.freed),
                verdict.why,
            ),
        )
        for verdict in plan.runs
        for run in (verdict.run,)
    ]


def _leftover_rows(plan: GcPlan, found: Found) -> list[Row]:
    goes = "the rest of it" if plan.leftovers else ""
    return [
        (left.size, (left.name, "half removed", "", size_words(left.size), "", goes, size_words(stays), ""))
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
                age_words(now_s - one.touched_s),
                size_words(one.size),
                "",
                "all of it" if verdict.goes else "",
                size_words(one.size - verdict.freed),
                verdict.why,
            ),
        )
        for verdict in plan.prepared
        for one in (verdict.prepared,)
    ]


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _totals(plan: GcPlan, found: Found) -> list[str]:
    checkpoints = sum(run.checkpoint_size for run in found.runs)
    prepared = sum(one.size for one in found.prepared)
    lines = [
        f"together {size_words(plan.size)}: {len(found.runs)} runs, of whose size {size_words(checkpoints)} are "
        f"checkpoints, and {size_words(prepared)} of prepared data; {size_words(plan.freed)} go, "
        f"{size_words(plan.left)} stay"
    ]
    if found.other_size:
        lines.append(f"not counted, and never touched: {size_words(found.other_size)} of other files")
    if plan.over:
        lines.append(f"still {size_words(plan.over)} more than asked for: what is left stays for the reasons above")
    return lines


def ending(removed: Sequence[Removed]) -> str:
    """Say what was removed, and what could not be."""
    problems = [f"could not remove {one.name}: {one.problem}" for one in removed if one.problem]
    done = [one for one in removed if not one.problem]
    return "\n".join([*problems, f"removed {size_words(sum(one.freed for one in done))} in {len(done)} places"])


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
