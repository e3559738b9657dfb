"""Measure the overhead of a sweep, beside stock Ray Tune with a TorchTrainer for each trial.

    python -m bench.search [gaps] [memory] [one] [replay] [--quick]

Named parts run, one after another; without a name, all.

`gaps`: the same trials of the same job both ways, one after another; seconds between the end of a trial's last step and
the end of the next one's first step, and the total. The stock way is Ray's for 2.60: a function trainable that runs a
`TorchTrainer`, whose workers run the same loop. Both include the first evaluation and the trial's last checkpoint.
`memory`: resident memory of rank 0 after each trial on one gang.
`one`: seconds of a whole sweep of one trial beside those of a run with the same values, in turns. Both export a model.
`replay`: search algorithms compared on recorded curves (`bench/replay.py`).
`--quick`: fewer trials, rounds and seeds.

Lines for people go to stderr, one JSON object for each way to stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from bench.results import other_output_to_stderr, tell
from jobs.run.paths import JobPaths
from jobs.run.progress import NoProgress
from jobs.run.record import read_steps
from jobs.search.rules.varying import trial_spec
from jobs.search.trials import Trials
from jobs.spec.load import load_sweep
from jobs.spec.sweep import SweepSpec
from jobs.sweep import run_sweep
from tests.support import tiny

STEPS = 6


def main() -> int:
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="gaps|memory|one|replay")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    quick = options.quick
    parts: dict[str, Callable[[Path], None]] = {
        "gaps": lambda folder: gaps(written_sweep(folder, 4 if quick else 8)),
        "memory": lambda folder: memory(written_sweep(folder, 10 if quick else 30)),
        "one": lambda folder: one(written_sweep(folder, 1).model_copy(update={"then": "export"}), 1 if quick else 3),
        "replay": lambda _: replay(20 if quick else 200),
    }
    unknown = sorted(set(options.parts) - set(parts))
    if unknown:
        parser.error(f"there is no part {', '.join(unknown)}: name some of {', '.join(parts)}")
    for name in options.parts or parts:
        with tempfile.TemporaryDirectory(prefix="fleetune-search-") as folder, other_output_to_stderr():
            say(f"{name}:")
            parts[name](Path(folder))
    return 0


def gaps(sweep: SweepSpec) -> None:
    ours(sweep)  # caches are filled
    for found in (ours(sweep), stock(sweep)):
        tell(found.facts())
        say(f"{found.way}: {found.facts()['median_gap_s']} s from trial to trial, {found.total_s:.1f} s in all")


def replay(seeds: int) -> None:
    command = [sys.executable, "-m", "bench.replay", "minilm", "--seeds", str(seeds)]
    subprocess.run(command, check=True)


def written_sweep(folder: Path, trials: int) -> SweepSpec:
    tiny.save_model(folder / "encoder", "encoder")
    tiny.write_labelled(folder / "rows.jsonl", 200, 3)
    base = {
        "model": {"path": "encoder", "task": "sequence-classification", "num_labels": 3},
        "data": {"train": "rows.jsonl", "format": "classification", "eval_fraction": 0.2, "seq_len": 32},
        "train": {"max_steps": STEPS, "global_batch_size": 8, "per_device_train_batch_size": 4},
        "resources": {"num_workers": 2, "gpus_per_worker": 0},
        "storage_path": "runs",
    }
    space = {"learning_rate": {"min": 1e-5, "max": 1e-3, "log": True}, "warmup_ratio": {"min": 0.0, "max": 0.2}}
    sweep = {"kind": "sweep", "base": base, "space": space, "algorithm": "random", "then": "nothing"}
    file = folder / "sweep.json"
    file.write_text(json.dumps({**sweep, "budget": {"trials": trials}}))
    loaded = load_sweep(str(file))
    assert loaded is not None
    return loaded


@dataclass(frozen=True)
class Found:
    """
    Attributes:
        steps: seconds since 1970 at which steps ended, by trial in their order.
        total_s: from the command to its end.
    """

    way: str
    steps: list[list[float]]
    total_s: float

    def facts(self) -> dict[str, Any]:
        gaps = [later[0] - earlier[-1] for earlier, later in pairwise(self.steps)]
        return {
            "way": self.way,
            "trials": len(self.steps),
            "gaps_s": [round(gap, 2) for gap in gaps],
            "median_gap_s": round(statistics.median(gaps), 2),
            "total_s": round(self.total_s, 1),
        }


def times_of(root: str) -> list[float]:
    return [float(record["at"]) for record in read_steps(JobPaths(root))]


def ours(sweep: SweepSpec) -> Found:
    began = time.monotonic()
    outcome = run_sweep(sweep, progress=NoProgress())
    total_s = time.monotonic() - began
    assert outcome.reason is None, outcome.reason
    trials = Trials(sweep, newest(sweep)).trials
    return Found("warm", [times_of(trial.paths.root) for trial in trials.values()], total_s)


def newest(sweep: SweepSpec) -> str:
    """Root of the newest sweep."""
    return str(max(Path(sweep.base.storage_path).glob(f"{sweep.name}-*"), key=lambda path: path.stat().st_mtime))


def stock(sweep: SweepSpec) -> Found:
    """The trials of the newest sweep once more, with a `TorchTrainer` for each."""
    from ray import train, tune
    from ray.train.torch import TorchConfig, TorchTrainer

    from cluster.ray.connection import connected
    from jobs.data.preparation.prepare import prepare
    from jobs.planning import gang_of
    from jobs.spec.load import dump_spec
    from jobs.training.on_ray.worker import ray_worker
    from jobs.training.worker_input import Job

    values = [trial.values for trial in Trials(sweep, newest(sweep)).trials.values()]
    prepared = prepare(sweep.base, sweep.base.model.path, engine="plain", say=lambda text: None)
    root = Path(sweep.base.storage_path) / "stock"

    def trial(config: dict[str, Any]) -> None:
        spec = trial_spec(sweep.base, values[config["number"]])
        job = Job(spec, str(root / f"{config['number']:04d}"), prepared.root, spec.model.path)
        Path(job.run_root).mkdir(parents=True)
        Path(job.paths.spec).write_bytes(dump_spec(spec))
        TorchTrainer(
            ray_worker,
            train_loop_config={"job": job},
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1.0}),
            run_config=train.RunConfig(name="ray", storage_path=job.run_root),
        ).fit()

    began = time.monotonic()
    with connected(None, gang_of(sweep.base), None, ()):
        tuner = tune.Tuner(
            tune.with_resources(trial, {"CPU": 0.1}),
            param_space={"number": tune.grid_search(list(range(len(values))))},
            tune_config=tune.TuneConfig(max_concurrent_trials=1),
            run_config=tune.RunConfig(name="tune", storage_path=str(root), verbose=0),
        )
        tuner.fit()
    total_s = time.monotonic() - began
    return Found("stock", [times_of(str(root / f"{number:04d}")) for number in range(len(values))], total_s)


def one(sweep: SweepSpec, rounds: int) -> None:
    from jobs.finetune import run_on_ray

    values = next(iter(Trials(sweep, newest(sweep)).trials.values())).values if ours(sweep) else {}
    spec = trial_spec(sweep.base, values)
    took: dict[str, list[float]] = {"run": [], "sweep": []}
    for number in range(rounds + 1):  # the first round fills caches
        began = time.monotonic()
        outcome = run_on_ray(spec, progress=NoProgress())
        run_s = time.monotonic() - began
        assert outcome.reason is None, outcome.reason
        sweep_s = ours(sweep).total_s
        if number:
            took["run"].append(round(run_s, 1))
            took["sweep"].append(round(sweep_s, 1))
    more = statistics.median(two - first for first, two in zip(took["run"], took["sweep"], strict=True))
    tell({**took, "median_more_s": round(more, 2)})


def memory(sweep: SweepSpec) -> None:
    resident: dict[int, float] = {}
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.2):
            workers = [
                process
                for process in psutil.Process().children(recursive=True)
                if process.name().startswith("ray::RayTrainWo")
            ]
            done = [trial for trial in known().values() if trial.is_over]
            if workers and done and len(done) not in resident:
                resident[len(done)] = max(process.memory_info().rss for process in workers) / 1e6

    def known() -> dict[int, Any]:
        try:
            return Trials(sweep, newest(sweep)).trials
        except (ValueError, OSError):
            return {}

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    ours(sweep)
    ended.set()
    thread.join()
    later = [size for number, size in sorted(resident.items()) if number >= 3]
    facts = {"resident_mb": [round(size) for _, size in sorted(resident.items())]}
    tell(facts | {"growth_after_third": round(max(later) / later[0] - 1, 4)})


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
