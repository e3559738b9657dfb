"""One step of an engine, in a process of its own, since DeepSpeed replaces functions of torch for good."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import types
from typing import Any

import torch
from torch.utils.cpp_extension import include_paths

from cluster.errors import DataError
from jobs.planning import memory
from jobs.spec.load import load_spec
from jobs.training.model import deepspeed_config
from jobs.training.model.cpu_optimizer import must_compile, remove_left_lock
from jobs.training.model.engine import Engine, build_engine


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
        "compiles": _compiles(result.parent),
    }
    result.write_text(json.dumps(known))


def _overflows(engine: Engine, factor: float = 1.0) -> bool:
    """Make one step. Returns whether DeepSpeed skipped it."""
    engine.backward(engine.module(input_ids=torch.tensor([[1, 2, 3]])).logits.float().square().mean() * factor)
    engine.step()
    return engine.overflowed()


def _compiles(folder: pathlib.Path) -> list[str]:
    """Return the cases in which DeepSpeed would compile its optimizer, and `lock` if a killed process's lock stays."""
    os.environ["TORCH_EXTENSIONS_DIR"] = str(folder)
    cases: list[str] = []

    def check(case: str) -> None:
        cases.extend([case] if must_compile(torch.device("cpu")) else [])

    check("absent")
    here = folder / "cpu_adam"
    rules = "\nrule copy\n  command = cp $in $out\nbuild cpu_adam.so: copy cpu_adam.cpp\n"
    (here / "cpu_adam.cpp").touch()
    (here / "build.ninja").write_text(f"flags = -isystem {include_paths()[0]} {rules}")
    subprocess.run(["ninja"], cwd=here, check=True, capture_output=True)
    check("compiled")
    (here / "build.ninja").write_text(f"flags = -isystem /another{include_paths()[0]} {rules}")
    check("for another PyTorch")
    (here / "build.ninja").write_text(f"flags = -isystem {include_paths()[0]} {rules}")
    (here / "cpu_adam.cpp").write_text("changed")
    check("source changed")
    (here / "lock").touch()
    remove_left_lock(torch.device("cpu"), older_than_s=600)
    assert (here / "lock").exists(), "another process may be compiling"
    remove_left_lock(torch.device("cpu"))
    return [*cases, *(["lock"] if (here / "lock").exists() else [])]
