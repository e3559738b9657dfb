"""One optimizer step of a worker."""

from __future__ import annotations

import torch
import torch.distributed as dist

from jobs.data.order.permutation import key
from jobs.data.order.row_order import MICRO_BATCH
from jobs.data.order.stream import StepRows
from jobs.run.checkpoints import StepHistory
from jobs.training.loop.loss import loss_sum
from jobs.training.loop.saving import StepSignals, digest_of_rows, pack_signals, unpack_signals
from jobs.training.loop.state import Run
from jobs.training.loop.watching import updated
from jobs.training.model.batch import collate, model_logits


def train_step(run: Run, rows: StepRows, rate: float, history: StepHistory | None = None) -> StepSignals:
    """Do one optimizer step.

    The gradient is that of the mean loss over all targets of the global batch. The loss is multiplied by world_size
    because DeepSpeed averages over ranks. The number of targets is known from the index before anything is computed.
    The all-reduce of the loss precedes the update of the weights, so that an outlying step changes nothing.

    Args:
        history: earlier steps, with which this one is compared; None if every update is applied.

    Returns:
        The result of the step's all-reduce, which is the same on every rank.
    """
    worker, engine, spec = run.worker, run.engine, run.job.spec
    targets = max(run.targets_of(rows.step), 1)
    engine.set_learning_rate(rate)
    loss_here = torch.zeros((), dtype=torch.float64, device=worker.device)
    digest = 0
    for turn, table in enumerate(rows.micros):
        if turn:
            engine.step()  # only counts the micro-batch
        number = turn * worker.world_size + worker.rank
        seed_micro_batch(spec.seed, rows.step, number)
        batch = collate(table, spec.model.task, engine.pad_token_id, worker.device, run.unpack)
        loss = loss_sum(model_logits(engine.module, batch, spec.model.task), batch.targets)
        engine.backward(loss * (worker.world_size / targets))
        loss_here += loss.detach().double()
        digest += digest_of_rows(table, number * run.batching.per_device)
    summed = pack_signals(run, loss_here, digest)
    dist.all_reduce(summed)
    return updated(run, rows.step, unpack_signals(summed, targets), history)


def seed_micro_batch(seed: int, step: int, number: int) -> None:
    """Seed a forward pass by its place in the run, so that randomness does not depend on the rank that computes it."""
    torch.manual_seed(key(seed, MICRO_BATCH, step, number) >> 1)
