"""What the remedy for outlying steps saves, and what watching costs: real runs on two workers with one thread each.

    python -m bench.remedies [--steps 60] [--only curves clean poisoned excessive watching]

A small language model (0.5M parameters) is trained once on short dialogues in plain PyTorch. The runs then fine-tune it
on other dialogues: clean; with one poisoned step, whose tokens are random and whose logits are 100 times too large; and
with learning rates that are too high. Every case runs with the remedy and without it. `curves` counts false alarms on
the recorded curves of bench/data. One JSON line for each case goes to stdout.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final

import torch

from bench import models
from cluster.errors import RunFailed
from cluster.settings import torchrun_world
from jobs.data.order.stream import StepRows, Stream
from jobs.data.preparation.prepare import prepare
from jobs.remedies import outliers
from jobs.remedies.hang import Doing
from jobs.remedies.outliers import FEWEST, after_step, outlier_of
from jobs.run.checkpoints import StepHistory
from jobs.run.paths import JobPaths
from jobs.run.record import read_steps
from jobs.spec.finetune import Spec
from jobs.spec.load import dump_spec, load_spec
from jobs.storage.journal import read_journal
from jobs.training.loop import loop
from jobs.training.loop import step as step_module
from jobs.training.model.batch import Batch, collate
from jobs.training.pulse import PulseWriter
from jobs.training.worker_context import TorchrunWorkerContext
from jobs.training.worker_input import Job

ROOT: Final = pathlib.Path(__file__).resolve().parent.parent
WORKERS: Final = 2
GOOD_RATE: Final = 1e-3
TOO_HIGH: Final = (1.5e-2, 3e-2, 1e-1, 2e-1)
VOCABULARY: Final = 1000
LENGTH: Final = 64  # tokens of a row
_PRETRAINING_STEPS = 400
_POISONED_AT = 0.6  # share of the run
_TIMED_STEPS = 600
_SEEN = 700  # dialogues on which the small model is trained; the runs train on the rest


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--only", nargs="*", default=["curves", "clean", "poisoned", "excessive", "watching"])
    parser.add_argument("--worker")
    options = parser.parse_args()
    if options.worker:
        return worker(pathlib.Path(options.worker))
    with tempfile.TemporaryDirectory(prefix="fleetune-remedies-") as name:
        folder = pathlib.Path(name)
        text = folder / "dialogues.jsonl"
        text.write_text("".join(json.dumps({"text": one}) + "\n" for one in dialogue_texts()[_SEEN:]))
        if "curves" in options.only:
            print(json.dumps(false_alarms()), flush=True)
        for line in results(folder, text, options.steps, options.only):
            print(json.dumps(line), flush=True)
    return 0


def results(folder: pathlib.Path, text: pathlib.Path, steps: int, only: list[str]) -> Iterator[dict[str, Any]]:
    """Run all cases in one gang, and yield what each gave."""
    rates = {"clean": GOOD_RATE, "poisoned": GOOD_RATE, **{f"excessive {rate:g}": rate for rate in TOO_HIGH}}
    cases = {
        f"{name}, {'with' if remedy else 'without'}": case_of(folder, text, name, steps, rate, remedy)
        for name, rate in rates.items()
        if name.split()[0] in only
        for remedy in (True, False)
    }
    if cases:
        run_gang(folder, cases)
    clean = None
    for name, case in cases.items():
        found = outcome_of(case)
        clean = found["eval_loss"] if name == "clean, with" else clean
        if clean is not None and found["eval_loss"] is not None:
            found["above_clean"] = round(found["eval_loss"] / clean - 1, 5)
        yield {"case": name, **found}
    if "watching" in only:
        yield watching(folder, text)


def case_of(
    folder: pathlib.Path, text: pathlib.Path, name: str, steps: int, rate: float, remedy: bool
) -> dict[str, Any]:
    spec = Spec.model_validate(
        {
            "model": {"path": str(small_model()), "task": "causal-lm"},
            "data": {"train": str(text), "format": "text", "seq_len": LENGTH, "eval_fraction": 0.1},
            "train": {
                "learning_rate": rate,
                "warmup_ratio": 0.3,
                "max_steps": steps,
                "global_batch_size": 16,
                "per_device_train_batch_size": 8,
            },
            "eval": {"eval_steps": 20},
            "checkpoint": {"save_steps": 20},
            "remedies": {"outlier_steps": remedy},
            "resources": {"num_workers": WORKERS, "gpus_per_worker": 0},
            "storage_path": str(folder),
            "seed": 1,
        }
    )
    file = folder / f"{name}-{remedy}.json"
    file.write_bytes(dump_spec(spec))
    prepared = prepare(spec, spec.model.path, engine="plain", say=lambda said: None)
    return {
        "spec": str(file),
        "run": str(folder / f"{name}-{remedy}"),
        "prepared": prepared.root,
        "poisoned": round(_POISONED_AT * steps) if name == "poisoned" else None,
    }


def run_gang(folder: pathlib.Path, cases: dict[str, dict[str, Any]]) -> None:
    listing = folder / "cases.json"
    listing.write_text(json.dumps(list(cases.values())))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(WORKERS)]
    command = [*launcher, "-m", "bench.remedies", "--worker", str(listing)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=sys.stderr)


class Worker(TorchrunWorkerContext):
    """Knows the step that it trains, from 1, and has the heartbeat of a worker under Ray."""

    step = 0
    pulse = PulseWriter("", 0)  # writes nothing

    def steps(self, stream: Stream, start: int, rewound: bool = False) -> Iterator[StepRows]:
        self.mark(Doing.DATA)
        for rows in super().steps(stream, start, rewound):
            self.step = rows.step + 1
            self.mark(Doing.STEP)
            yield rows
            self.mark(Doing.DATA)

    def mark(self, doing: Doing) -> None:
        self.pulse.mark(doing, self.step)


def worker(listing: pathlib.Path) -> int:
    world = torchrun_world()
    assert world is not None
    loss_sum = step_module.loss_sum
    for case in json.loads(listing.read_text()):
        spec = load_spec(case["spec"])
        job = Job(spec, case["run"], case["prepared"], spec.model.path)
        worker = Worker(job.paths, 0, world)
        watch, key = Stopwatch(), ""
        if case.get("timed"):
            watch, key = timed_parts(worker), uuid.uuid4().hex

        def poisoned(*given: Any, at: int | None = case["poisoned"], worker: Worker = worker, **named: Any) -> Batch:
            batch = collate(*given, **named)
            if worker.step != at:
                return batch
            noise = torch.Generator().manual_seed(worker.rank)
            inputs = {**batch.inputs, "input_ids": _random_like(batch.inputs["input_ids"], noise)}
            return replace(batch, inputs=inputs, targets=_random_like(batch.targets, noise))

        def scaled(logits: Any, targets: Any, at: int | None = case["poisoned"], worker: Worker = worker) -> Any:
            return loss_sum(logits * (100 if worker.step == at else 1), targets)

        step_module.collate, step_module.loss_sum = poisoned, scaled
        with (
            contextlib.closing(loop.Reporter(job.paths, worker.rank)) as reporter,
            PulseWriter(key, worker.rank) as pulse,
        ):
            worker.pulse = pulse
            run = loop.set_up(job, worker, reporter)
            state, began = loop.begun(run, loop.restored(run)), time.perf_counter()
            try:
                loop.train_steps(run, state)
            except RunFailed as error:
                reporter.event("failed", str(error))
            if watch.by_part:
                reporter.event("timed", "", seconds=time.perf_counter() - began, by_part=watch.by_part)
            run.checkpoints.finish()
        worker.close()
    return 0


def _random_like(tokens: torch.Tensor, noise: torch.Generator) -> torch.Tensor:
    return torch.where(tokens < 0, tokens, torch.randint(0, VOCABULARY, tokens.shape, generator=noise))


def outcome_of(case: dict[str, Any]) -> dict[str, Any]:
    paths = JobPaths(case["run"])
    steps, events = read_steps(paths), read_journal(paths.events)
    acts = [event["data"].get("stage") for event in events if event["kind"] == "remedy"]
    failed = [event["message"] for event in events if event["kind"] == "failed"]
    return {
        "eval_loss": steps[-1].get("eval_loss"),
        "steps": len(steps),
        "steps_computed": len(read_journal(paths.metrics)),
        "highest_loss": max(step["loss"] for step in steps),
        "skips": acts.count("skip"),
        "rollbacks": acts.count("rollback"),
        "failed": failed[0] if failed else None,
    }


def false_alarms() -> dict[str, Any]:
    """Count the outlying steps of recorded runs, which are all healthy or learn nothing."""
    runs = [json.loads(line) for line in (ROOT / "bench/data/minilm.jsonl").read_text().splitlines()]
    alarms, steps, most = 0, 0, 0.0
    for run in runs:
        history = StepHistory()
        for step, loss in enumerate(run["training_loss"]):
            if len(history.losses) >= FEWEST:
                steps, most = steps + 1, max(most, loss / statistics.median(history.losses))
            outlier = outlier_of(history, loss, 1.0)
            alarms += outlier is not None
            history = after_step(history, step, loss, 1.0, outlier=outlier, applied=outlier is None, scaling=False)
    return {"case": "curves", "runs": len(runs), "steps": steps, "false_alarms": alarms, "most_above_median": most}


def watching(folder: pathlib.Path, text: pathlib.Path) -> dict[str, Any]:
    """Time everything that all remedies together do in the steps of a run in which nothing happens."""
    case = case_of(folder, text, "watched", _TIMED_STEPS, GOOD_RATE, remedy=True)
    run_gang(folder, {"watched": case | {"timed": True}})
    steps = read_steps(JobPaths(case["run"]))
    (found,) = [one["data"] for one in read_journal(JobPaths(case["run"]).events) if one["kind"] == "timed"]
    total_s = found["seconds"]
    watched_s = sum(found["by_part"].values())
    return {
        "case": "watching",
        "steps": len(steps),
        "step_s": statistics.median(step["step_time_s"] for step in steps),
        "watching_s_per_step": watched_s / len(steps),
        "share": watched_s / total_s,
        "share_by_part": {name: seconds / total_s for name, seconds in found["by_part"].items()},
        "decision_s": decision_s(),
        "load_average": os.getloadavg()[0],
    }


class Stopwatch:
    """Adds up the seconds that this thread spends in chosen functions, by the part to which they belong.

    A chosen function that is called by another one counts for the part of its caller. Waits for other ranks count too.
    """

    def __init__(self) -> None:
        self.by_part: dict[str, float] = defaultdict(float)
        self._inside = False

    def of(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*given: Any, **named: Any) -> Any:
            if self._inside:
                return function(*given, **named)
            self._inside, began = True, time.perf_counter()
            try:
                return function(*given, **named)
            finally:
                self._inside = False
                self.by_part[name] += time.perf_counter() - began

        return timed

    def replace(self, part: str, owner: Any, *names: str) -> None:
        for name in names:
            setattr(owner, name, self.of(part, getattr(owner, name)))


def timed_parts(worker: Worker) -> Stopwatch:
    """Time what the loop calls for the remedies, on this rank."""
    watch = Stopwatch()
    watch.replace("outlier steps", outliers, "outlier_of", "is_barred", "after_step", "rollback_of")
    watch.replace("outlier steps", loop, "counted", "compared_with_earlier", "compared", "check_skips")
    watch.replace("forgetting, overfitting", loop, "act_of", "ends_early", "watched")
    watch.replace("speed tests", loop.SpeedWatch, "compare")
    watch.replace("heartbeat", worker, "mark")
    return watch


def decision_s(rounds: int = 2000) -> float:
    """Seconds of the decision about a step with a full window."""
    history, norm = StepHistory(), torch.tensor(1.0)
    began = 0.0
    for step in range(rounds + 100):
        if step == 100:
            began = time.perf_counter()
        loss = 3.0 + 0.01 * (step % 7)
        outlier = outlier_of(history, loss, float(norm))
        history = after_step(history, step, loss, 1.0, outlier=outlier, applied=True, scaling=False)
    return (time.perf_counter() - began) / rounds


def dialogue_texts() -> list[str]:
    lines = models.dialogues().read_text(encoding="utf-8").splitlines()
    texts = [" ".join(turn["content"] for turn in json.loads(line)["messages"]) for line in lines]
    random.Random(0).shuffle(texts)
    return texts


def small_model() -> pathlib.Path:
    """A model directory with a small Llama that was trained on dialogues; made once."""
    target = models.CACHE / f"small-llama-{_SEEN}"
    if target.exists():
        return target
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers.models import BPE
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    texts = dialogue_texts()[:_SEEN]
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<end>"], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokens = [token for text in texts for token in [*tokenizer.encode(text).ids, 0]]
    rows = torch.tensor(tokens[: len(tokens) // LENGTH * LENGTH]).view(-1, LENGTH)
    torch.set_num_threads(1)  # more threads wait for one another if other programs have the cores
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=96, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=4 * LENGTH, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(_PRETRAINING_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 40) * (1 - step / _PRETRAINING_STEPS)
        batch = rows[torch.randint(0, len(rows), (16,))]
        model(input_ids=batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    beside = target.with_suffix(".part")
    model.save_pretrained(beside)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(beside)
    beside.rename(target)
    return target


if __name__ == "__main__":
    sys.exit(main())
