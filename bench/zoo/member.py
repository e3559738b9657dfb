"""A process of the zoo: stays alive, takes one order after another, and answers each.

Orders with `make`, `plain` and `rebuild` go to gangs of one process, `train` to gangs of any size, whose processes all
get the same order. Importing this module imports everything that an order needs: all members are forked from it.
"""

from __future__ import annotations

import gc
import os
import pathlib
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
import transformers.conversion_mapping
import transformers.integrations.deepspeed
import transformers.modeling_utils
from safetensors.torch import load_file, save_file

from bench.zoo.tiny import save_tokenizer, tiny_config
from cluster.errors import InputError
from jobs.data.order.stream import StepRows, Stream, plain_steps
from jobs.data.prepared import Prepared
from jobs.preflight.cache import remember_tried
from jobs.preflight.dry_run import check_model_runs
from jobs.preflight.ready import ready_data
from jobs.preflight.validate import validate
from jobs.remedies.hang import Doing
from jobs.run.paths import JobPaths
from jobs.spec.finetune import Spec
from jobs.spec.load import load_spec
from jobs.storage.journal import read_journal
from jobs.training.checkpoint.to_model import export_run
from jobs.training.loop import loop
from jobs.training.model.engine import import_deepspeed
from jobs.training.model.load import model_class
from jobs.training.worker_context import Requests, WorkerContext
from jobs.training.worker_input import Job
from tests.support.reference import plain_losses

STEPS = 5
MOST_PARAMETERS = 50_000_000

import_deepspeed(torch.device("cpu"))


@dataclass
class ZooWorker(WorkerContext):
    """As torchrun's gang, but nobody watches for orders: a run stops at a step that is known before."""

    rank: int
    world_size: int
    stop_at: int | None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    node: str = os.uname().nodename
    _step: int = 0

    def steps(self, stream: Stream, start: int, rewound: bool = False) -> Iterator[StepRows]:
        for rows in plain_steps(stream, start):
            self._step = rows.step + 1
            yield rows

    def mark(self, doing: Doing) -> None:
        """Do nothing: no driver watches this process for hangs."""

    def requests(self) -> Requests:
        return Requests(stop=self.stop_at is not None and self._step >= self.stop_at)

    def for_run(self, paths: JobPaths, driver: str = "") -> ZooWorker:
        return self

    def close(self) -> None:
        """Do nothing: this gang has no thread that watches for requests."""


def make(order: dict[str, Any]) -> dict[str, Any]:
    """Save a tiny model and its tokenizer, and check the job as a driver does before it starts workers."""
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
        model = model_class(spec).from_config(config)
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
    try:
        validate(spec)
    except InputError as error:
        return {"refused": str(error), "by": "validate"}
    try:
        check_model_runs(spec, str(spec.model.path))  # `ready_data` leaves it out where it has passed with other code
        remember_tried(spec, str(spec.model.path))
        return {"prepared": ready_data(spec, "plain", lambda *given, **named: None).root}
    except InputError as error:
        return {"refused": str(error), "by": "driver"}


def plain(order: dict[str, Any]) -> dict[str, Any]:
    """Losses of a plain PyTorch loop over the same rows."""
    return {"losses": plain_losses(load_spec(order["spec"]), Prepared.open(order["prepared"]), STEPS).loss}


def train(order: dict[str, Any]) -> dict[str, Any]:
    """Train through the product's own loop, from the newest checkpoint if there is one."""
    job = Job(load_spec(order["spec"]), order["run"], order["prepared"], order["model"])
    worker = ZooWorker(dist.get_rank(), dist.get_world_size(), order["stop_at"])
    reporter = loop.Reporter(job.paths, worker.rank)
    run = None
    try:
        run = loop.set_up(job, worker, reporter)
        state = loop.train_steps(run, loop.restored(run))
        if order["export"]:
            loop.finish(run, state)
        padding = any(event["data"].get("padding") for event in read_journal(job.paths.events))
        return {"unpack": run.unpack, "padding": padding, "step": state.step}
    finally:
        if run is not None:
            run.checkpoints.finish()
            run.engine.module.destroy()
        reporter.close()


def rebuild(order: dict[str, Any]) -> dict[str, Any]:
    """Whether `fleetune export` makes the same model out of the newest checkpoint as the run has exported itself."""
    paths = JobPaths(order["run"])
    pathlib.Path(paths.spec).write_bytes(pathlib.Path(order["spec"]).read_bytes())
    rebuilt = export_run(order["run"], order["run"] + "/rebuilt")
    found, expected = _tensors(rebuilt), _tensors(paths.model)
    names = found.keys() == expected.keys()
    return {"same": names and all(torch.equal(found[name], expected[name]) for name in expected)}


def _tensors(folder: str) -> dict[str, torch.Tensor]:
    files = sorted(pathlib.Path(folder).glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


ORDERS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "make": make, "plain": plain, "train": train, "rebuild": rebuild,
}  # fmt: skip


def answer_to(order: dict[str, Any]) -> dict[str, Any]:
    print(f"== {order}", flush=True)
    try:
        return ORDERS[order["do"]](order)
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}
    finally:
        transformers.integrations.deepspeed.unset_hf_deepspeed_config()


def answer_orders(rank: int, world_size: int, port: int, log: str, orders: Connection) -> None:
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(target, 1)
    os.dup2(target, 2)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank), **address)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    while True:
        try:
            order = orders.recv()
        except EOFError:
            os._exit(0)
        # DeepSpeed collects garbage for each engine: a third of the time where all that is imported is looked through.
        gc.freeze()
        answer = answer_to(order)
        gc.collect()
        orders.send(answer)
