"""How DeepSpeed and a model are imported."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from jobs.training.model.engine import import_deepspeed

WORKER = """
import sys, torch
from jobs.training.model.engine import import_deepspeed
from jobs.training.model.load import import_model_classes
import_deepspeed(torch.device("cpu"))
import_model_classes()
from transformers import LlamaForCausalLM
from deepspeed.runtime.zero.muon import muon_optimizer
print(*{"scipy.optimize", "torch._inductor.compile_fx", "transformers.loss.loss_utils"} & set(sys.modules))
"""


def test_no_compiler_is_tried_and_no_operator_of_inference_is_built() -> None:
    deepspeed = import_deepspeed(torch.device("cpu"))
    assert vars(deepspeed.ops)["__compatible_ops__"] == {}
    from deepspeed.comm.torch import build_shm_op

    assert build_shm_op() is None


def test_the_program_that_counts_numa_nodes_is_started_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import_deepspeed(torch.device("cpu"))
    from deepspeed.accelerator import get_accelerator
    from deepspeed.utils import numa

    started: list[list[str]] = []

    def output(command: list[str]) -> bytes:
        started.append(command)
        return b"available: 2 nodes (0-1)\nnode 0 cpus: 0 1\nnode 1 cpus: 2 3\n"

    monkeypatch.setattr(numa.subprocess, "check_output", output)
    monkeypatch.delenv("LOCAL_SIZE", raising=False)
    numa.get_numa_cores.cache_clear()
    counts = []
    for _ in range(2):
        import_deepspeed(torch.device("cpu"))
        counts.append(get_accelerator().device_count())
    numa.get_numa_cores.cache_clear()
    assert counts == [2, 2] and started == [["numactl", "--hardware"]]


def test_a_worker_imports_neither_the_compiler_nor_the_losses_of_object_detection() -> None:
    """Each costs every worker half a second of a core or more."""
    done = subprocess.run([sys.executable, "-c", WORKER], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "transformers.loss.loss_utils", done.stdout
