"""The table: what is planted, what a user must read, and what the run must do.

A run has two workers, 12 steps, and a checkpoint after every fourth. Rank 1 fails, unless a plant says otherwise.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from bench.failures.judging import Expected, Kind
from bench.failures.planting import Plant
from bench.failures.running import Case, flip_a_byte
from tests.support.memorylimit import kill_for_memory

REFUSED, FAILED, MACHINE = 2, 1, 75
FAULTY = "faulty://"
HALVED = "out_of_memory train.per_device_train_batch_size"
SKIP, ROLLBACK = "outlier_steps skip", "outlier_steps rollback"
OWN = "bench.failures.own"
EVALUATED: dict[str, Any] = {"data.eval_fraction": 0.3, "eval.eval_steps": 6}
# Long and fast enough for the tiny model to learn: before, nothing can be far above its loss.
LEARNS: dict[str, Any] = {
    "train.learning_rate": 1e-2,
    "train.max_steps": 40,
    "train.per_device_train_batch_size": 4,
}
METRIC: dict[str, Any] = {**EVALUATED, "eval.per_device_eval_batch_size": 4}


def refused(*says: str, advice: tuple[str, ...] = ()) -> Expected:
    return Expected(REFUSED, says, advice)


def goes_on(*says: str, acts: tuple[str, ...] = (), starts: int = 1, step: int = 12) -> Expected:
    return Expected(0, says, outcome={"status": "succeeded", "step": step}, acts=acts, starts=starts)


def ends(exit_code: int, *says: str, advice: tuple[str, ...] = (), starts: int = 1, **rest: Any) -> Expected:
    acts = rest.pop("acts", ())
    return Expected(exit_code, says, advice, {"status": "failed", **rest}, acts, starts)


SPEC = [
    Case(
        "misspelt field", Kind.SPEC, refused("train.learning_rte", advice=("learning_rate",)), quick=True,
        changes={"train.learning_rte": 1e-3},
    ),
    Case(
        "batch contradicts itself", Kind.SPEC, quick=True,
        expected=refused("= 16", "global_batch_size is 8", advice=("drop one of them",)),
        changes={"train.gradient_accumulation_steps": 4},
    ),
    Case(
        "batch smaller than the gang", Kind.SPEC,
        refused("fewer rows than num_workers (2)", advice=("Raise train.global_batch_size to 2",)),
        changes={"train.global_batch_size": 1},
    ),
    Case(
        "warmup longer than the run", Kind.SPEC, refused("warmup_steps (40)", advice=("train longer",)),
        changes={"train.warmup_steps": 40},
    ),
    Case(
        "unknown optimizer", Kind.SPEC, refused("train.optim", advice=("adamw_torch",)),
        changes={"train.optim": "lion"},
    ),
    Case(
        "schedule misspelt", Kind.SPEC,
        refused("train.lr_scheduler_type", advice=("cosine",)), changes={"train.lr_scheduler_type": "cosin"},
    ),
    Case(
        "rate out of bounds", Kind.SPEC, refused("train.learning_rate", advice=("1",)),
        changes={"train.learning_rate": 3.0},
    ),
    Case(
        "broken YAML", Kind.SPEC, refused("job.yaml:10", "not YAML"),
        spoil=lambda text: text.replace('"data": {', '"data": [', 1),
    ),
]  # fmt: skip

DATA = [
    Case("empty file", Kind.DATA, refused("data.train", "empty.jsonl"), data="empty", quick=True),
    Case("broken JSON lines", Kind.DATA, refused("data.train", ":4", "JSON"), data="broken lines"),
    Case("missing column", Kind.DATA, refused("no column", advice=("txt",)), data="other column", quick=True),
    Case(
        "label not of the model", Kind.DATA, refused("label 7", ":101", advice=("data.labels",)), model="bert",
        data="other label",
    ),
    Case("gzip cut short", Kind.DATA, refused("cut-gzip.jsonl.gz", "Copy or write the file again"), data="cut gzip"),
    Case("not UTF-8", Kind.DATA, refused("latin-1.jsonl", "UTF-8"), data="latin-1"),
    Case(
        "file misspelt", Kind.DATA, refused("data.train", advice=("text.jsonl",)),
        spoil=lambda text: text.replace("text.jsonl", "test.jsonl"),
    ),
    Case(
        "prepared rows gone before training", Kind.DATA,
        ends(REFUSED, "prepared data is missing", "/prepared/", advice=("Remove /",), starts=0, bad_input=True),
        plants=(Plant("loading", "lose rows", rank=0),),
    ),
]  # fmt: skip

SHAPES = [
    Case(
        "longer than the positions", Kind.SHAPES,
        refused("256 positions", advice=("data.seq_len to 256",)), model="gpt2", changes={"data.seq_len": 512},
        quick=True,
    ),
    Case(
        "classes unlike the head", Kind.SHAPES, refused("classifier of 3 classes", advice=("data.labels",)),
        model="bert", data="labelled", changes={"model.num_labels": 5},
    ),
    Case(
        "tokenizer larger than the embedding", Kind.SHAPES, model="llama tokens",
        expected=ends(REFUSED, "model.path", "512 tokens", advice=("released with",), starts=0, bad_input=True),
    ),
    Case(
        "weights unlike the config", Kind.SHAPES, model="llama resized",
        expected=ends(REFUSED, "32 x 64 in the weights", "32 x 96 according to config.json", starts=0, bad_input=True),
    ),
]  # fmt: skip

CODE = [
    Case(
        "metric's module missing", Kind.CODE, refused("eval.metrics", "no module bench.nothing"), quick=True,
        changes={**METRIC, "eval.metrics": ["bench.nothing:score"]},
    ),
    Case(
        "metric misspelt", Kind.CODE, refused("eval.metrics", advice=("failing",)),
        changes={**METRIC, "eval.metrics": [f"{OWN}:failng"]},
    ),
    Case(
        "metric raises", Kind.CODE,
        ends(REFUSED, "eval.metrics", "no such column in my table", bad_input=True), quick=True,
        changes={**METRIC, "eval.metrics": [f"{OWN}:failing"]},
    ),
    Case(
        "metric cannot be imported on one rank", Kind.CODE,
        ends(REFUSED, "eval.metrics", "only here", bad_input=True, rank=1),
        changes={**METRIC, "eval.metrics": ["tests.support.broken_on_rank_1:zero"]},
    ),
    Case(
        "metric is NaN", Kind.CODE, goes_on("eval_not_a_number is NaN or infinite"),
        changes={**METRIC, "eval.metrics": [f"{OWN}:not_a_number"]},
    ),
    Case(
        "format raises", Kind.CODE, ends(REFUSED, "no such key", starts=0, bad_input=True),
        changes={"data.format": f"{OWN}:no_sample"},
    ),
    Case(
        "bug in the loop of one rank", Kind.CODE,
        ends(FAILED, "KeyError: 'logits'", rank=1, bad_input=False, lost=False),
        plants=(Plant("step", "bug", steps=(6,)),),
    ),
]  # fmt: skip

MEMORY = [
    Case(
        f"GPU memory in the {at}", Kind.MEMORY,
        goes_on(f"out of memory in {where}: rank 1", "2.00 GiB more were asked for", acts=(HALVED,), starts=2),
        plants=(Plant(at, "gpu memory", steps=(6,)),), quick=at == "forward",
    )
    for at, where in (("forward", "training"), ("backward", "training"), ("update", "the update of the weights"))
] + [
    Case(
        "GPU memory in the evaluation", Kind.MEMORY,
        goes_on("out of memory in evaluation", acts=("out_of_memory eval.per_device_eval_batch_size",), starts=2),
        plants=(Plant("evaluation", "gpu memory"),), changes=METRIC,
    ),
    Case(
        "allocator of the host", Kind.MEMORY, goes_on("ran out of host memory", acts=(HALVED,), starts=2),
        plants=(Plant("forward", "host memory", steps=(6,)),),
    ),
    Case(
        "killed by the kernel for memory", Kind.MEMORY,
        goes_on("was killed for memory by the kernel", acts=(HALVED,), starts=2),
        plants=(Plant("step", "wait", steps=(6,)),), act=lambda driver, worker: kill_for_memory(worker),
    ),
    Case(
        "GPU memory at every size", Kind.MEMORY,
        ends(
            FAILED, "ran out of GPU memory", "did not suffice", advice=("data.seq_len",), starts=3, out_of_memory=True,
            acts=(HALVED, "out_of_memory train.gradient_checkpointing"),
        ),
        plants=(Plant("forward", "gpu memory", steps=(2,), times=None),),
    ),
]  # fmt: skip

NUMERICS = [
    Case(
        "NaN once", Kind.NUMERICS, goes_on("step 6 is skipped", acts=(SKIP,)), quick=True,
        plants=(Plant("forward", "nan", steps=(6,)),),
    ),
    Case(
        "poisoned batch", Kind.NUMERICS, goes_on("step 25 is skipped", acts=(SKIP,), step=40),
        plants=(Plant("forward", "poison", rank=None, steps=(25,)),), changes=LEARNS,
    ),
    Case(
        "NaN from step 6 on", Kind.NUMERICS,
        ends(FAILED, "its loss is nan", advice=("Check the data",), acts=(f"{SKIP}*", ROLLBACK, f"{SKIP}*")),
        plants=(Plant("forward", "nan", steps=tuple(range(6, 41)), times=None),), changes={"train.max_steps": 40},
    ),
    Case(
        "weights damaged in training", Kind.NUMERICS,
        goes_on("steps 25 to 27 were outlying", "goes back to", acts=(f"{SKIP}*", ROLLBACK), step=40),
        plants=(Plant("step", "damage", rank=None, steps=(25,)),), changes=LEARNS,
    ),
    Case(
        "weights damaged after every rollback", Kind.NUMERICS,
        ends(
            FAILED, "train.learning_rate 0.01 is too high", advice=("Start a new run with at most",),
            acts=(*(f"{SKIP}*", ROLLBACK) * 4, f"{SKIP}*", "outlier_steps failure"),
        ),
        # The batches of steps 17 to 27 are left out after the first rollback, so the next damage is done after them.
        plants=(
            Plant("step", "damage", rank=None, steps=(25,)),
            Plant("step", "damage", rank=None, steps=(29,), times=None),
        ), changes=LEARNS,
    ),
    Case(
        "weights that are not finite", Kind.NUMERICS,
        ends(REFUSED, "model.path", "NaN or infinite", "down_proj", bad_input=True, starts=0), model="llama spoilt",
    ),
]  # fmt: skip

STORAGE = [
    Case(
        "disk full in a checkpoint", Kind.STORAGE,
        goes_on("checkpoint of step 4 could not be written", "No space left"),
        storage=FAULTY, plants=(Plant("step", "full", steps=(3,)), Plant("step", "well", steps=(6,))), quick=True,
    ),
    Case("storage cannot be written", Kind.STORAGE, refused("/sys/fleetune", "cannot"), storage="/sys/fleetune"),
    Case(
        "newest checkpoint damaged", Kind.STORAGE,
        goes_on("checkpoint of step 8 is damaged and passed over", "resumed from the checkpoint of step 4", starts=2),
        plants=(Plant("step", "bug", steps=(11,)),), again=flip_a_byte,
    ),
    Case(
        "model's weights cut short", Kind.STORAGE, refused("model.safetensors", advice=("fetch it again",)),
        model="llama cut",
    ),
    Case(
        "storage stalls in a checkpoint", Kind.STORAGE, goes_on("put off", "still being written"), storage=FAULTY,
        plants=(Plant("step", "stalled", steps=(3,)), Plant("step", "well", steps=(11,))),
    ),
]  # fmt: skip

MACHINES = [
    Case(
        "worker killed", Kind.MACHINES, goes_on("rank 1", "was killed or crashed", acts=("lost_workers",), starts=2),
        plants=(Plant("step", "kill", steps=(6,)),), quick=True,
    ),
    Case(
        "worker killed in every group", Kind.MACHINES,
        ends(
            FAILED, "rank 1", "4 times without a newer checkpoint", advice=("log of that rank",), starts=4,
            acts=("lost_workers*",),
        ),
        plants=(Plant("step", "kill", steps=(3,), times=None),),
    ),
    Case(
        "no compiler for the offloaded optimizer", Kind.MACHINES,
        ends(
            REFUSED, "offload_optimizer", "cannot be compiled on", "no-compiler: not found", starts=0,
            advice=("Install a C++ compiler",),
        ),
        changes={"train.zero.offload_optimizer": "cpu"},
        environment={"CXX": "no-compiler", "TORCH_EXTENSIONS_DIR": "{folder}/extensions"},
    ),
    Case(
        "worker stopped", Kind.MACHINES, goes_on("stopped by a signal", acts=("hang",), starts=2),
        plants=(Plant("step", "stop", steps=(6,)),), changes={"remedies.hang": True},
    ),
    Case(
        "worker gets little of its core", Kind.MACHINES,
        goes_on("rank 1 on host", "times slower", "use the cores there", acts=("straggler",)),
        plants=(Plant("step", "throttle", rank=None, steps=(2,)),),
    ),
    Case(
        "worker on a slow processor", Kind.MACHINES,
        goes_on("computes 3.0 times slower", "the processor is slow", acts=("straggler",)),
        plants=(Plant("step", "slow processor", rank=None, steps=(2,)),),
    ),
    Case(
        "ECC error", Kind.MACHINES,
        ends(
            MACHINE, "hardware of rank 1", "ECC", advice=("nvidia-smi",), rank=1, lost=True, out_of_memory=False,
            acts=("machine",),
        ),
        plants=(Plant("backward", "ecc", steps=(6,)),),
    ),
    Case(
        "ECC error, not to be moved", Kind.MACHINES,
        ends(FAILED, "ECC", "remedies.machine is false", rank=1, lost=False, acts=("machine",)),
        plants=(Plant("backward", "ecc", steps=(6,)),), changes={"remedies.machine": False},
    ),
    Case(
        "assertion on the device", Kind.MACHINES,
        ends(FAILED, "rank 1", "device-side assert", rank=1, lost=False),
        plants=(Plant("forward", "assert", steps=(6,)),),
    ),
    Case(
        "driver killed", Kind.MACHINES, goes_on("resumed from the checkpoint of step 4", starts=2),
        plants=(Plant("step", "wait", steps=(7,)),), act=lambda driver, worker: os.kill(driver, signal.SIGKILL),
        again=lambda paths: None,
    ),
]  # fmt: skip

NETWORK = [
    Case(
        "connections between ranks reset", Kind.NETWORK, quick=True,
        expected=goes_on("starting the workers again", acts=("lost_workers",), starts=2),
        plants=(Plant("step", "cut links", rank=None, steps=(6,)),),
    ),
    Case(
        "NCCL: the peer is gone", Kind.NETWORK, goes_on("starting the workers again", acts=("lost_workers",), starts=2),
        plants=(Plant("step", "nccl peer", steps=(6,)),),
    ),
    Case(
        "NCCL: system error", Kind.NETWORK,
        ends(MACHINE, "hardware of rank 1", "unhandled system error", lost=True, acts=("machine",)),
        plants=(Plant("step", "nccl system", steps=(6,)),),
    ),
    Case(
        "object store drops connections for a while", Kind.NETWORK, goes_on("could not be written"), storage=FAULTY,
        plants=(Plant("step", "dropped", steps=(4,)), Plant("step", "well", steps=(7,))),
    ),
    Case(
        "object store gone when rows are read", Kind.NETWORK,
        ends(MACHINE, "/prepared/", "Connection reset", lost=True, starts=0, acts=("machine",)), storage=FAULTY,
        plants=(Plant("loading", "dropped rows", rank=0),),
    ),
]  # fmt: skip

CASES = (*SPEC, *DATA, *SHAPES, *CODE, *MEMORY, *NUMERICS, *STORAGE, *MACHINES, *NETWORK)
