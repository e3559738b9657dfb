"""Measures how much SmolLM2-135M forgets in narrow tuning, and how much a bound, replay and mixing reduce that.

    python -m bench.forgetting [--steps 12] [--rate 2e-4] [--seed 1] [--fp32] [--only unguarded ...] [--work DIR]

Every run tunes all of SmolLM2-135M on short dialogues, on two workers with one thread each, and measures its loss on
pages of the Brown corpus. `guarded` has a bound and lowers its rate. `replay-N` trains on N % of other pages of that
corpus, and `raised` has a bound, begins with 1 % and raises that share. `mixed` takes the model of `unguarded` and
mixes it with its base. `lora` trains an adapter of rank 16 and `prompt` 20 virtual tokens instead, without a bound.
Training is in bf16, which CPUs without instructions for it compute slowly; with --fp32 in fp32. With --work, runs that
have succeeded are not repeated, so that the cases may be computed one at a time. One JSON line for each case goes to
stdout.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import torch

from bench import models
from bench.results import other_output_to_stderr, tell
from jobs.data.preparation.prepare import prepare
from jobs.data.prepared import IGNORE_INDEX, Prepared, Split
from jobs.run.find import run_names
from jobs.run.outcome import Outcome, Status, read_outcome
from jobs.run.paths import JobPaths
from jobs.spec.finetune import Spec
from jobs.spec.load import dump_spec
from jobs.storage.journal import read_journal
from jobs.training.checkpoint.interpolate import interpolate
from jobs.training.loop.loss import loss_sum
from jobs.training.model.batch import collate, model_logits

ROOT: Final = pathlib.Path(__file__).resolve().parent.parent
WORKERS: Final = 2
LENGTH: Final = 128  # tokens of a row
BOUND: Final = 0.02
RATE: Final = 2e-4
EVALUATIONS: Final = 6
CASES: Final = ("unguarded", "guarded", "replay-1", "replay-5", "raised", "mixed", "lora", "prompt")
ACTIONS: Final = {"guarded": "lower_learning_rate", "raised": "raise_replay"}
METHODS: Final[dict[str, dict[str, Any]]] = {
    "lora": {"method": "lora", "lora": {"rank": 16, "alpha": 32}},
    "prompt": {"method": "prompt"},
}
BASE_WEIGHTS: Final = (0.1, 0.2, 0.3, 0.4, 0.5)
_HELD_OUT = 48  # dialogues
_PROBE = 16  # pieces of general text


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rate", type=float, default=RATE, help="learning rate at the end of the warmup")
    parser.add_argument("--only", nargs="*", default=list(CASES), choices=CASES)
    parser.add_argument("--seed", type=int, default=1, help="of the order of the samples, and of dropout")
    parser.add_argument("--fp32", action="store_true")
    parser.add_argument("--work", type=pathlib.Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fleetune-forgetting-") as scratch, other_output_to_stderr():
        name = f"{options.steps}-steps-at-{options.rate:g}" + (f"-seed-{options.seed}" if options.seed != 1 else "")
        name += "-fp32" if options.fp32 else ""
        folder = (options.work or pathlib.Path(scratch)) / name
        folder.mkdir(parents=True, exist_ok=True)
        write_texts(folder)
        for case in options.only:
            for line in mixed(folder, options) if case == "mixed" else [trained(folder, case, options)]:
                tell(line)
    return 0


def write_texts(folder: pathlib.Path) -> None:
    """Write the dialogues to train on and those held out, the general text that is scored, and that for replay."""
    talks = models.dialogues().read_text(encoding="utf-8").splitlines()
    pages = models.brown().read_text(encoding="utf-8").splitlines()
    random.Random(0).shuffle(talks)
    random.Random(0).shuffle(pages)
    texts = {
        "train": talks[_HELD_OUT:],
        "held-out": talks[:_HELD_OUT],
        "probe": pages[:_PROBE],
        "replay": pages[_PROBE : _PROBE + 2000],
    }
    for name, lines in texts.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def spec_of(folder: pathlib.Path, case: str, options: argparse.Namespace) -> Spec:
    share = (
        int(case.removeprefix("replay-")) / 100 if case.startswith("replay-") else 0.01 if case == "raised" else None
    )
    bounded = {"max_general_loss_increase": BOUND, "action": ACTIONS[case]} if case in ACTIONS else {}
    train: list[dict[str, Any]] = [{"path": str(folder / "train.jsonl"), "weight": 1 - share if share else None}]
    if share:
        train.append({"path": str(folder / "replay.jsonl"), "weight": share, "format": "text", "replay": True})
    return Spec.model_validate(
        {
            **METHODS.get(case, {}),
            "name": case,
            "model": {"path": str(models.smollm2()), "task": "causal-lm"},
            "data": {
                "train": train,
                "eval": str(folder / "held-out.jsonl"),
                "format": "chat",
                "seq_len": LENGTH,
            },
            "train": {
                "learning_rate": options.rate,
                "warmup_ratio": 0.1,
                "max_steps": options.steps,
                "global_batch_size": 4,
                "per_device_train_batch_size": 2,
                "bf16": not options.fp32,
            },
            "eval": {"general": str(folder / "probe.jsonl"), "eval_steps": max(options.steps // EVALUATIONS, 1)},
            "checkpoint": {"metric_for_best_model": "loss", "save_total_limit": 1},
            "remedies": {"forgetting": bounded},
            "resources": {"num_workers": WORKERS, "gpus_per_worker": 0},
            "storage_path": str(folder / "runs"),
            "seed": options.seed,
        }
    )


def finished(folder: pathlib.Path, case: str) -> tuple[JobPaths, Outcome] | None:
    """Return the newest run of this case that has succeeded; None if there is none."""
    root = str(folder / "runs")
    names = run_names(root) if pathlib.Path(root).is_dir() else []
    for name in sorted((one for one in names if one.startswith(f"{case}-2")), reverse=True):
        paths = JobPaths.of(root, name)
        outcome = read_outcome(paths)
        if outcome is not None and outcome.status is Status.SUCCEEDED:
            return paths, outcome
    return None


def trained(folder: pathlib.Path, case: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run a case, unless it has been run, and return what it gave."""
    began = time.perf_counter()
    if (found := finished(folder, case)) is None:
        file = folder / f"{case}.json"
        file.write_bytes(dump_spec(spec_of(folder, case, options)))
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(WORKERS)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        command = [*launcher, "-m", "jobs.finetune", str(file)]
        subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=sys.stderr)
        found = finished(folder, case)
        assert found is not None
    paths, outcome = found
    before, after = outcome.metrics_before, outcome.exported_metrics or outcome.metrics
    told = [event["data"] for event in read_journal(paths.events) if event["kind"] == "remedy"]
    acts = [data for data in told if data["remedy"] != "overfitting"]
    return {
        "case": case,
        "rate": options.rate,
        "seed": options.seed,
        "precision": "fp32" if options.fp32 else "bf16",
        **_losses(before["eval_loss"], after["eval_loss"], before["eval_general_loss"], after["eval_general_loss"]),
        "steps": outcome.step,
        "exported_step": outcome.exported_step,
        "acts": [(act.get("stage"), act["step"], act.get("to_step")) for act in acts],
        "steps_computed": len(read_journal(paths.metrics)),
        "seconds": round(time.perf_counter() - began, 1),
        "load_average": os.getloadavg()[0],
    }


