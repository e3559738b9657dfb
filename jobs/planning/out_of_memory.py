"""Advises what to change in a spec when a run has too little memory. Pure functions of the spec."""

from __future__ import annotations

from jobs.spec.finetune import Spec

_GIB = 2**30


def advice(spec: Spec) -> str:
    """Return two or three short sentences that name the fields that would help, with their present values."""
    train, on_gpu = spec.train, spec.resources.gpus_per_worker > 0
    lower = [
        *_above_one("train.per_device_train_batch_size", train.per_device_train_batch_size),
        *_above_one("eval.per_device_eval_batch_size", spec.eval.per_device_eval_batch_size if spec.evaluates else 1),
        f"data.seq_len ({spec.data.seq_len})",
    ]
    less = [] if train.gradient_checkpointing else ["train.gradient_checkpointing: true"]
    if train.zero.stage < 3:
        less.append("train.zero.stage: 3")
    if on_gpu and train.zero.offload_optimizer is None:
        less.append("train.zero.offload_optimizer: cpu")
    more = "" if on_gpu else ", or give each worker more memory"
    return (
        f"Lower {_listed(lower)}.{f' Or set {_listed(less)}.' if less else ''} "
        f"Or use more workers than {spec.resources.num_workers}{more}."
    )


def gigabytes(number: float) -> str:
    """Format bytes as `10.6 GiB`."""
    return f"{number / _GIB:.1f} GiB"


def _above_one(name: str, value: int) -> list[str]:
    return [f"{name} ({value})"] if value > 1 else []


def _listed(words: list[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
