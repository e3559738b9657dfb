"""Compare a run's estimates of its remaining time with the time that was left.

    python -m bench.eta RUN...                    # of runs that exist
    python -m bench.eta --train FOLDER [NAME...]  # of one run for each of CASES, trained now

For each run, one JSON line: after how many steps, and the error of the estimate as a share of the time that the later
steps, their evaluations and the time between them took. The last line counts the runs whose error after three steps is
at most 10 %.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
from typing import Any, Final

from bench import methods, models
from bench.results import tell
from jobs.run.find import run_names
from jobs.run.outcome import event
from jobs.run.paths import JobPaths
from jobs.run.progress import Pace
from jobs.storage.journal import read_journal

AFTER: Final = (3, 4, 5, 6, 8, 10, 12, 16, 20, 30, 50, 100, 200)
WITHIN: Final = 0.1
_LATER = 5  # least later steps
_TEXT: Final[dict[str, Any]] = {"model": "smollm2", "data": {"seq_len": 128}, "rows": 4, "workers": 2, "steps": 24}
_REVIEWS: Final[dict[str, Any]] = {"model": "minilm", "data": {"seq_len": 64}, "rows": 16, "workers": 2, "steps": 80}
CASES: Final[dict[str, dict[str, Any]]] = {
    "reviews": _REVIEWS,
    "reviews-lora": _REVIEWS | {"method": "lora"},
    "dialogues": _TEXT,
    "dialogues-lora": _TEXT | {"method": "lora"},
    "dialogues-prompt": _TEXT | {"method": "prompt"},
    "dialogues-unpacked": _TEXT | {"data": {"seq_len": 128, "packing": False}, "rows": 8, "workers": 1},
    "slice": _TEXT | {"model": "slice", "data": {"seq_len": 256}, "rows": 8, "workers": 1},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="RUN or NAME")
    parser.add_argument("--train", type=pathlib.Path, metavar="FOLDER")
    options = parser.parse_args()
    if options.train is None:
        found = {run: errors(run) for run in options.names}
    else:
        found = {name: errors(trained(options.train, name)) for name in options.names or CASES}
    for name, by_step in found.items():
        tell({"run": name, "errors": {step: round(error, 3) for step, error in by_step.items()}})
    early = [by_step[3] for by_step in found.values() if 3 in by_step]
    tell({"after": 3, "runs": len(early), "within_10_percent": sum(abs(error) <= WITHIN for error in early)})
    return 0


def trained(folder: pathlib.Path, name: str) -> str:
    """Train one of the cases, and return the run's root."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.json"
    file.write_text(json.dumps(spec_of(folder, name, CASES[name]), indent=1))
    environment = {**os.environ, "PYTHONPATH": str(methods.ROOT)}
    subprocess.run(
        [sys.executable, "-m", "orchestrator", "run", str(file)], env=environment, check=True, stdout=sys.stderr
    )
    runs = str(folder / "runs")
    return JobPaths.of(runs, max(one for one in run_names(runs) if one.startswith(f"{name}-2"))).root


def spec_of(folder: pathlib.Path, name: str, case: dict[str, Any]) -> dict[str, Any]:
    if case["model"] == "minilm":
        base = methods.spec_of(case["steps"])
    else:
        model = models.smollm2() if case["model"] == "smollm2" else models.smollm2_slice(4)
        source = {"train": str(models.dialogues()), "format": "chat", "eval_fraction": 0.03}
        base = {"model": {"path": str(model), "task": "causal-lm"}, "data": source}
    return base | {
        "name": name,
        "method": case.get("method", "full"),
        "data": base["data"] | case["data"],
        "train": {
            "max_steps": case["steps"],
            "warmup_ratio": 0.1,
            "learning_rate": 1e-4,
            "global_batch_size": case["rows"],
            "per_device_train_batch_size": case["rows"] // case["workers"],
        },
        "eval": {"eval_steps": case["steps"] // 3},
        "resources": {"num_workers": case["workers"], "gpus_per_worker": 0},
        "storage_path": str(folder / "runs"),
    }


def errors(root: str) -> dict[int, float]:
    """Return the relative error of the remaining time, by the number of steps done."""
    paths, pace, found = JobPaths(root), Pace(), dict[int, float]()
    events = list(read_journal(paths.events))
    plan = next((one for one in events if one["kind"] == "plan" and "total_steps" in one["data"]), None)
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
    sys.exit(main())
