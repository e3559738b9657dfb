"""The engine makes one step, in a separate process, since DeepSpeed replaces functions of torch for good."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from jobs.spec.load import dump_spec
from tests.support import tiny
from tests.support.gangs import ROOT

STEP = """
import json, sys, types
import torch
import torch.distributed as dist
from cluster.errors import DataError
from jobs.planning import memory
from jobs.spec.load import load_spec
from jobs.training.model import deepspeed_config
from jobs.training.model.engine import build_engine

spec, store = load_spec(sys.argv[1]), sys.argv[2]
if len(sys.argv) > 3:
    memory.SUB_GROUP_SIZE = deepspeed_config.SUB_GROUP_SIZE = int(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
worker = types.SimpleNamespace(rank=0, world_size=1, device=torch.device("cpu"))
try:
    engine = build_engine(spec, spec.model.path, worker, pad_token_id=0)
except DataError as error:
    print(json.dumps(str(error)))
    sys.exit()
flats, computed = engine.partitions.flats, engine.module.optimizer.fp16_partitioned_groups_flat
before = computed[0].clone()
engine.backward(engine.module(input_ids=torch.tensor([[1, 2, 3]])).logits.float().square().mean())
engine.step()
assert "peft" not in sys.modules, "full fine-tuning would start a second later"
same = [flat.data_ptr() == weights.data_ptr() for flat, weights in zip(flats, computed, strict=True)]
equal = [torch.equal(flat.to(weights.dtype), weights) for flat, weights in zip(flats, computed, strict=True)]
changed = not engine.overflowed() and not torch.equal(before, computed[0])
sizes = [parameter.ds_numel for parameter in engine.module.parameters()]
decays = [len(parameter.ds_shape) > 1 for parameter in engine.module.parameters()]
largest = memory.largest_flat(types.SimpleNamespace(trained_sizes=sizes, decays=decays), 3, 1)
print(json.dumps([same, equal, changed, [flat.numel() for flat in flats], largest, float(sum(map(torch.sum, flats)))]))
"""


@pytest.mark.parametrize("bf16", [False, True])
def test_the_optimizer_updates_the_weights_that_the_model_computes_with_where_both_are_fp32(
    tmp_path: pathlib.Path, bf16: bool
) -> None:
    model = tiny.save_model(tmp_path / "gpt2", "gpt2")
    same, equal, changed, flats, largest, total = one_step(tmp_path, model, train__bf16=bf16)
    assert len(same) == 2 and all(shared is not bf16 for shared in same) and all(equal) and changed
    assert largest == max(flats)
    if bf16:
        return
    # In pieces, as a part of more than `SUB_GROUP_SIZE` elements is: as large as the plan says, with the same weights.
    same, equal, changed, pieces, largest, total_of_pieces = one_step(tmp_path, model, 5000)
    assert len(same) > 2 and all(same) and all(equal) and changed
    assert sum(pieces) == sum(flats) and largest == max(pieces) < max(flats)
    assert total_of_pieces == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("stage", [2, 3])
def test_weights_that_are_not_finite_are_refused_with_their_name(tmp_path: pathlib.Path, stage: int) -> None:
    model = tiny.save_model(tmp_path / "gpt2", "gpt2")
    tensors = load_file(model / "model.safetensors")
    tensors["transformer.h.1.mlp.c_fc.weight"][3, 5] = float("inf")
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    said = one_step(tmp_path, model, train__zero__stage=stage)
    assert "have values that are NaN or infinite; the first is transformer.h.1.mlp.c_fc.weight." in said


def one_step(folder: pathlib.Path, model: pathlib.Path, *piece: int, **changes: Any) -> Any:
    """What STEP prints. `piece`: elements that are updated at once."""
    spec = tiny.spec_of(folder, model, folder / "none", resources__num_workers=1, **changes)
    (folder / "job.json").write_bytes(dump_spec(spec))
    done = subprocess.run(
        [sys.executable, "-c", STEP, str(folder / "job.json"), str(folder / f"store{piece}"), *map(str, piece)],
        cwd=ROOT, env={**os.environ, "LOCAL_RANK": "0", "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
