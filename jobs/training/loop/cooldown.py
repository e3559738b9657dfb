"""Estimates the final score of a run: the rate falls to zero within a few steps, then the earlier state is restored.

The held-out loss in the middle of a run says little about the end of the run: a high rate keeps the loss high, and
progress shows only once the rate falls.
"""

from __future__ import annotations

import torch

from jobs.planning import learning_rate_at
from jobs.training.loop.loop import train_step
from jobs.training.loop.state import LoopState, Run


def cooled_down(run: Run, state: LoopState, steps: int) -> tuple[dict[str, float], int]:
    """Return eval_* after `steps` more steps, in which the rate falls linearly to zero, and the tokens of these steps.

    Every rank must call it. Afterwards weights, optimizer, buffers and loss scale are as they were before.
    """
    assert run.evaluator is not None
    kept = _SavedState(run)
    last = min(state.step + steps, run.plan.total_steps)
    rate = learning_rate_at(state.step, run.job.spec.train, run.plan.total_steps)
    tokens = 0
    for rows in run.gang.steps(run.stream(), state.step):
        left = (last - rows.step) / (last - state.step)
        train_step(run, rows, rate * left)
        tokens += int(run.num_tokens[run.plan.rows_of_step(rows.step)].sum())
        if rows.step + 1 == last:
            break
    metrics, _ = run.evaluator.score(run.engine.module, run.gang)
    kept.put_back(run)
    return metrics, tokens


def on_host(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a tensor to host memory, because a GPU may not have enough memory for a second training state."""
    return tensor.detach().to("cpu", copy=True)


class _SavedState:
    """A copy of this rank's training state in host memory."""

    def __init__(self, run: Run) -> None:
        partitions = run.engine.partitions
        self._state = {kind: tuple(on_host(flat) for flat in flats) for kind, flats in partitions.state().items()}
        self._step = partitions.optimizer_step()
        self._buffers = {name: on_host(buffer) for name, buffer in run.engine.buffers.items()}
        self._scaler = run.engine.loss_scaler()

    @torch.no_grad()
    def put_back(self, run: Run) -> None:
        run.engine.partitions.load(self._state, self._step)
        for name, buffer in run.engine.buffers.items():
            buffer.copy_(self._buffers[name])
        run.engine.load_loss_scaler(self._scaler)
