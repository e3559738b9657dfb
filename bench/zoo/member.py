"""A process of the zoo: stays alive, takes one order after another as a JSON line, and answers each with a line.

`python -m bench.zoo.member RANK WORLD_SIZE PORT LOG`. Orders with `make` and `plain` go to gangs of one process,
`train` to gangs of any size, whose processes all get the same line.
"""

from __future__ import annotations

import gc
import json
import os
import pathlib
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from bench.zoo.tiny import save_tokenizer, tiny_config
from jobs.data.prepared import Prepared
from jobs.data.stream import StepRows, Stream, plain_steps
from jobs.errors import InputError
from jobs.load import load_spec
from jobs.quiet import user_stream
from jobs.spec import Spec
from jobs.training import loop
from jobs.training.gang import Orders
from jobs.training.job import Job
from jobs.validate import validate
from tests.support.reference import plain_losses

STEPS = 5
MOST_PARAMETERS = 50_000_000


@dataclass
class ZooGang:
    """As torchrun's gang, but nobody watches for orders: a run stops at a step that is known before."""

    rank: int
    world_size: int
    stop_at: int | None
    local_rank: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _step: int = 0

    def steps(self, stream: Stream, start: int) -> Iterator[StepRows]:
        for rows in plain_steps(stream, start):
            self._step = rows.step + 1
            yield rows

    def orders(self) -> Orders:
        return Orders(stop=self.stop_at is not None and self._step >= self.stop_at)


def make(order: dict[str, Any]) -> dict[str, Any]:
    """Save a tiny model and its tokenizer, and check the job as a driver does before it starts workers."""
    from safetensors.torch import save_file

    folder = pathlib.Path(order["model"])
    spec = load_spec(order["spec"])
    config = tiny_config(order["type"])
    config.architectures = [order["class"]]
    if spec.num_labels is not None:
        config.num_labels = spec.num_labels
    save_tokenizer(folder)
    answer: dict[str, Any] = {}
    try:
        torch.manual_seed(0)
        model = auto_class(spec).from_config(config)
        answer["parameters"] = sum(parameter.numel() for parameter in model.parameters())
        if answer["parameters"] > MOST_PARAMETERS:
            return {"not_made": f"{answer['parameters']:,} parameters"}
        model.save_pretrained(folder)
        config.save_pretrained(folder)  # a model of a part of it has saved that part's
    except Exception as error:  # a class that cannot be built must be refused; that is seen below
        answer["not_built"] = f"{type(error).__name__}: {error}"
        config.save_pretrained(folder)
        save_file({"w": torch.zeros(1)}, folder / "model.safetensors")
    return answer | refused(spec)


def refused(spec: Spec) -> dict[str, Any]:
    from jobs.training.ready import ready_data

    try:
        validate(spec)
    except InputError as error:
        return {"refused": str(error), "by": "validate"}
    try:
        return {"prepared": ready_data(spec, "plain", lambda *given, **named: None).root}
    except InputError as error:
        return {"refused": str(error), "by": "driver"}


def auto_class(spec: Spec) -> Any:
    from jobs.training.model import model_class

    return model_class(spec)


def plain(order: dict[str, Any]) -> dict[str, Any]:
    """Losses of a plain PyTorch loop over the same rows."""
    return {"losses": plain_losses(load_spec(order["spec"]), Prepared.open(order["prepared"]), STEPS).loss}


def train(order: dict[str, Any]) -> dict[str, Any]:
    """Train through the product's own loop, from the newest checkpoint if there is one."""
    job = Job(load_spec(order["spec"]), order["run"], order["prepared"], order["model"])
    gang = ZooGang(dist.get_rank(), dist.get_world_size(), order["stop_at"])
    reporter = loop.Reporter(job.paths, gang.rank)
    run = None
    try:
        run = loop.set_up(job, gang, reporter)
        state = loop.train_steps(run, loop.restored(run))
        if order["export"]:
            loop.finish(run, state)
        return {"unpack": run.unpack, "step": state.step}
    finally:
        if run is not None:
            run.checkpoints.finish(60.0)
            run.engine.module.destroy()
        reporter.close()


ORDERS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"make": make, "plain": plain, "train": train}


def answer_to(order: dict[str, Any]) -> dict[str, Any]:
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    print(f"== {order}", flush=True)
    try:
        return ORDERS[order["do"]](order)
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}
    finally:
        unset_hf_deepspeed_config()
        gc.collect()


def main() -> None:
    rank, world_size, port, log = sys.argv[1:]
    answers = user_stream()
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(target, 1)
    os.dup2(target, 2)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ.update(RANK=rank, WORLD_SIZE=world_size, LOCAL_RANK=rank, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=int(rank), world_size=int(world_size))
    for line in sys.stdin:
        answers.write(json.dumps(answer_to(json.loads(line))) + "\n")
        answers.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
