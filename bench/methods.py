"""Compare full fine-tuning, LoRA and prompt tuning on MiniLM: what they train, what they cost, and how well they learn.

    python -m bench.methods [--steps 100] [--rates full:3e-5,1e-4 lora:3e-4,1e-3 ...] [--seeds 42] [--out FILE]

Each run classifies film reviews on two CPU workers under torchrun, with the same rows in the same order. A JSON line
for each goes to FILE, and runs that it has already are left out. The table marks the best rate of each method by
held-out loss.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from typing import Any, Final

from bench import models
from cluster.text import compact
from jobs.run.checkpoints import committed_steps, read_commit
from jobs.run.outcome import read_outcome
from jobs.run.paths import JobPaths
from jobs.run.record import read_steps
from jobs.storage import files as storage

Row = dict[str, Any]
ROOT: Final = pathlib.Path(__file__).parents[1]
RATES: Final = ("full:3e-5,1e-4,3e-4", "lora:3e-4,1e-3,3e-3", "prompt:1e-2,1e-1")
_WORKERS: Final = 2
_REVIEWS: Final = 8_530  # all of them


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rates", nargs="+", default=RATES, metavar="METHOD:RATE,RATE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("methods.jsonl"))
    options = parser.parse_args()
    known = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    base = spec_of(options.steps)
    for words in options.rates:
        method, _, rates = words.partition(":")
        for values in [(float(rate), seed) for rate in rates.split(",") for seed in options.seeds]:
            wanted = {"method": method, "rate": values[0], "seed": values[1], "steps": options.steps}
            if any(wanted.items() <= row.items() for row in known):
                continue
            print(f"{method} with rate {values[0]:g}, seed {values[1]}", file=sys.stderr, flush=True)
            known.append(wanted | measured(base, wanted))
            with options.out.open("a") as file:
                file.write(json.dumps(known[-1]) + "\n")
    print(table([row for row in known if row["steps"] == options.steps]))
    return 0


def spec_of(steps: int) -> dict[str, Any]:
    model, reviews = models.minilm(), models.reviews(_REVIEWS)
    return {
        "name": "methods",
        "model": {"path": str(model), "task": "sequence-classification"},
        "data": {
            "train": str(reviews),
            "format": "classification",
            "labels": ["negative", "positive"],
            "eval_fraction": 0.1,
            "seq_len": 128,
        },
        "train": {
            "max_steps": steps,
            "warmup_ratio": 0.1,
            "global_batch_size": 16,
            "per_device_train_batch_size": 8,
        },
        "eval": {"metrics": ["accuracy", "loss"], "per_device_eval_batch_size": 64, "eval_on_start": False},
        "resources": {"num_workers": _WORKERS, "gpus_per_worker": 0},
    }


def measured(base: dict[str, Any], wanted: Row) -> Row:
    """Train once, and return what the run has recorded."""
    with tempfile.TemporaryDirectory(prefix="fleetune-methods-") as folder:
        train = {**base["train"], "learning_rate": wanted["rate"]}
        spec = {**base, "train": train, "method": wanted["method"], "seed": wanted["seed"], "storage_path": folder}
        file = pathlib.Path(folder, "job.json")
        file.write_text(json.dumps(spec))
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={_WORKERS}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        subprocess.run(
            [*launcher, "-m", "jobs.finetune", str(file)], cwd=ROOT, env=environment, check=True, stdout=sys.stderr
        )
        (run,) = [one for one in pathlib.Path(folder).glob("methods-*") if one.is_dir()]
        return facts_of(JobPaths(str(run)))


def facts_of(paths: JobPaths) -> Row:
    outcome, steps = read_outcome(paths), read_steps(paths)
    assert outcome is not None
    manifest = json.loads(storage.read_bytes(paths.manifest))
    later = steps[len(steps) // 5 :]  # the first steps are slower
    exported = sum(one.stat().st_size for one in pathlib.Path(paths.model).iterdir() if one.suffix == ".safetensors")
    return {
        "accuracy": outcome.metrics["eval_accuracy"],
        "loss": outcome.metrics["eval_loss"],
        "trainable": manifest["trainable"],
        "parameters": manifest["parameters"],
        "peak_memory_bytes": manifest["peak_memory_bytes"],
        "step_time_s": statistics.median(step["step_time_s"] for step in later),
        "tokens_per_s": statistics.median(step["tokens_per_s"] for step in later),
        "checkpoint_bytes": read_commit(paths, committed_steps(paths)[-1]).bytes,
        "exported_bytes": exported,
    }


def table(rows: list[Row]) -> str:
    """Format the mean of the seeds for each method and rate."""
    lines = [
        "| method | rate | trained | accuracy | held-out loss | step | peak memory of a worker | checkpoint | export |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for method in dict.fromkeys(row["method"] for row in rows):
        of_rate: dict[float, list[Row]] = {}
        for row in rows:
            if row["method"] == method:
                of_rate.setdefault(row["rate"], []).append(row)
        best = min(of_rate, key=lambda rate: statistics.mean(row["loss"] for row in of_rate[rate]))
        lines += [_line(rate, of_rate[rate], rate == best) for rate in sorted(of_rate)]
    return "\n".join(lines)


def _line(rate: float, rows: list[Row], is_best: bool) -> str:
    def mean(name: str) -> float:
        return float(statistics.mean(row[name] for row in rows))

    first = rows[0]
    cells = [
        first["method"],
        f"{rate:g}{' (best)' if is_best else ''}",
        f"{compact(first['trainable'])} of {compact(first['parameters'])}",
        f"{mean('accuracy'):.3f}",
        f"{mean('loss'):.3f}",
        f"{mean('step_time_s'):.2f} s",
        f"{mean('peak_memory_bytes') / 1e6:,.0f} MB",
        f"{mean('checkpoint_bytes') / 1e6:,.1f} MB",
        f"{mean('exported_bytes') / 1e6:,.1f} MB",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