def _losses(task_before: float, task: float, general_before: float, general: float) -> dict[str, float]:
    return {
        "held_out_before": round(task_before, 4),
        "held_out": round(task, 4),
        "gain": round(task_before - task, 4),
        "general_before": round(general_before, 4),
        "general": round(general, 4),
        "general_increase": round(general / general_before - 1, 4),
    }


def mixed(folder: pathlib.Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Score the model of `unguarded` mixed with its base, by the weight of the base."""
    found = finished(folder, "unguarded")
    if found is None:
        trained(folder, "unguarded", options)
        found = finished(folder, "unguarded")
    assert found is not None
    spec = spec_of(folder, "unguarded", options)
    prepared = prepare(spec, spec.model.path, engine="plain", say=lambda said: None)
    before = found[1].metrics_before
    for weight in BASE_WEIGHTS:
        with tempfile.TemporaryDirectory(prefix="fleetune-mixed-") as to:
            interpolate(found[0].model, spec.model.path, to, weight)
            task, general = (loss_on(to, prepared, split) for split in ("eval", "general"))
        losses = _losses(before["eval_loss"], task, before["eval_general_loss"], general)
        yield {"case": "mixed", "base_weight": weight, **losses}


@torch.no_grad()
def loss_on(model_dir: str, prepared: Prepared, name: str) -> float:
    """The mean loss of a model in one process for each target of a split, in bf16 as in the runs."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16).eval()
    split: Split = prepared.split(name)
    total, targets = 0.0, 0
    for start in range(0, len(split), 8):
        rows = split.read_rows(np.arange(start, min(start + 8, len(split))))
        batch = collate(rows, "causal-lm", prepared.manifest.pad_token_id, torch.device("cpu"), True)
        total += float(loss_sum(model_logits(model, batch, "causal-lm"), batch.targets))
        targets += int((batch.targets != IGNORE_INDEX).sum())
    return total / targets


if __name__ == "__main__":
    sys.exit(main())
