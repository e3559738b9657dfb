"""Real tokens/s of the training loop under torchrun and under Ray, beside plain DeepSpeed and the Hugging Face Trainer.

    python -m bench.train [--rounds 5] [--steps 30] [--smoke]

Lines for people go to stderr, one JSON object for each result to stdout; the last one is the summary.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from bench import models
from jobs.data.preparation.prepare import prepare
from jobs.spec.load import load_spec
from jobs.storage.journal import Record, read_journal

ROOT = pathlib.Path(__file__).resolve().parent.parent
WORKERS = 2
LAYERS = 4
WARMUP_STEPS = 5
BASELINE_ROUNDS = 3  # the two stock loops run in so many of the rounds
POLL_S = 0.5
# Steps that are left out at the end of the CPU window: it is closed a poll late, and must not reach into the export.
LAST_STEPS = 2
RUN_TIMEOUT_S = 900.0
KINDS = ("torchrun", "ray", "deepspeed", "trainer")
PACKAGES = ("fleetune", "ray", "torch", "deepspeed", "transformers", "accelerate")

Cpu = dict[str, float]  # CPU seconds by the name of a process
ProcessTimes = dict[tuple[int, float], tuple[str, float]]  # (pid, start) -> (name, CPU seconds so far)


@dataclass(frozen=True)
class Measured:
    """One run."""

    kind: str
    round: int
    tokens_per_s: float  # tokens without padding of the steps after the warm-up, by their time
    median_step_s: float
    data_wait_s: float | None  # mean over the same steps
    last_loss: float | None
    first_step_after_s: float  # from the start of the command until the first step is in the metrics
    wall_s: float
    cpu_window_s: float
    cpu_window_steps: int
    cpu_seconds: Cpu  # over that window, by process
    load_average: float  # before the run


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory(prefix="fleetune-bench-", dir=options.work) as folder:
        bench = Bench(pathlib.Path(folder), options.steps)
        bench.prepare()
        results: list[Measured] = []
        for number, kind in plan_of_runs(options.rounds, options.only):
            results.append(bench.run(kind, number))
            emit({"result": "run", **asdict(results[-1])})
        emit(summary(results, options.steps))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="pairs of a run under torchrun and one under Ray")
    parser.add_argument("--steps", type=int, default=30, help=f"steps of a run, {WARMUP_STEPS} of them warm-up")
    parser.add_argument("--smoke", action="store_true", help="one round of few steps: does it run at all?")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), help="run these kinds only")
    parser.add_argument("--work", help="folder for scratch files; the system's own if left out")
    options = parser.parse_args()
    if options.smoke:
        options.rounds, options.steps = 1, WARMUP_STEPS + LAST_STEPS + 3
    if options.steps < WARMUP_STEPS + LAST_STEPS + 2:
        parser.error(f"--steps {options.steps} leaves nothing to measure: at least {WARMUP_STEPS + LAST_STEPS + 2}")
    return options


def plan_of_runs(rounds: int, kinds: list[str]) -> Iterator[tuple[int, str]]:
    """(round, kind): torchrun, Ray, torchrun, Ray, ...; the stock loops in between, in rounds spread over the whole."""
    with_baselines = {round(part * (rounds - 1) / max(BASELINE_ROUNDS - 1, 1)) for part in range(BASELINE_ROUNDS)}
    for number in range(rounds):
        for kind in KINDS:
            if kind in kinds and (kind in ("torchrun", "ray") or number in with_baselines):
                yield number, kind


@dataclass(frozen=True)
class Look:
    """The processes of a run at one moment."""

    step: int  # steps that were done
    at: float  # of the monotonic clock
    times: ProcessTimes


class Bench:
    """The spec, the prepared rows, and how each kind of run is started."""

    def __init__(self, folder: pathlib.Path, steps: int) -> None:
        self.folder, self.steps = folder, steps
        self.spec_file = folder / "spec.json"
        self.prepared = ""

    def prepare(self) -> None:
        """Fetch model and text, write the spec, tokenise and pack once for all runs."""
        say("fetching and converting the model and the text (once) ...")
        model, text = models.smollm2_slice(LAYERS), models.dialogues()
        content = {
            "name": "bench",
            "model": {"path": str(model), "task": "causal-lm"},
            "data": {"train": str(text), "format": "chat", "seq_len": 256, "packing": True},
            "train": {
                "max_steps": self.steps,
                "per_device_train_batch_size": 2,
                "global_batch_size": 4,
                "learning_rate": 2e-5,
                "bf16": False,
            },
            "eval": {"eval_on_start": False},
            "resources": {"num_workers": WORKERS, "gpus_per_worker": 0, "cpus_per_worker": 1},
            "storage_path": str(self.folder / "runs"),
        }
        self.spec_file.write_text(json.dumps(content, indent=1))
        rows = prepare(load_spec(str(self.spec_file)), str(model), engine="plain", say=say)
        self.prepared = rows.root

    def command(self, kind: str, name: str) -> list[str]:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={WORKERS}"]
        ours = ["-m", "jobs.finetune", str(self.spec_file), "--set", f"name={name}"]
        if kind == "torchrun":
            return [*torchrun, *ours]
        if kind == "ray":
            return [sys.executable, *ours]
        script = str(ROOT / "bench" / "baselines.py")
        metrics = self.folder / "runs" / f"{name}-stock" / "metrics"
        return [*torchrun, script, kind, str(self.spec_file), self.prepared, str(metrics)]

    def records(self, name: str) -> list[Record]:
        """The metrics of a run so far; its directory is called by its name, and the time."""
        return [record for folder in self.folder.glob(f"runs/{name}-*/metrics") for record in read_journal(str(folder))]

    def parts(self, name: str) -> int:
        return len(list(self.folder.glob(f"runs/{name}-*/metrics/*")))

    def run(self, kind: str, number: int) -> Measured:
        name = f"{kind}-{number}"
        command = self.command(kind, name)
        say(f"round {number + 1}: {kind} ...")
        load, started = os.getloadavg()[0], time.monotonic()
        environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        log = self.folder / f"{name}.log"
        with log.open("w") as output:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
            first_after, looks = self.watch(process, name, started)
            code = process.wait()
        if code != 0:
            raise SystemExit(f"{' '.join(command)} ended with {code}:\n{log.read_text()[-6000:]}")
        wall = time.monotonic() - started
        if len(looks) < 2:
            raise SystemExit(f"{name}: its steps were over before its processes were looked at: raise --steps")
        steps = sorted(self.records(name), key=lambda record: record["step"])[WARMUP_STEPS:]
        measured = Measured(
            kind=kind,
            round=number,
            tokens_per_s=sum(step["tokens"] for step in steps) / sum(step["step_time_s"] for step in steps),
            median_step_s=statistics.median(step["step_time_s"] for step in steps),
            data_wait_s=mean_of(steps, "data_wait_s"),
            last_loss=steps[-1].get("loss"),
            first_step_after_s=first_after,
            wall_s=wall,
            cpu_window_s=looks[1].at - looks[0].at,
            cpu_window_steps=looks[1].step - looks[0].step,
            cpu_seconds=spent(looks[0].times, looks[1].times),
            load_average=load,
        )
        say(
            f"round {number + 1}: {kind}: {measured.tokens_per_s:.1f} tokens/s, step {measured.median_step_s:.2f} s, "
            f"first step after {first_after:.0f} s, {wall:.0f} s in all"
        )
        return measured

    def watch(self, process: subprocess.Popen[bytes], name: str, started: float) -> tuple[float, list[Look]]:
        """Wait for the run, looking at its processes twice: after the warm-up and near the last step.

        Returns:
            Seconds until the first step was seen, and the two looks.
        """
        first_after, parts = 0.0, 0
        looks: list[Look] = []
        while process.poll() is None:
            time.sleep(POLL_S)
            if time.monotonic() - started > RUN_TIMEOUT_S:
                process.terminate()
                raise SystemExit(f"{name} took more than {RUN_TIMEOUT_S:.0f} s")
            if (seen := self.parts(name)) == parts:  # read only when there is more: looking must cost nothing
                continue
            parts = seen
            done = max((record["step"] for record in self.records(name)), default=0)
            first_after = first_after or (time.monotonic() - started if done else 0.0)
            if done >= (WARMUP_STEPS if not looks else self.steps - LAST_STEPS) and len(looks) < 2:
                looks.append(Look(done, time.monotonic(), cpu_times(process.pid)))
        return first_after, looks


def cpu_times(pid: int) -> ProcessTimes:
    """A process and all its descendants."""
    root = psutil.Process(pid)
    times: ProcessTimes = {}
    for process in [root, *root.children(recursive=True)]:
        try:
            with process.oneshot():
                used = process.cpu_times()
                key = (process.pid, process.create_time())
                times[key] = (name_of(process.cmdline() or [process.name()]), used.user + used.system)
        except psutil.Error:
            continue
    return times


def spent(before: ProcessTimes, after: ProcessTimes) -> Cpu:
    """CPU seconds by process name, most first. What a process that has ended in between used is not known."""
    total: Cpu = {}
    for key, (name, used) in after.items():
        total[name] = total.get(name, 0.0) + used - before.get(key, ("", 0.0))[1]
    return {name: round(used, 2) for name, used in sorted(total.items(), key=lambda item: -item[1])}


def name_of(command: list[str]) -> str:
    """`worker` for a process that trains, else what it is: raylet, gcs_server, TrainController, dashboard/agent.py."""
    line = " ".join(command)
    if line.startswith("ray::"):
        actor = re.split(r"[.(\s]", line.removeprefix("ray::"))[0]
        return "worker" if actor == "RayTrainWorker" else actor
    program = os.path.basename(command[0])
    if not program.startswith("python"):
        return program
    if "torch.distributed.run" in command:
        return "torchrun"
    if script := re.search(r"/ray/(?:_private/|autoscaler/)?((?:\w+/)*\w+\.py)", line):
        return script.group(1)
    return "driver" if "jobs.finetune" in command and "name=ray-" in line else "worker"


def mean_of(steps: list[Record], key: str) -> float | None:
    values = [step[key] for step in steps if key in step]
    return statistics.mean(values) if values else None


def summary(results: list[Measured], steps: int) -> dict[str, Any]:
    """Medians of all kinds, the ratio of the paired rounds, and where Ray's CPU time goes."""
    kinds = [kind for kind in KINDS if any(result.kind == kind for result in results)]
    rates = {kind: spread([result.tokens_per_s for result in results if result.kind == kind]) for kind in kinds}
    by_round = {(result.round, result.kind): result.tokens_per_s for result in results}
    rounds = sorted({result.round for result in results})
    ratios = [
        by_round[number, "ray"] / by_round[number, "torchrun"]
        for number in rounds
        if (number, "ray") in by_round and (number, "torchrun") in by_round
    ]
    on_ray = [result for result in results if result.kind == "ray"]
    for kind in kinds:
        say(f"{kind:10} {rates[kind]['median']:7.1f} tokens/s  ({rates[kind]['min']:.1f} to {rates[kind]['max']:.1f})")
    if ratios:
        say(f"Ray / torchrun: median {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}")
    shares = cpu_shares(on_ray)
    for name, share in shares.items():
        say(f"{name:28} {100 * share:6.1f} % of a core")
    own = sum(share for name, share in shares.items() if name != "worker")
    if on_ray:
        say(f"{'all but the workers':28} {100 * own:6.1f} % of a core, of {os.cpu_count()} cores")
    return {
        "result": "summary",
        "ray_over_torchrun": spread(ratios) | {"rounds": [round(ratio, 4) for ratio in ratios]} if ratios else None,
        "tokens_per_s": rates,
        "ray_cpu_cores": shares,
        "ray_own_cpu_cores": round(own, 4) if on_ray else None,
        "worker_cpu_s_per_step": {kind: worker_cpu_per_step(results, kind) for kind in kinds},
        "steps": steps,
        "warmup_steps": WARMUP_STEPS,
        "workers": WORKERS,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
        "load_average_at_start": results[0].load_average,
        "load_average_before_runs_max": max(result.load_average for result in results),
    }


def cpu_shares(results: list[Measured]) -> Cpu:
    """Median CPU seconds per second, by process name, most first."""
    names = {name for result in results for name in result.cpu_seconds}
    shares = {
        name: statistics.median(result.cpu_seconds.get(name, 0.0) / result.cpu_window_s for result in results)
        for name in names
    }
    return {name: round(share, 4) for name, share in sorted(shares.items(), key=lambda item: -item[1])}


def worker_cpu_per_step(results: list[Measured], kind: str) -> float:
    """CPU seconds of all workers together; under Ray, what its threads in them use is a part of it."""
    used = [result.cpu_seconds["worker"] / result.cpu_window_steps for result in results if result.kind == kind]
    return round(statistics.median(used), 3)


def spread(values: list[float]) -> dict[str, float]:
    middle, low, high = statistics.median(values), min(values), max(values)
    return {"median": round(middle, 4), "min": round(low, 4), "max": round(high, 4)}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def emit(record: dict[str, Any]) -> None:
    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
