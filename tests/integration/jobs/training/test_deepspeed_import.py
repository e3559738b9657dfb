"""How DeepSpeed is imported."""

from __future__ import annotations

import torch

from jobs.training.model.engine import import_deepspeed


def test_no_compiler_is_tried_and_no_operator_of_inference_is_built() -> None:
    deepspeed = import_deepspeed(torch.device("cpu"))
    assert vars(deepspeed.ops)["__compatible_ops__"] == {}
    from deepspeed.comm.torch import build_shm_op

    assert build_shm_op() is None
