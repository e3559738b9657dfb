"""Distributes the rows of one optimizer step over workers and forward passes. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.errors import SpecError
from jobs.spec.finetune import Spec


@dataclass(frozen=True)
class Batching:
    """The shape of one optimizer step: a grid of forward passes. If `rows` does not divide, some places stay empty."""

    rows: int  # rows of one optimizer step, over all workers
    per_device: int  # most rows of one worker in one forward pass (the micro-batch)
    accumulation: int  # forward passes of each worker per optimizer step
    num_workers: int

    @property
    def micro_batches(self) -> int:
        """Forward passes of one optimizer step over all workers."""
        return self.accumulation * self.num_workers

    @property
    def places(self) -> int:
        """Rows that the grid of forward passes could hold: `rows`, or slightly more."""
        return self.micro_batches * self.per_device

    @property
    def most_rows(self) -> int:
        """Rows of one optimizer step on the first worker, which has the most (`row_order.micro_batches`)."""
        full = self.accumulation - 1
        return full * self.per_device + min(self.per_device, self.rows - full * self.num_workers * self.per_device)


def plan_batching(spec: Spec) -> Batching:
    """Derive those of micro-batch, accumulation, workers and global batch that the spec leaves out.

    Raises:
        SpecError: they contradict each other, or a step has fewer rows than workers.
    """
    train, workers = spec.train, spec.resources.num_workers
    per_device, accumulation = train.per_device_train_batch_size, train.gradient_accumulation_steps
    asked = global_rows(spec)
    if asked is None:
        accumulation = accumulation or 1
        return Batching(per_device * accumulation * workers, per_device, accumulation, workers)
    rows, named = asked
    if rows < workers:
        raise SpecError(
            f"{named}, fewer rows than num_workers ({workers}): every worker needs a row of each step. "
            f"Raise {rows_raised(spec, workers)}" + (f", or set resources.num_workers to {rows}" if rows else "")
        )
    derived = -(-rows // (per_device * workers))
    if accumulation is not None and accumulation != derived:
        raise SpecError(
            f"per_device_train_batch_size ({per_device}) x gradient_accumulation_steps ({accumulation}) x "
            f"num_workers ({workers}) = {per_device * accumulation * workers}, but {named}: drop one of them"
        )
    return Batching(rows, per_device, derived, workers)


def rows_raised(spec: Spec, rows: int) -> str:
    """Return the field of the global batch with its least value for this number of rows, as a phrase."""
    if spec.train.global_batch_size is not None:
        return f"train.global_batch_size to {rows} or more"
    return f"train.global_batch_tokens to {rows * spec.data.seq_len} or more"


def global_rows(spec: Spec) -> tuple[int, str] | None:
    """Return the global batch in rows, with a phrase that names the field; None if the spec gives none."""
    train, seq_len = spec.train, spec.data.seq_len
    if train.global_batch_size is not None:
        return train.global_batch_size, f"global_batch_size is {train.global_batch_size}"
    if train.global_batch_tokens is not None:
        rows = train.global_batch_tokens // seq_len
        return rows, f"global_batch_tokens ({train.global_batch_tokens}) // data.seq_len ({seq_len}) is {rows}"
    return None
