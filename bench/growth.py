"""Held-out loss of full fine-tuning and of LoRA of several ranks, by the amount of text trained on.

    python -m bench.growth [--steps 64] [--only full lora-1 ...] [--work DIR]

Every run continues the pretraining of the first four layers of SmolLM2-135M on the Brown corpus, each row once, at a
constant learning rate; so the loss after k steps is that of a training on the rows of k steps. Each method has two
learning rates, and each column of the table its lowest loss. Two runs train at a time, each on one worker with one
thread. With --work, runs that have succeeded are not repeated. One JSON line for each run goes to stdout, then a table.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import random
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from bench import models
from bench.results import other_output_to_stderr, tell
from jobs.run.find import run_names
from jobs.run.outcome import Status, read_outcome
from jobs.run.paths import JobPaths
from jobs.spec.finetune import Spec
from jobs.spec.load import dump_spec
from jobs.storage.journal import read_journal
from orchestrator.pages.tables import columns

ROOT: Final = pathlib.Path(__file__).resolve().parent.parent
LAYERS: Final = 4
LENGTH, ROWS = 256, 8  # tokens of a row, rows of a step
RATES: Final = {"full": (3e-4, 1e-3), "lora": (2e-3, 6e-3)}
RANKS: Final = (1, 8, 64)
METHODS: Final = ("full", *(f"lora-{rank}" for rank in RANKS))
ALPHA: Final = 32.0  # with the same alpha, the best rates of different ranks are about the same
HELD_OUT: Final = 40  # pieces of text


@dataclass(frozen=True)
class Case:
    method: str
    rate: float

    @property
    def rank(self) -> int | None:
        return int(self.method.removeprefix("lora-")) if self.method.startswith("lora-") else None

    @property
    def name(self) -> str:
        return f"{self.method}-at-{self.rate:g}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--steps",
        type=int,
        default=64,
        help="a multiple of 8: the loss is also measured after 1/8, 1/4 and 1/2 of the steps",
    )
    parser.add_argument("--only", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--work", type=pathlib.Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fleetune-growth-") as scratch, other_output_to_stderr():
        folder = (options.work or pathlib.Path(scratch)) / f"{options.steps}-steps"
        folder.mkdir(parents=True, exist_ok=True)
        write_texts(folder)
        cases = [Case(method, rate) for method in options.only for rate in RATES[method.partition("-")[0]]]
        models.smollm2_slice(LAYERS)  # made once, before two runs ask for it
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(lambda case: trained(folder, case, options.steps), cases))
        for line in found:
            tell(line)
    print(page(found), file=sys.stderr)
    return 0


def write_texts(folder: pathlib.Path) -> None:
    pieces = models.brown().read_text(encoding="utf-8").splitlines()
    random.Random(0).shuffle(pieces)
    for name, lines in {"held-out": pieces[:HELD_OUT], "train": pieces[HELD_OUT:]}.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def spec_of(folder: pathlib.Path, case: Case, steps: int) -> Spec:
    adapter = {} if case.rank is None else {"method": "lora", "lora": {"rank": case.rank, "alpha": ALPHA}}
    return Spec.model_validate(
        {
            **adapter,
            "name": case.name.replace(".", "-"),
            "model": {"path": str(models.smollm2_slice(LAYERS)), "task": "causal-lm"},
            "data": {
                "train": str(folder / "train.jsonl"),
                "eval": str(folder / "held-out.jsonl"),
                "format": "text",
                "seq_len": LENGTH,
            },
            "train": {
                "learning_rate": case.rate,
                "lr_scheduler_type": "constant_with_warmup",
                "warmup_steps": 4,
                "max_steps": steps,
                "global_batch_size": ROWS,
                "per_device_train_batch_size": ROWS // 2,
            },
            "eval": {"eval_steps": max(steps // 8, 1), "eval_on_start": True},
            "checkpoint": {"save_total_limit": 1},
            "remedies": {"outlier_steps": False},
            "resources": {"num_workers": 1, "gpus_per_worker": 0},
            "storage_path": str(folder / "runs"),
        }
    )


def finished(folder: pathlib.Path, name: str) -> JobPaths | None:
    root = str(folder / "runs")
    for run in sorted(run_names(root) if pathlib.Path(root).is_dir() else (), reverse=True):
        outcome = read_outcome(JobPaths.of(root, run)) if run.startswith(f"{name}-2") else None
        if outcome is not None and outcome.status is Status.SUCCEEDED:
            return JobPaths.of(root, run)
    return None


def trained(folder: pathlib.Path, case: Case, steps: int) -> dict[str, Any]:
    """Run a case, unless it has been run, and return its held-out losses by the tokens before them."""
    name = case.name.replace(".", "-")
    if (paths := finished(folder, name)) is None:
        file = folder / f"{name}.json"
        file.write_bytes(dump_spec(spec_of(folder, case, steps)))
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        command = [*launcher, "-m", "jobs.finetune", str(file)]
        subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=sys.stderr)
        paths = finished(folder, name)
        assert paths is not None
    losses = {
        int(record["step"]) * ROWS * LENGTH: round(float(record["eval_loss"]), 4)
        for record in read_journal(paths.metrics)
        if "eval_loss" in record
    }
    return {"method": case.method, "rate": case.rate, "losses": losses}


def page(found: list[dict[str, Any]]) -> str:
    """Format the lowest loss over the rates of each method, after 1/8, 1/4, 1/2 and all of the tokens."""
    most = max(found[0]["losses"])
    amounts = [most // 8, most // 4, most // 2, most]
    rows = []
    for method in dict.fromkeys(line["method"] for line in found):
        runs = [line for line in found if line["method"] == method]
        best = [min((run["losses"][tokens], run["rate"]) for run in runs) for tokens in amounts]
        rows.append((method, *(f"{loss:.3f} ({rate:g})" for loss, rate in best)))
    return columns(("", *(f"{tokens:,} tokens" for tokens in amounts)), rows)


if __name__ == "__main__":
    sys.exit(main())
