"""Measures the loss on other rows after one optimizer step, at many learning rates.

Adam's first step, weight decay included, has the same direction at every learning rate, and its length is proportional
to the rate. So one backward pass is enough; then the weights are moved along that direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import torch
import torch.distributed as dist

from jobs.data.order.stream import StepRows
from jobs.training.loop.cooldown import on_host
from jobs.training.loop.loop import train_step
from jobs.training.loop.loss import loss_sum
from jobs.training.loop.state import Run
from jobs.training.model.batch import collate, model_logits

_LENGTH = 1e-5  # learning rate of the step that is computed; other rates are scaled from it
_SCORED_STEPS = 2  # the losses are measured on the rows of this many following steps


def losses_along_first_step(run: Run, rates: Sequence[float]) -> tuple[list[float], int]:
    """Return the mean loss before the step, and after it at each rate, and the tokens of all passes.

    Every rank must call it. Afterwards the weights differ, and the optimizer's state is empty.
    """
    rows, *scored = list(islice(run.gang.steps(run.stream(), 0), 1 + _SCORED_STEPS))
    before = tuple(on_host(flat) for flat in run.engine.partitions.flats)
    losses = [_loss(run, scored)]
    train_step(run, rows, _LENGTH)
    way = tuple(on_host(flat) - start for flat, start in zip(run.engine.partitions.flats, before, strict=True))
    for rate in rates:
        there = tuple(start + rate / _LENGTH * part for start, part in zip(before, way, strict=True))
        run.engine.partitions.restart(there)
        losses.append(_loss(run, scored))
    tokens = [int(run.num_tokens[run.plan.rows_of_step(step.step)].sum()) for step in (rows, *scored)]
    return losses, tokens[0] + len(losses) * sum(tokens[1:])


@torch.no_grad()
def _loss(run: Run, steps: Sequence[StepRows]) -> float:
    """Return the mean loss over the targets of these rows, without dropout."""
    gang, task = run.gang, run.job.spec.model.task
    targets = sum(int(run.num_targets[run.plan.rows_of_step(one.step)].sum()) for one in steps)
    total = torch.zeros((), dtype=torch.float64, device=gang.device)
    run.engine.module.eval()
    try:
        for one in steps:
            for table in one.micros:
                batch = collate(table, task, run.pad_token_id, gang.device, run.unpack)
                total += loss_sum(model_logits(run.engine.module, batch, task), batch.targets).double()
    finally:
        run.engine.module.train()
    dist.all_reduce(total)
    return float(total) / max(targets, 1)
