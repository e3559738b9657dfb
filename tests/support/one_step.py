"""One step of an engine, in a process of its own, since DeepSpeed replaces functions of torch for good."""

from __future__ import annotations

import json
import os
import pathlib
import sys
import types
from typing import Any

import torch

from cluster.errors import DataError
from jobs.planning import memory
from jobs.spec.finetune import Spec
from jobs.spec.load import load_spec
from jobs.training.model import deepspeed_config
from jobs.training.model.engine import Engine, build_engine, must_compile, remove_left_lock


def make_one_step(asked: dict[str, Any]) -> None:
    """Write to the file `result` what is known after the step, or the error of a model that is refused.

    Args:
        asked: `spec`, `result`, `piece`, the elements that are updated at once (None: as usual), and `factors`, each
            of which multiplies the loss of one step; with these, the result is whether each step was an overflow.
    """
    spec, result = load_spec(asked["spec"]), pathlib.Path(asked["result"])
    if asked["piece"] is not None:
        for module in (memory, deepspeed_config):
            vars(module)["SUB_GROUP_SIZE"] = asked["piece"]
    worker: Any = types.SimpleNamespace(rank=0, world_size=1, device=torch.device("cpu"))
    try:
        engine = build_engine(spec, spec.model.path, worker, pad_token_id=0)
    except DataError as error:
        result.write_text(json.dumps(str(error)))
        return
    if asked["factors"]:
        result.write_text(json.dumps([_overflows(engine, factor) for factor in asked["factors"]]))
        return
    flats, computed = engine.partitions.flats, engine.module.optimizer.fp16_partitioned_groups_flat
    before = computed[0].clone()
    _overflows(engine)
    assert "peft" not in sys.modules, "full fine-tuning would start a second later"
    parameters = list(engine.module.parameters())
    sizes, decays = [one.ds_numel for one in parameters], [len(one.ds_shape) > 1 for one in parameters]
    trace: Any = types.SimpleNamespace(trained_sizes=sizes, decays=decays)
    known = {
        "same": [flat.data_ptr() == weights.data_ptr() for flat, weights in zip(flats, computed, strict=True)],
        "equal": [torch.equal(flat.to(one.dtype), one) for flat, one in zip(flats, computed, strict=True)],
        "changed": not engine.overflowed() and not torch.equal(before, computed[0]),
        "flats": [flat.numel() for flat in flats],
        "largest": memory.largest_flat(trace, 3, 1),
        "total": float(sum(map(torch.sum, flats))),
        "compiles": _compiles(spec, result.parent),
    }
    result.write_text(json.dumps(known))


def _overflows(engine: Engine, factor: float = 1.0) -> bool:
    """Make one step. Returns whether DeepSpeed skipped it."""
    engine.backward(engine.module(input_ids=torch.tensor([[1, 2, 3]])).logits.float().square().mean() * factor)
    engine.step()
    return engine.overflowed()


def _compiles(spec: Spec, folder: pathlib.Path) -> list[bool]:
    """Whether DeepSpeed would compile its optimizer without offload, with offload, and when it has compiled it.

    The last value tells whether the lock of a killed process is still there after its removal.
    """
    os.environ["TORCH_EXTENSIONS_DIR"] = str(folder)
    offloaded, cpu = spec.with_value("train.zero.offload_optimizer", "cpu"), torch.device("cpu")
    found = [must_compile(spec, cpu), must_compile(offloaded, cpu)]
    (folder / "cpu_adam/cpu_adam.so").touch()
    (folder / "cpu_adam/lock").touch()
    remove_left_lock(cpu)
    return [*found, must_compile(offloaded, cpu), (folder / "cpu_adam/lock").exists()]
