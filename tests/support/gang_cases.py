"""Run several small jobs one after another in one gang.

`tests.support.forker` starts the gang, or `torchrun --nproc_per_node N gang_cases.py CASES.json` does.

A case is {"name", "spec" (JSON file), "run_root", "prepared_root", "logits" (file to write, or null), "stop_at" (step
after which somebody asks it to stop, or null), "faults" ({step: {fault: whether}}, see `faulty`)}. The loop is the real
one; rank 0 leaves the logits of the trained model on the first rows, to be compared by another process.

Where CASES.json holds an object and no list, it is a warm gang: {"spec", "gang_root", "prepared_root", "memory",
"poisoned" (roots of runs whose loss is NaN)}.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import psutil
import torch
import torch.distributed as dist

from cluster.errors import MetricFailed, RunFailed
from cluster.settings import TorchrunWorld, torchrun_world
from jobs.data.order.stream import StepRows, Stream
from jobs.data.prepared import Prepared
from jobs.run.paths import JobPaths
from jobs.spec.load import load_spec
from jobs.training.loop import loop, step
from jobs.training.loop.loss import loss_sum
from jobs.training.loop.warm import serve
from jobs.training.mailbox import Answer, GangTask, MessageFolder
from jobs.training.model import export
from jobs.training.model.batch import collate, model_logits
from jobs.training.worker_context import Requests, TorchrunWorkerContext
from jobs.training.worker_input import Job
from tests.support.faulty import FaultyFileSystem, register
from tests.support.one_step import make_one_step


class ScriptedWorker(TorchrunWorkerContext):
    """Asked to stop during the step that leads to `stop_at`; faults of the storage begin and end before given steps.

    A checkpoint is complete before the step that ends with the next one, and before a fault, unless the storage is
    stalled: which checkpoints a case has does not depend on the load of the machine.
    """

    def __init__(
        self, paths: JobPaths, world: TorchrunWorld, stop_at: int | None, faults: dict[str, dict[str, bool]]
    ) -> None:
        super().__init__(paths, 0, world)
        self._stop_at, self._faults = stop_at, faults
        self.step = 0
        self.before_step: Callable[[], None] = lambda: None
        self.save_steps: int | None = None
        self.writes: Callable[[], bool] = lambda: False

    def steps(self, stream: Stream, start: int, rewound: bool = False) -> Iterator[StepRows]:
        for rows in super().steps(stream, start, rewound):
            self.step = rows.step + 1
            faults = self._faults.get(str(self.step), {})
            if faults or (self.save_steps is not None and self.step % self.save_steps == 0):
                self._wait_for_the_checkpoint()
            dist.barrier()
            for fault, on in faults.items():
                flag = FaultyFileSystem.control / fault
                flag.touch() if on else flag.unlink(missing_ok=True)
            dist.barrier()
            self.before_step()
            yield rows

    def _wait_for_the_checkpoint(self) -> None:
        while self.writes() and not (FaultyFileSystem.control / "stalled").exists():
            time.sleep(0.01)

    def requests(self) -> Requests:
        return Requests(stop=self._stop_at is not None and self.step >= self._stop_at)


def poisoning(worker: ScriptedWorker, steps: Sequence[int], poison: str) -> Callable[..., torch.Tensor]:
    """A loss that is poisoned in the given steps: see `Case.poison`."""

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if worker.step in steps and poison == "logits":
            logits = logits * 50
        elif worker.step in steps and worker.rank == 1:
            logits.register_hook(lambda slope: slope * float("nan"))
        return loss_sum(logits, targets)

    return loss


def damaging(worker: ScriptedWorker, run: Any, step: int) -> Callable[[], None]:
    """Before a step: multiply all weights by 4, the first time."""
    partitions, left = run.engine.partitions, [True]

    @torch.no_grad()
    def damage() -> None:
        if worker.step == step and left.pop():
            left.append(False)
            for flat in partitions.flats:
                flat.mul_(4)
            partitions._refresh()

    return damage


def run_case(case: dict[str, Any]) -> None:
    world = torchrun_world()
    assert world is not None
    spec = load_spec(case["spec"])
    job = Job(spec, case["run_root"], case["prepared_root"], spec.model.path)
    worker = ScriptedWorker(job.paths, world, case["stop_at"], case["faults"])
    step.loss_sum = poisoning(worker, case.get("poisoned", ()), case.get("poison", "nan"))
    if case["name"] in ("gpt2", "stage 2"):  # read the export back sharded over the gang, as a large model is
        export.ONE_PROCESS_BYTES = 0
    with contextlib.closing(loop.Reporter(job.paths, worker.rank)) as reporter:
        run = loop.set_up(job, worker, reporter)
        worker.save_steps, worker.writes = spec.checkpoint.save_steps, lambda: run.checkpoints.busy
        if case.get("damaged_at"):
            worker.before_step = damaging(worker, run, case["damaged_at"])
        try:
            state = loop.begun(run, loop.restored(run))
            if state.step < run.plan.total_steps:
                state = loop.train_steps(run, state)
        except (RunFailed, MetricFailed) as error:
            if not case.get("keep_failure"):
                raise
            pathlib.Path(case["failure"]).write_text(str(error))
        if case["logits"]:
            loop.finish(run, state)
            rows = Prepared.open(job.prepared_root).split("train").read_rows(np.arange(3))
            batch = collate(rows, spec.model.task, run.engine.pad_token_id, worker.device)
            run.engine.module.eval()
            with torch.no_grad():
                logits = model_logits(run.engine.module, batch, spec.model.task)
            if worker.rank == 0:
                np.save(case["logits"], logits.float().numpy())


def run_warm(case: dict[str, Any], world: TorchrunWorld) -> None:
    """A warm gang, whose orders lie in its mailbox already. `memory`: a file for rank 0's resident MB after each."""
    spec = load_spec(case["spec"])
    job = Job(spec, case["gang_root"], case["prepared_root"], spec.model.path)
    worker = TorchrunWorkerContext(job.paths, 0, world)
    resident: list[float] = []
    answered, awaited, loss = MessageFolder.put, MessageFolder.wait, step.loss_sum

    def noting(self: MessageFolder[Answer], number: int, answer: Answer) -> None:
        resident.append(psutil.Process().memory_info().rss / 1e6)
        answered(self, number, answer)

    def poisoned(self: MessageFolder[GangTask], number: int) -> GangTask:
        order = awaited(self, number)
        step.loss_sum = (lambda *of: loss(*of) * float("nan")) if order.run in case["poisoned"] else loss
        return order

    MessageFolder.put, MessageFolder.wait = noting, poisoned  # type: ignore[method-assign,assignment]
    serve(job, worker, 1)
    if worker.rank == 0:
        pathlib.Path(case["memory"]).write_text(json.dumps(resident))


def main(file: str, store: str = "env://") -> None:
    world = torchrun_world()
    assert world is not None
    dist.init_process_group("gloo", init_method=store, rank=world.rank, world_size=world.world_size)
    listing = pathlib.Path(file)
    faults = listing.parent / "now"
    faults.mkdir(exist_ok=True)
    register(faults)
    cases = json.loads(listing.read_text())
    for case in cases if isinstance(cases, list) else []:
        run_case(case)
    if isinstance(cases, dict) and "result" in cases:
        make_one_step(cases)
    elif isinstance(cases, dict):
        run_warm(cases, world)
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # see jobs.finetune


if __name__ == "__main__":
    main(sys.argv[1])
