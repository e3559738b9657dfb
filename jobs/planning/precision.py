"""The precision of computation. Pure."""

from __future__ import annotations

from typing import Literal

from jobs.spec.finetune import Train

Precision = Literal["fp32", "bf16", "fp16"]


def element_bytes(precision: Precision) -> int:
    """Return the bytes of an element of the weights."""
    return 4 if precision == "fp32" else 2


def precision_of(train: Train, device_has_bf16: bool) -> Precision:
    """Return the precision of computation. If bf16 is left out, it is used on devices (GPUs) that support it."""
    if train.fp16:
        return "fp16"
    wanted = device_has_bf16 if train.bf16 is None else train.bf16
    return "bf16" if wanted else "fp32"
