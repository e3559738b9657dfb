"""Confirm on real trainings what `bench/replay.py` finds on recorded curves.

    python -m bench.livesearch minilm [--seeds 42 43 44 45 46] [--runs 3.2]

Each search is a whole sweep by `auto`. Its seed is that of its proposals and of its trainings, and none of the recorded
curves has it. Its prior is off by up to a factor of three from the middle of the recorded rates. Regret is that of
`bench/replay.py`: the values that the sweep has chosen are looked up in the table of recorded curves.
`share_of_grid_tokens` counts the tokens of training, cool-downs, the probe and all evaluations, against a 5x5 grid of
plain runs with their evaluations.

Lines for people go to stderr, one JSON object for each search and one for all to stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.curves import DATA, TASKS, sweep_of
from bench.replay import GRID, MIDDLE, PRIOR_OFF, Table, chosen
from bench.results import other_output_to_stderr, tell
from jobs.run.progress import PlainProgress
from jobs.search.rules.prior import with_prior
from jobs.search.trial import LEDGER
from jobs.search.trials import Trials
from jobs.storage import files as storage
from jobs.storage.journal import read_journal
from jobs.sweep import run_sweep


def main() -> int:
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=sorted(TASKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44, 45, 46])
    parser.add_argument("--runs", type=float, default=3.2, help="budget of a search")
    options = parser.parse_args()
    lines = (DATA / f"{options.task}.jsonl").read_text().splitlines()
    table = Table(options.task, [json.loads(line) for line in lines])
    found = []
    for seed in options.seeds:
        prior = float(MIDDLE * PRIOR_OFF ** np.random.default_rng(seed).uniform(-1, 1))
        with tempfile.TemporaryDirectory(prefix="fleetune-live-") as folder, other_output_to_stderr():
            found.append(searched(table, options.task, Path(folder), seed, prior, options.runs))
        tell(found[-1])
    allowed = table.allowed_regret
    regrets = [one["regret"] for one in found]
    summary = {
        "task": options.task,
        "searches": len(found),
        "allowed_regret": round(allowed, 5),
        "within": sum(regret <= allowed for regret in regrets),
        "median_regret": statistics.median(regrets),
        "share_of_grid_tokens": max(one["share_of_grid_tokens"] for one in found),
    }
    tell(summary)
    return 0


def searched(table: Table, task: str, folder: Path, seed: int, prior: float, runs: float) -> dict[str, Any]:
    """Search once, and look up what came of it."""
    rates = {"min": prior / 10, "max": prior * 10, "log": True}
    space = {"learning_rate": rates, "warmup_ratio": {"min": 0.0, "max": 0.2}}
    more = {"budget": {"runs": runs}, "prior": {"learning_rate": prior}, "rungs": None, "seed": seed}
    sweep, _ = with_prior(sweep_of(task, folder, seed, space=space, **more))
    began_s = time.monotonic()
    outcome = run_sweep(sweep, progress=PlainProgress(sys.stderr))
    assert outcome.reason is None, outcome.reason
    (root,) = Path(sweep.base.storage_path).glob(f"{sweep.name}-*")
    known = Trials(sweep, str(root))
    values = chosen(known)
    at = values["learning_rate"], values["warmup_ratio"]
    answers = [record["answer"] for record in read_journal(storage.join(str(root), LEDGER)) if "answer" in record]
    scored = 1 + sum(bool(answer["metrics"] or answer["cooled"]) for answer in answers)
    grid = GRID * (table.run_tokens + 2 * table.evaluation_tokens)
    return {
        "seed": seed,
        "prior": float(f"{prior:.3g}"),
        "learning_rate": float(f"{at[0]:.3g}"),
        "warmup_ratio": round(at[1], 3),
        "trials": len(known.trials),
        "compared_later": known.is_later,
        "loss": known.ranked()[0].score,
        "regret": round(table.quality(*at) / table.reference[0] - 1, 5),
        "share_of_grid_tokens": round((known.tokens + scored * table.evaluation_tokens) / grid, 4),
        "seconds": round(time.monotonic() - began_s, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
