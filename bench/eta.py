"""Compare a run's estimates of its remaining time with what its later steps took: `python -m bench.eta RUN...`.

For each run, one JSON line: after how many steps, and the error of the estimated time of a step, as a share of the mean
time of all later steps (with the time between them, without evaluations).
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
    """Return the relative error of the estimated time of a step, by the number of steps done."""
    paths, pace, found = JobPaths(root), Pace(), dict[int, float]()
    plan = next((one for one in read_journal(paths.events) if one["kind"] == "plan"), None)
    if plan is None:
        sys.exit(f"{root}: no training has begun there. Give the directory of a run")
    pace.event(event("plan", plan["message"], **plan["data"]))
    steps: list[dict[str, Any]] = [
        {name: value for name, value in record.items() if name != "eval_time_s"} | {"eval_s": record.get("eval_time_s")}
        for record in read_journal(paths.metrics)
    ]
    last = steps[-1]
    for place, record in enumerate(steps[:-_LATER]):
        left_s = pace.eta_s(record)
        if record["step"] in AFTER and left_s is not None and pace.total is not None:
            evaluations_s = sum(one["eval_s"] or 0.0 for one in steps[place:-1])
            later_s = (last["at"] - record["at"] - evaluations_s) / (last["step"] - record["step"])
            found[record["step"]] = left_s / (pace.total - record["step"]) / later_s - 1
    return found


if __name__ == "__main__":
    for run in sys.argv[1:]:
        print(json.dumps({"run": run, "errors": {step: round(error, 3) for step, error in errors(run).items()}}))
