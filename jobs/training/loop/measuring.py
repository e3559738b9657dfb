"""Measures a run before its end: its score after a cool-down, for a search, and losses along its first step.

A cool-down estimates the final score: the rate falls to zero within a few steps, then the earlier state is restored.
The held-out loss in the middle of a run says little about the end of the run: a high rate keeps the loss high, and
progress shows only once the rate falls.

Adam's first step, weight decay included, has the same direction at every learning rate, and its length is proportional
to the rate. So one backward pass is enough to compare rates; then the weights are moved along that direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch
import torch.distributed as dist

from jobs.data.order.stream import StepRows
from jobs.planning import learning_rate_at
from jobs.remedies.excessive_rate import compared_with_first, may_be_worse_than_at_first
from jobs.remedies.hang import Doing
from jobs.remedies.outliers import compared_with_lowest, lowest_to_measure
from jobs.run.checkpoints import StepHistory
from jobs.training.loop.loss import loss_sum
from jobs.training.loop.state import LoopState, Run
from jobs.training.loop.step import train_step
from jobs.training.model.batch import collate, model_logits
from jobs.training.model.engine import Engine

_LENGTH = 1e-5  # learning rate of the step that is computed; other rates are scaled from it
_SCORED_STEPS = 2  # the losses are measured on the rows of this many following steps


def cooled_down(run: Run, state: LoopState, steps: int) -> tuple[dict[str, float], int]:
    """Return eval_* after `steps` more steps, in which the rate falls linearly to zero, and the tokens of these steps.

    Every rank must call it. Afterwards weights, optimizer, buffers and loss scale are as they were before.
    """
    assert run.evaluator is not None
    kept = HeldState.of(run.engine, is_new=False)
    last = min(state.step + steps, run.plan.total_steps)
    rate = learning_rate_at(state.step, run.job.spec.train, run.plan.total_steps)
    tokens = 0
    for rows in run.worker.steps(run.stream(), state.step):
        left = (last - rows.step) / (last - state.step)
        train_step(run, rows, rate * left)
        tokens += run.tokens_of(rows.step)
        if rows.step + 1 == last:
            break
    metrics, _ = run.evaluator.score(run.engine.module, run.worker)
    if run.harness is not None:
        metrics = metrics | run.harness.score(run.engine.module, run.worker)
    kept.put_back(run.engine)
    return metrics, tokens


def on_host(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a tensor to host memory, because a GPU may not have enough memory for a second training state."""
    return tensor.detach().to("cpu", copy=True)


@dataclass(frozen=True)
class HeldState:
    """A copy of this rank's training state in host memory: everything that training changes."""

    seed: int  # seed of the weights that the model's directory lacks
    weights: tuple[torch.Tensor, ...]  # as `Partitions.flats`
    buffers: dict[str, torch.Tensor]
    loss_scaler: dict[str, float] | None
    moments: dict[str, tuple[torch.Tensor, ...]]  # as in `Partitions.state`; empty: those of a new engine
    optimizer_step: int = 0

    @classmethod
    def of(cls, engine: Engine, *, is_new: bool) -> HeldState:
        """Copy an engine's state. `is_new`: it has not trained yet, so its optimizer's state is not copied."""
        state = {"weight": engine.partitions.flats} if is_new else engine.partitions.state()
        flats = {kind: tuple(map(on_host, flats)) for kind, flats in state.items()}
        buffers = {name: on_host(buffer) for name, buffer in engine.buffers.items()}
        step = engine.partitions.optimizer_step()
        return cls(engine.spec.seed, flats.pop("weight"), buffers, engine.loss_scaler(), flats, step)

    @torch.no_grad()
    def put_back(self, engine: Engine) -> None:
        """Load this state into the engine. Every rank must call it."""
        if self.moments:
            engine.partitions.load({"weight": self.weights, **self.moments}, self.optimizer_step)
        else:
            engine.partitions.restart(self.weights)
        for name, buffer in engine.buffers.items():
            buffer.copy_(self.buffers[name])
        engine.load_loss_scaler(self.loss_scaler)


class FirstStep(NamedTuple):
    """The losses along the first step.

    Attributes:
        losses: the mean loss before the step, and after it at each rate.
        tokens: of all passes. A forward pass alone costs a third of a step, so its tokens count as a third.
        save: a checkpoint was asked for meanwhile.
    """

    losses: list[float]
    tokens: int
    save: bool


def losses_along_first_step(run: Run, rates: Sequence[float], rewound: bool = False) -> FirstStep:
    """Measure the mean loss before the first step, and after it at each rate.

    Every rank must call it, with the state before the first step. Afterwards the weights differ, and the optimizer's
    state is empty.

    Args:
        rewound: this worker group has trained steps of the run.
    """
    rows, *scored = list(islice(run.worker.steps(run.stream(), 0, rewound), 1 + _SCORED_STEPS))
    run.worker.mark(Doing.OTHER)
    before = tuple(on_host(flat) for flat in run.engine.partitions.flats)
    losses = [_loss(run, scored)]
    save = train_step(run, rows, _LENGTH).save
    way = tuple(on_host(flat) - start for flat, start in zip(run.engine.partitions.flats, before, strict=True))
    for rate in rates:
        there = tuple(start + rate / _LENGTH * part for start, part in zip(before, way, strict=True))
        run.engine.partitions.restart(there)
        losses.append(_loss(run, scored))
    forward = len(losses) * run.tokens_of(*(one.step for one in scored))
    tokens = run.tokens_of(rows.step) + round(forward / 3)
    return FirstStep(losses, tokens, save)


def compared_with_earlier(run: Run, history: StepHistory, step: int) -> StepHistory:
    """Measure rows of earlier steps again, if the losses after `step` steps suggest that the weights are damaged.

    Every rank must call it.
    """
    if may_be_worse_than_at_first(history, step):
        history = compared_with_first(history, step, _loss_of_steps(run, range(1)))
    if (steps := lowest_to_measure(history, step)) is not None:
        history = compared_with_lowest(history, step, _loss_of_steps(run, steps))
    return history


def _loss_of_steps(run: Run, steps: range) -> float:
    """Return the mean loss of the rows of these steps (0-based), with the present weights."""
    rows = list(islice(run.worker.steps(run.stream(), steps.start, rewound=True), len(steps)))
    run.worker.mark(Doing.OTHER)
    return _loss(run, rows)


@torch.no_grad()
def _loss(run: Run, steps: Sequence[StepRows]) -> float:
    """Return the mean loss over the targets of these rows, without dropout."""
    worker, task = run.worker, run.job.spec.model.task
    targets = run.targets_of(*(one.step for one in steps))
    total = torch.zeros((), dtype=torch.float64, device=worker.device)
    run.engine.module.eval()
    try:
        for one in steps:
            for table in one.micros:
                batch = collate(table, task, run.engine.pad_token_id, worker.device, run.unpack)
                total += loss_sum(model_logits(run.engine.module, batch, task), batch.targets).double()
    finally:
        run.engine.module.train()
    dist.all_reduce(total)
    return float(total) / max(targets, 1)
