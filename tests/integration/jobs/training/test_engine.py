"""The engine makes one step, in a separate process, since DeepSpeed replaces functions of torch for good."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

from jobs.spec.load import dump_spec
from tests.support import tiny
from tests.support.gangs import ROOT

STEP = """
import json, sys, types
import torch
import torch.distributed as dist
from jobs.spec.load import load_spec
from jobs.training.model.engine import build_engine

spec, store = load_spec(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
gang = types.SimpleNamespace(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))
engine = build_engine(spec, spec.model.path, gang, pad_token_id=0)
flats, computed = engine.partitions.flats, engine.module.optimizer.fp16_partitioned_groups_flat
before = computed[0].clone()
engine.backward(engine.module(input_ids=torch.tensor([[1, 2, 3]])).logits.float().square().mean())
engine.step()
same = [flat.data_ptr() == weights.data_ptr() for flat, weights in zip(flats, computed, strict=True)]
equal = [torch.equal(flat.to(weights.dtype), weights) for flat, weights in zip(flats, computed, strict=True)]
print(json.dumps([same, equal, not engine.overflowed() and not torch.equal(before, computed[0])]))
"""


@pytest.mark.parametrize("bf16", [False, True])
def test_the_optimizer_updates_the_weights_that_the_model_computes_with_where_both_are_fp32(
    tmp_path: pathlib.Path, bf16: bool
) -> None:
    model = tiny.save_model(tmp_path / "gpt2", "gpt2")
    spec = tiny.spec_of(tmp_path, model, tmp_path / "none", resources__num_workers=1, train__bf16=bf16)
    (tmp_path / "job.json").write_bytes(dump_spec(spec))
    done = subprocess.run(
        [sys.executable, "-c", STEP, str(tmp_path / "job.json"), str(tmp_path / "store")], cwd=ROOT,
        env={**os.environ, "LOCAL_RANK": "0", "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    same, equal, changed = json.loads(done.stdout.splitlines()[-1])
    assert len(same) == 2 and all(shared is not bf16 for shared in same) and all(equal) and changed
