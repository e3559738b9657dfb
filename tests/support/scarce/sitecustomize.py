"""On PYTHONPATH, the memory of a worker is simulated: too many logits raise torch.OutOfMemoryError on rank 1.

The variable SCARCE holds a JSON object with these limits, each in elements of the logits of one forward pass:
`training` from step `from_step` on, `plain` for a training without gradient checkpointing, and `evaluation`.

A checkpoint is complete before the next step, so that the one that a run goes on from does not depend on how fast the
machine writes.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

from tests.support.changed_module import LOOP, when_loaded

_FAILING_RANK = 1


def _limit(loop: Any) -> None:
    from jobs.training.loop import evaluation
    from jobs.training.loop import step as step_module

    step: Any = step_module

    limits: dict[str, int] = json.loads(os.environ["SCARCE"])
    train_step, logits_of, now = loop.train_step, step.model_logits, dict[str, int]()

    def counted_step(run: Any, rows: Any, *given: Any) -> Any:
        _wait_for_checkpoint(run)
        now.update(step=rows.step, plain=not run.job.spec.train.gradient_checkpointing)
        return train_step(run, rows, *given)

    def in_training(engine: Any, *given: Any) -> Any:
        logits = logits_of(engine, *given)
        if now["step"] >= limits.get("from_step", 0):
            _check(logits, limits.get("training"))
            if now["plain"]:
                _check(logits, limits.get("plain"))
        return logits

    def in_evaluation(*given: Any, **named: Any) -> Any:
        logits = logits_of(*given, **named)
        _check(logits, limits.get("evaluation"))
        return logits

    loop.train_step, step.model_logits, evaluation.model_logits = counted_step, in_training, in_evaluation


def _wait_for_checkpoint(run: Any) -> None:
    import torch.distributed as dist

    while run.checkpoints.busy:
        time.sleep(0.01)
    run.reporter.flush()  # a test counts the steps that are repeated
    dist.barrier()  # only rank 0 knows that the checkpoint is complete


def _check(logits: Any, limit: int | None) -> None:
    import torch
    import torch.distributed as dist

    if limit is not None and dist.get_rank() == _FAILING_RANK and logits.numel() > limit:
        raise torch.OutOfMemoryError(f"simulated: {logits.numel():,} logits, and {limit:,} have room")


if "SCARCE" in os.environ:
    when_loaded(LOOP, _limit)
