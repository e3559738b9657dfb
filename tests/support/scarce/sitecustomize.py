"""On PYTHONPATH, the memory of a worker is simulated: an allocator raises torch.OutOfMemoryError on rank 1.

The variable SCARCE holds a JSON object with these limits, each in bytes of living tensors that operators have returned
since it began: `training` of a step, from step `from_step` on, and `evaluation` of a forward pass. With `told`, a file,
the most bytes of each step are written there.

A checkpoint is complete before the next step, so that the one that a run goes on from does not depend on how fast the
machine writes.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from tests.support.changed_module import LOOP, when_loaded

_FAILING_RANK = 1


def _limit(loop: Any) -> None:
    from jobs.training.loop import evaluation

    limits: dict[str, Any] = json.loads(os.environ["SCARCE"])
    train_step, logits_of = loop.train_step, evaluation.model_logits

    def step_with_little_memory(run: Any, rows: Any, *given: Any) -> Any:
        _wait_for_checkpoint(run)
        limit = limits.get("training") if rows.step >= limits.get("from_step", 0) else None
        with _allocator(limit, limits.get("told"), rows.step):
            return train_step(run, rows, *given)

    def logits_with_little_memory(*given: Any, **named: Any) -> Any:
        with _allocator(limits.get("evaluation"), limits.get("told")):
            return logits_of(*given, **named)

    loop.train_step, evaluation.model_logits = step_with_little_memory, logits_with_little_memory


def _wait_for_checkpoint(run: Any) -> None:
    import torch.distributed as dist

    while run.checkpoints.busy:
        time.sleep(0.01)
    run.reporter.flush()  # a test counts the steps that are repeated
    dist.barrier()  # only rank 0 knows that the checkpoint is complete


def _allocator(limit: int | None, told: str | None = None, step: int = 0) -> AbstractContextManager[object]:
    import torch
    import torch.distributed as dist

    from jobs.preflight.tracker import Tracker

    if dist.get_rank() != _FAILING_RANK or (limit is None and told is None):
        return nullcontext()

    class Allocator(Tracker):
        def _register(self, storage: torch.UntypedStorage) -> None:
            super()._register(storage)
            if limit is not None and self.live > limit:
                raise torch.OutOfMemoryError(f"simulated: {self.live:,} bytes, and {limit:,} have room")

        def __exit__(self, *given: Any) -> None:
            super().__exit__(*given)  # type: ignore[no-untyped-call]
            if told is not None:
                with open(told, "a") as file:
                    file.write(f"{step} {self.peak}\n")

    return Allocator(uncounted=())


if "SCARCE" in os.environ:
    when_loaded(LOOP, _limit)
