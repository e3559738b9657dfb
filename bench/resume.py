"""Seconds from the start of a resume to the end of its first step, after k steps, for small and for large k.

    python -m bench.resume [--rounds 3] [--steps 20 1000 100000 900000] [--ways ray torchrun] [--smoke] [--work DIR]

A tiny model really trains up to a checkpoint, out of which those of the other steps are forged: the same tensors, with
the step, the chain and the metrics that a run of so many steps would have. Each is then resumed, stopped and resumed
again, the steps in turns. Lines for people go to stderr, one JSON object for each resume to stdout, the summary last.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import pathlib
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from bench.train import PACKAGES, ROOT, emit, say, spread
from jobs.data.order.digest_chain import chain_of, row_digests, to_hex
from jobs.data.order.stream import step_plan
from jobs.data.preparation.prepare import prepare
from jobs.run.checkpoints import committed_steps, read_commit
from jobs.run.outcome import Event
from jobs.run.paths import JobPaths
from jobs.run.record import read_steps
from jobs.spec.load import load_spec
from jobs.storage.journal import Record, part_names, read_part, written_at_s

WORKERS = 2
TOTAL_STEPS = 1_000_000
ROWS_PER_STEP = 8
REAL_STEP = 20  # of the checkpoint that is trained
SENTENCES = 40_000
WAYS = ("ray", "torchrun")
# What a forged past is made of: a step a second, whose metrics come to storage every 30 s, as they do in a long run.
STEPS_PER_PART, STEP_S = 30, 1.0
POLL_S = 0.02
TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Resumed:
    """One resume. Seconds are from the start of the command, if nothing else is said."""

    way: str
    k: int
    round: int
    step: int  # of the checkpoint: k in the first round, then some more
    seconds: float  # to the end of the first step
    phases_s: dict[str, float]  # to the beginning of each phase
    step_time_s: float  # of the first step, which includes
    data_wait_s: float  # the wait for its rows
    steps_left_out: int  # between the checkpoint and the first step
    chain_agrees: bool  # the first step's samples are those of the plan, after those of all steps before
    load_average: float  # before it


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory(prefix="fleetune-bench-", dir=options.work) as folder:
        bench = Bench(pathlib.Path(folder), past=not options.no_past)
        bench.train_real()
        for k in options.steps:
            for way in options.ways:
                bench.forge(way, k)
        parts = [bench.parts_alone(options.ways[0], k, options.rounds) for k in options.steps]
        for part in parts:
            emit({"result": "parts", **part})
        results = []
        for number in range(options.rounds):
            for k, way in turns(options.steps, options.ways, number):
                results.append(bench.resume(way, k, number))
                emit({"result": "resume", **asdict(results[-1])})
        emit({**summary(results, parts), "past": not options.no_past})


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, nargs="+", default=[REAL_STEP, 1000, 100_000, 900_000], metavar="K")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--no-past", action="store_true", help="forge no metrics and events of the steps before")
    parser.add_argument("--smoke", action="store_true", help="one round of the smallest and the largest step")
    parser.add_argument("--work", help="folder for scratch files; the system's own if left out")
    options = parser.parse_args()
    options.steps = sorted(set(options.steps))
    if options.smoke:
        options.rounds, options.steps = 1, sorted({options.steps[0], options.steps[-1]})
    if not 0 < options.steps[0] <= options.steps[-1] <= TOTAL_STEPS - 50_000:
        parser.error(f"--steps must lie in 1..{TOTAL_STEPS - 50_000}: the run goes on a little from each")
    return options


def turns(steps: list[int], ways: list[str], number: int) -> Iterator[tuple[int, str]]:
    """Every step and way once; each round begins with another step."""
    first = number % len(steps)
    for k in steps[first:] + steps[:first]:
        for way in ways:
            yield k, way


class Command:
    """A program under way; its output goes to a file."""

    def __init__(self, command: list[str], log: pathlib.Path) -> None:
        self._log = log
        self.started_at = time.time()
        environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        with log.open("w") as output:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
            )

    def wait_until(self, done: Callable[[], bool]) -> None:
        while not done():
            if self._process.poll() is not None:
                raise SystemExit(f"it ended with {self._process.returncode} too soon:\n{self._log.read_text()[-6000:]}")
            if time.time() - self.started_at > TIMEOUT_S:
                self._process.terminate()
                raise SystemExit(f"it took more than {TIMEOUT_S:.0f} s:\n{self._log.read_text()[-6000:]}")
            time.sleep(POLL_S)

    def wait(self) -> None:
        self._process.wait(TIMEOUT_S)


class Bench:
    """The real run, the forged ones, and how they are resumed."""

    def __init__(self, folder: pathlib.Path, past: bool) -> None:
        self.folder, self.past = folder, past
        self.runs = folder / "runs"
        self.real = pathlib.Path()  # root of the real run
        self.plan: Any = None
        self.digests: Any = None
        self.lengths: Any = None

    def train_real(self) -> None:
        """Make model, text and prepared rows, and train up to a checkpoint."""
        model, text = make_model(self.folder / "model"), make_text(self.folder / "text.jsonl")
        spec_file = self.folder / "spec.json"
        spec_file.write_text(json.dumps(spec_of(self.runs, model, text), indent=1))
        spec = load_spec(str(spec_file))
        split = prepare(spec, str(model), engine="plain", say=say).split("train")
        self.plan = step_plan(spec, split)
        self.digests, self.lengths = row_digests(split.index.sample_ids), split.index.num_tokens
        say(f"training {REAL_STEP} steps, for a checkpoint ...")
        self.train_until_saved([str(spec_file)], "torchrun", "real-*", REAL_STEP, "real")
        self.real = next(self.runs.glob("real-*"))

    def train_until_saved(self, job: list[str], way: str, run: str, step: int, name: str) -> Command:
        """Train (or go on) until there is a checkpoint of `step`, then stop."""
        program = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={WORKERS}"]
        program += ["-m", "jobs.finetune"]
        if way == "ray":
            program = [str(pathlib.Path(sys.executable).with_name("fleetune")), "run"]
        command = Command([*program, *job, "--set", f"checkpoint.save_steps={step}"], self.folder / f"{name}.log")
        marker = f"{run}/checkpoints/step-{step:08d}/commit.json"
        command.wait_until(lambda: any(True for _ in self.runs.glob(marker)))
        (next(self.runs.glob(run)) / "stop").write_text("bench")
        command.wait()
        return command

    def root(self, way: str, k: int) -> pathlib.Path:
        return self.runs / f"{way}-{k}"

    def forge(self, way: str, k: int) -> None:
        """A run as it would be after k steps, out of the real one."""
        say(f"forging a run of {k:,} steps for {way} ...")
        paths = JobPaths(str(self.root(way, k)))
        shutil.copytree(self.real, paths.root, ignore=shutil.ignore_patterns("checkpoints", "metrics", "events"))
        real, folder = JobPaths(str(self.real)), pathlib.Path(paths.checkpoint(k))
        shutil.copytree(real.checkpoint(REAL_STEP), folder)
        commit = read_commit(real, REAL_STEP)
        chain = to_hex(chain_of(self.plan, self.digests, k))
        forged = commit.model_copy(update={"step": k, "optimizer_step": k, "chain": chain})
        (folder / "commit.json").write_text(forged.model_dump_json())
        if not self.past:
            return
        others = [self.root(other, k) for other in WAYS if other != way and self.root(other, k).exists()]
        if not others:
            self.forge_journals(paths, k)
        for other in others:
            for kind in ("metrics", "events"):
                shutil.copytree(other / kind, self.root(way, k) / kind, copy_function=os.link)

    def forge_journals(self, paths: JobPaths, k: int) -> None:
        """The metrics of k steps, and a sign of life of the driver every minute."""
        real = JobPaths(str(self.real))
        began = time.time() - k * STEP_S
        template = read_steps(real)[REAL_STEP - 1]
        for first in range(0, k, STEPS_PER_PART):
            last = min(first + STEPS_PER_PART, k)
            records = [{**template, "step": step + 1} for step in range(first, last)]
            write_part(paths.metrics, began + last * STEP_S, "rank-0", records)
        sign = read_part(real.events, part_names(real.events)[0])[0]
        for number in range(int(k * STEP_S / 60) + 1):
            write_part(paths.events, began + number * 60, "driver", [sign])

    def parts_alone(self, way: str, k: int, rounds: int) -> dict[str, Any]:
        """What of a resume has to do with k, each for itself in this process; seconds."""
        paths = JobPaths(str(self.root(way, k)))
        by_length = replace(self.plan, lengths=self.lengths)
        return {
            "k": k,
            "chain_s": timed(rounds, lambda: chain_of(self.plan, self.digests, k)),
            "chain_by_length_s": timed(rounds, lambda: chain_of(by_length, self.digests, k)),
            "metrics_parts": len(part_names(paths.metrics)),
            "list_metrics_s": timed(rounds, lambda: part_names(paths.metrics)),
            "read_all_metrics_s": timed(1, lambda: read_steps(paths)),
        }

    def resume(self, way: str, k: int, number: int) -> Resumed:
        paths = JobPaths(str(self.root(way, k)))
        step = committed_steps(paths)[-1]
        load = os.getloadavg()[0]
        job = ["--resume", paths.root]
        command = self.train_until_saved(job, way, f"{way}-{k}", step + 1, f"{way}-{k}-{number}")
        steps, events = new_records(paths.metrics, command), new_records(paths.events, command)
        first = min(steps, key=lambda record: record["step"])
        phases, end = read_events(events, step + 1)
        resumed = Resumed(
            way=way,
            k=k,
            round=number,
            step=step,
            seconds=round(end - command.started_at, 3),
            phases_s={name: round(at - command.started_at, 3) for name, at in phases.items()},
            step_time_s=round(first["step_time_s"], 3),
            data_wait_s=round(first["data_wait_s"], 3),
            steps_left_out=first["step"] - (step + 1),
            chain_agrees=first["chain"] == to_hex(chain_of(self.plan, self.digests, first["step"])),
            load_average=load,
        )
        say(f"round {number + 1}: {way}, {k:,} steps: {resumed.seconds:.2f} s  {resumed.phases_s}")
        return resumed


def read_events(events: list[Record], step: int) -> tuple[dict[str, float], float]:
    """When each phase first began, and when `step` ended; seconds since 1970.

    A save begins as its step ends, so its end and its duration tell that moment.
    """
    phases: dict[str, float] = {}
    end = None
    for event in map(Event.model_validate, events):
        if event.kind == "phase":
            phases.setdefault(event.data["phase"], event.at.timestamp())
        if event.kind == "checkpoint" and event.data["step"] == step:
            end = event.at.timestamp() - event.data["seconds"]
    if end is None:
        raise SystemExit(f"no event tells of the checkpoint of step {step}")
    phases.pop("save", None)
    return phases, end


def new_records(folder: str, command: Command) -> list[Record]:
    """What a command has written to a journal."""
    new = [name for name in part_names(folder) if written_at_s(name) >= command.started_at]
    return [record for name in new for record in read_part(folder, name)]


def write_part(folder: str, at_s: float, writer: str, records: list[Record]) -> None:
    """A part of a journal as it was written then; not flushed to the disk, which would take minutes."""
    os.makedirs(folder, exist_ok=True)
    with open(f"{folder}/{int(at_s * 1e9):020d}-{writer}.jsonl", "w") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def timed(rounds: int, work: Callable[[], Any]) -> float:
    """Median seconds of a few calls."""
    took = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return round(statistics.median(took), 4)


def spec_of(runs: pathlib.Path, model: pathlib.Path, text: pathlib.Path) -> dict[str, Any]:
    return {
        "name": "real",
        "model": {"path": str(model), "task": "causal-lm"},
        "data": {"train": str(text), "format": "text", "seq_len": 64},
        "train": {
            "max_steps": TOTAL_STEPS,
            "global_batch_size": ROWS_PER_STEP,
            "per_device_train_batch_size": ROWS_PER_STEP // WORKERS,
            "learning_rate": 1e-4,
            "bf16": False,
        },
        "resources": {"num_workers": WORKERS, "gpus_per_worker": 0},
        "storage_path": str(runs),
    }


def make_model(folder: pathlib.Path) -> pathlib.Path:
    """A tiny Llama with random weights, and a tokenizer of bytes: what is measured is not its work."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<end>", "<start>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
    return folder


