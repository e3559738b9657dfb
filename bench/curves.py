"""Make the table of real curves on which `bench/search.py` compares algorithms.

    python -m bench.curves minilm [--rates 1e-5 ...] [--warmups 0 0.1 0.2] [--seeds 1 2 3] [--gangs 2] [--out FILE]

Trains a task once for each learning rate, warmup and seed on warm gangs, and writes one JSON line for each of these
trials: the held-out loss at every rung and at the end, the one that a cool-down would give at the rung, and the
training loss of every step. Trials that FILE has already are left out, so that it may be stopped and started again.
Models and texts come from Python packages (see `bench/models.py`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import queue
import shutil
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from bench import models
from jobs.run.paths import JobPaths
from jobs.run.record import read_steps
from jobs.search.rules.varying import trial_spec
from jobs.spec.load import load_sweep
from jobs.spec.sweep import SweepSpec

DATA: Final = pathlib.Path(__file__).parent / "data"
RATES: Final = tuple(1e-5 * 10 ** (place / 4) for place in range(9))  # 1e-5 to 1e-3
WARMUPS: Final = (0.0, 0.1, 0.2)
SEEDS: Final = (1, 2, 3)
_COOLDOWN: Final = 0.1  # of a run's steps


@dataclass(frozen=True)
class Task:
    """A job whose response to learning rate and warmup is recorded.

    Attributes:
        base: its spec, but for the model and the data.
        rungs: shares of a run at which the held-out loss is taken.
    """

    base: dict[str, Any]
    rungs: tuple[float, ...] = (0.25, 0.5)

    @property
    def steps(self) -> int:
        return int(self.base["train"]["max_steps"])

    @property
    def cooldown(self) -> int:
        return max(1, round(_COOLDOWN * self.steps))

    @property
    def stops(self) -> list[int]:
        return [max(1, round(rung * self.steps)) for rung in self.rungs]


_RESOURCES = {"num_workers": 1, "gpus_per_worker": 0, "cpus_per_worker": 1}
TASKS: Final = {
    "minilm": Task(
        {
            "model": {"task": "sequence-classification"},
            "data": {
                "format": "classification",
                "labels": ["negative", "positive"],
                "eval_fraction": 0.2,
                "seq_len": 64,
            },
            "train": {"max_steps": 50, "global_batch_size": 32, "per_device_train_batch_size": 32},
            "eval": {"metrics": ["accuracy", "loss"], "per_device_eval_batch_size": 64},
        }
    ),
    "smollm2": Task(
        {
            "model": {"task": "causal-lm"},
            "data": {"format": "chat", "eval_fraction": 0.015, "seq_len": 128},
            "train": {"max_steps": 20, "global_batch_size": 4, "per_device_train_batch_size": 4},
            "eval": {"metrics": ["loss"], "per_device_eval_batch_size": 4},
        }
    ),
}


def main() -> int:
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=sorted(TASKS))
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--warmups", type=float, nargs="+", default=WARMUPS)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--gangs", type=int, default=2, help="gangs of one worker with one thread each")
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    out = options.out or DATA / f"{options.task}.jsonl"
    wanted = [
        {"learning_rate": float(f"{rate:.3g}"), "warmup_ratio": warmup, "seed": seed}
        for seed in options.seeds
        for warmup in options.warmups
        for rate in options.rates
    ]
    known = {key_of(json.loads(line)) for line in out.read_text().splitlines()} if out.exists() else set()
    missing = [values for values in wanted if key_of(values) not in known]
    with tempfile.TemporaryDirectory(prefix="fleetune-curves-") as folder:
        record(options.task, missing, out, pathlib.Path(folder), options.gangs)
    return 0


def key_of(values: dict[str, Any]) -> tuple[float, float, int]:
    return values["learning_rate"], values["warmup_ratio"], values["seed"]


def sweep_of(name: str, folder: pathlib.Path, base_seed: int = 42, **changes: Any) -> SweepSpec:
    """A sweep over the task's rate and warmup, its files in the folder."""
    task = TASKS[name]
    model, data = (models.minilm(), models.reviews(2000)) if name == "minilm" else (
        models.smollm2(), models.dialogues()
    )  # fmt: skip
    base = {
        **task.base,
        "name": name,
        "seed": base_seed,
        "model": {"path": str(model), **task.base["model"]},
        "data": {"train": str(data), **task.base["data"]},
        "checkpoint": {"save_total_limit": 1},
        "resources": _RESOURCES,
        "storage_path": str(folder / "runs"),
    }
    space = {
        "learning_rate": {"min": RATES[0], "max": RATES[-1], "log": True},
        "warmup_ratio": {"min": 0.0, "max": 0.2},
    }
    sweep = {"kind": "sweep", "name": name, "base": base, "space": space, "rungs": list(task.rungs), "then": "nothing"}
    file = folder / "sweep.json"
    file.write_text(json.dumps({**sweep, **changes}))
    loaded = load_sweep(str(file))
    assert loaded is not None
    return loaded


