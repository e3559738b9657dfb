"""Kill the driver of a sweep at random moments, and compare what it finds with an undisturbed sweep.

    python -m bench.searchkills [--kills 10] [--seed 1]

A sweep of `auto` on one gang of two workers trains a tiny encoder. Its driver is killed with SIGKILL within 40 seconds
of its start, resumed, killed again, and so on; then it runs to its end. Values, rungs, scores and ends of all trials
must equal those of the same sweep in one go. One JSON line goes to stdout, what happens to stderr; the exit code is 1
where they differ.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from jobs.storage.journal import read_journal
from tests.support import tiny
from tests.support.gangs import PACED

FLEETUNE: Final = Path(sys.executable).with_name("fleetune")
_LONGEST_S: Final = 40.0  # from the start of a driver to its death


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fleetune-kills-") as folder:
        sweep = written_sweep(Path(folder))
        whole = known_of(run_to_end(sweep, begun_with=[str(sweep)]))
        root, kills = killed(sweep, options.kills, random.Random(options.seed))
        found = known_of(root)
    same = found == whole
    print(json.dumps({"kills": kills, "trials": len(whole), "same": same}))
    if not same:
        print(f"undisturbed: {json.dumps(whole)}\nkilled: {json.dumps(found)}", file=sys.stderr)
    return 0 if same else 1


def written_sweep(folder: Path) -> Path:
    """The file of a sweep with rungs and whole runs; its model and rows lie beside it."""
    tiny.save_model(folder / "encoder", "encoder")
    tiny.write_labelled(folder / "rows.jsonl", 120, 3)
    base = {
        "model": {"path": "encoder", "task": "sequence-classification", "num_labels": 3},
        "data": {"train": "rows.jsonl", "format": "classification", "eval_fraction": 0.2, "seq_len": 32},
        "train": {"learning_rate": 1e-3, "max_steps": 16, "global_batch_size": 8, "per_device_train_batch_size": 4},
        "checkpoint": {"save_steps": 2},
        "resources": {"num_workers": 2, "gpus_per_worker": 0},
        "storage_path": "runs",
    }
    # The prior is given: without it, the second sweep would begin at the best rate of the first one.
    fields = {"name": "kills", "budget": {"trials": 8}, "prior": {"learning_rate": 1e-3}, "rungs": [0.5]}
    path = folder / "sweep.json"
    path.write_text(json.dumps({"kind": "sweep", "base": base, **fields}))
    return path


def sweeps_in(sweep: Path) -> list[Path]:
    return sorted((sweep.parent / "runs").glob("kills-2*"))


def started(sweep: Path, arguments: list[str]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": PACED, "FLEETUNE_HOME": str(sweep.parent / "home")}
    with open(sweep.parent / "log", "ab") as log:
        return subprocess.Popen([str(FLEETUNE), "run", *arguments], env=environment, stdout=log, stderr=log)


def run_to_end(sweep: Path, begun_with: list[str]) -> Path:
    """The directory of the newest sweep. Raises RuntimeError: it has failed."""
    if started(sweep, begun_with).wait() != 0:
        raise RuntimeError((sweep.parent / "log").read_text())
    return sweeps_in(sweep)[-1]


def killed(sweep: Path, most: int, chance: random.Random) -> tuple[Path, int]:
    """Begin a new sweep, and kill its driver up to `most` times; its directory when it has ended, and the kills."""
    driver, known = started(sweep, [str(sweep)]), len(sweeps_in(sweep))
    while len(sweeps_in(sweep)) == known:
        time.sleep(0.1)
    root = sweeps_in(sweep)[-1]
    for kills in range(most):
        moment_s = chance.uniform(1.0, _LONGEST_S)
        try:
            driver.wait(moment_s)
        except subprocess.TimeoutExpired:
            driver.kill()
            driver.wait()
        else:
            return root, kills
        trials = known_of(root)
        say = f"kill {kills + 1} after {moment_s:.0f} s: {len(trials)} trials begun"
        print(say, file=sys.stderr, flush=True)
        driver = started(sweep, ["--resume", str(root)])
    if driver.wait() != 0:
        raise RuntimeError((sweep.parent / "log").read_text())
    return root, most


def known_of(root: Path) -> dict[str, Any]:
    """Return values and answers (step, score, status) by trial, and the bound of the rate."""
    found: dict[str, Any] = {}
    for record in read_journal(str(root / "ledger")):
        trial = found.setdefault(str(record["trial"]), {})
        if "greatest_rate" in record:
            trial["greatest_rate"] = record["greatest_rate"]
        if "values" in record:
            trial |= {"values": record["values"], "straight": record["straight"], "answers": []}
        if "answer" in record and record["answer"]["status"] != "stopped":
            answer = record["answer"]
            score = (answer["cooled"] or answer["metrics"]).get("eval_loss")
            trial["answers"].append([answer["step"], score, answer["status"]])
    return found


if __name__ == "__main__":
    sys.exit(main())