def make_text(file: pathlib.Path) -> pathlib.Path:
    """Short sentences; some are packed into each row."""
    draw = random.Random(0)
    words = ["the", "film", "was", "not", "so", "bad", "but", "long", "and", "a", "little", "slow", "at", "its", "end"]
    sentences = (" ".join(draw.choices(words, k=draw.randint(2, 9))) for _ in range(SENTENCES))
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences))
    return file


def summary(results: list[Resumed], parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians for each way and k, and how the largest k compares with the smallest."""
    ways = [way for way in WAYS if any(result.way == way for result in results)]
    steps = sorted({result.k for result in results})
    seconds = {(one.way, one.k, one.round): one.seconds for one in results}
    rounds = sorted({one.round for one in results})
    of_way: dict[str, Any] = {}
    for way in ways:
        medians = {str(k): spread([seconds[way, k, number] for number in rounds]) for k in steps}
        ratios = [seconds[way, steps[-1], number] / seconds[way, steps[0], number] for number in rounds]
        of_way[way] = {"seconds": medians, "large_over_small": spread(ratios)}
        shown = "  ".join(f"{k:,}: {medians[str(k)]['median']:.2f} s" for k in steps)
        say(f"{way:9} {shown}  ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    for part in parts:
        say(
            f"{part['k']:,} steps: chain {part['chain_s']:.3f} s, grouped by length {part['chain_by_length_s']:.3f} s; "
            f"metrics in {part['metrics_parts']:,} parts: all listed in {part['list_metrics_s']:.3f} s, read in "
            f"{part['read_all_metrics_s']:.3f} s"
        )
    return {
        "result": "summary",
        **of_way,
        "parts": parts,
        "no_step_left_out": all(one.steps_left_out == 0 for one in results),
        "chain_agrees": all(one.chain_agrees for one in results),
        "rounds": len(rounds),
        "workers": WORKERS,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
        "load_average_before_runs_max": max(one.load_average for one in results),
    }


if __name__ == "__main__":
    main()