def record(name: str, trials: list[dict[str, Any]], out: pathlib.Path, folder: pathlib.Path, num_gangs: int) -> None:
    """Train the trials on `num_gangs` gangs, and append one line for each to `out`."""
    from cluster.ray.connection import connected
    from jobs.planning import gang_of
    from jobs.preflight.ready import ready_data
    from jobs.run.events import Announcer
    from jobs.run.progress import NoProgress
    from jobs.search.driver.gangs import Gangs
    from jobs.training.worker_input import Job

    sweep = sweep_of(name, folder)
    base = sweep.base
    waiting: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    for values in [*trials, *[None] * num_gangs]:
        waiting.put(values)
    paths = JobPaths(str(folder / "sweep"))
    with contextlib.closing(Announcer(paths, NoProgress())) as announce, connected(None, gang_of(base), None, ()):
        prepared = ready_data(base, "ray", announce)
        gangs = Gangs(Job(base, str(folder / "driver"), prepared.root, base.model.path), num_gangs, True, announce)
        lock = threading.Lock()
        held_out = int(prepared.split("eval").index.num_tokens.sum())

        def work() -> None:
            while (values := waiting.get()) is not None:
                run = JobPaths(str(folder / "trial-{learning_rate}-{warmup_ratio}-{seed}".format(**values)))
                curve = curve_of(TASKS[name], gangs, run, trial_spec(base, values))
                line = json.dumps({**values, **curve, "evaluation_tokens": held_out})
                shutil.rmtree(run.root)
                with lock, out.open("a") as file:
                    file.write(line + "\n")
                print(line[:300], file=sys.stderr, flush=True)

        try:
            with ThreadPoolExecutor(num_gangs) as pool:
                for worked in [pool.submit(work) for _ in range(num_gangs)]:
                    worked.result()
        finally:
            gangs.end()


def curve_of(task: Task, gangs: Any, run: JobPaths, spec: Any) -> dict[str, Any]:
    """Train one trial from rung to rung, and return its losses."""
    from jobs.run.attempts import take_run
    from jobs.training.mailbox import GangTask

    driver = take_run(run)
    raw, cooled, tokens = dict[int, float](), dict[int, float](), dict[int, int]()
    failed = None
    # At a rung twice: with a cool-down, a gang scores nothing else.
    orders = [(stop, steps) for stop in task.stops for steps in (0, task.cooldown)]
    for until, cooldown in [*orders, (None, 0)]:
        order = GangTask(action="train", run=run.root, spec=spec, until=until, driver=driver, cooldown_steps=cooldown)
        answer = gangs.carry_out(order)
        if answer.status == "failed":
            failed = answer.reason
            break
        tokens[answer.step] = tokens.get(answer.step, 0) + answer.tokens
        if answer.cooled:
            cooled[answer.step] = answer.cooled["eval_loss"]
        else:
            raw[answer.step] = answer.metrics["eval_loss"]
    losses = [step["loss"] for step in read_steps(run)]
    found = {
        "loss": {step: round(value, 5) for step, value in raw.items()},
        "cooled": {step: round(value, 5) for step, value in cooled.items()},
        "tokens": tokens,
        "training_loss": [round(loss, 4) for loss in losses],
    }
    return found if failed is None else {**found, "failed": failed}


if __name__ == "__main__":
    sys.exit(main())
