"""Compare a run's estimates of its remaining time with the time that was left: `python -m bench.eta RUN...`.

For each run, one JSON line: after how many steps, and the error of the estimate as a share of the time that the later
steps, their evaluations and the time between them took.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from jobs.run.outcome import event
from jobs.run.paths import JobPaths
from jobs.run.progress import Pace
from jobs.storage.journal import read_journal

AFTER = (3, 4, 5, 6, 8, 10, 12, 16, 20, 30, 50, 100, 200)
_LATER = 5  # least later steps


def errors(root: str) -> dict[int, float]:
    """Return the relative error of the remaining time, by the number of steps done."""
    paths, pace, found = JobPaths(root), Pace(), dict[int, float]()
    events = list(read_journal(paths.events))
    plan = next((one for one in events if one["kind"] == "plan"), None)
    if plan is None:
        sys.exit(f"{root}: no training has begun there. Give the directory of a run")
    before = [one for one in events if one["kind"] == "evaluated" and one["data"].get("step") == 0]
    for one in (plan, *before):
        pace.event(event(one["kind"], one["message"], **one["data"]))
    steps = list(read_journal(paths.metrics))
    for record in steps[:-_LATER]:
        left_s = pace.eta_s(record)
        if record["step"] in AFTER and left_s is not None:
            found[record["step"]] = left_s / (_end(steps[-1]) - _end(record)) - 1
    return found


def _end(record: dict[str, Any]) -> float:
    """Return the time at which a step and its evaluation ended, in seconds since 1970."""
    return float(record["at"]) + float(record.get("evaluation_s", 0.0))


if __name__ == "__main__":
    for run in sys.argv[1:]:
        print(json.dumps({"run": run, "errors": {step: round(error, 3) for step, error in errors(run).items()}}))
