"""How DeepSpeed and a model are imported."""

from __future__ import annotations

import subprocess
import sys

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


def test_a_worker_imports_neither_the_compiler_nor_the_losses_of_object_detection() -> None:
    """Each costs every worker half a second of a core or more."""
    done = subprocess.run([sys.executable, "-c", WORKER], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "transformers.loss.loss_utils", done.stdout
