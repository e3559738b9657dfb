"""The rows of one worker, step by step. One function reads a chunk of steps, and two readers call it.

`plain_steps` reads in a thread of this process, `ray_steps` in tasks of Ray Data. Both give the same bytes, because a
chunk is a pure function of (prepared data, plan, worker, steps).
"""

from __future__ import annotations

import contextlib
import functools
import queue
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.errors import SpecError
from jobs.data.order.mixture import MixedSection, Mixture, Weights
from jobs.data.order.permutation import Rows
from jobs.data.order.row_order import GROUP_STEPS, WINDOW_BLOCKS, RowOrder, ShuffledRows, StepPlan, micro_batches
from jobs.data.prepared import ROW_SCHEMA, ROWS_PER_BLOCK, Prepared, Split
from jobs.planning.batching import Batching, plan_batching
from jobs.planning.replay import ReplayRaise, raised_weights
from jobs.planning.steps import total_rows, total_steps, warmup_steps
from jobs.spec.finetune import Spec

CHUNK_SCHEMA = pa.schema([("step", pa.int64()), ("micro", pa.int32()), *ROW_SCHEMA])
_CHUNK_ROWS = 256  # rows of a chunk, about
# Fewer bytes are read without Ray Data, which starts two actors in a cluster and a process for each reader. For two
# readers, these starts took 8 seconds of CPU time.
_LEAST_RAY_BYTES = 16 * 2**20
# A task yields its chunks one by one, so many steps in one task need no memory, but each task costs Ray time at its
# start.
_CHUNKS_PER_TASK = 64
_MOST_TASKS = 32
# Bytes of a worker's rows in Ray's object store. By default Ray builds blocks of 128 MiB, and each worker's data set
# may read ahead into half of the whole cluster's store. With many workers or a small store, it would spill to disk.
_LEAST_BLOCK_BYTES, _MOST_BLOCK_BYTES = 4 * 2**20, 128 * 2**20
_LEAST_AHEAD_BYTES, _LEAST_AHEAD_BLOCKS = 32 * 2**20, 4
_BYTES_PER_TOKEN = 8  # its id and its label
_JOIN_S = 10.0  # wait for the thread that reads ahead
# Sleep between two turns of Ray Data's scheduling loop, while blocks are ready and while the worker waits for one. One
# turn may handle several blocks.
_READY_S, _WAITING_S = 0.05, 0.01


@dataclass(frozen=True)
class StepRows:
    """The rows on which one worker trains in one step."""

    step: int
    micros: tuple[Any, ...]  # pyarrow.Table with ROW_SCHEMA for each forward pass; may have no rows


@dataclass(frozen=True)
class Stream:
    """Everything that is needed to read one worker's rows; small, and can be pickled."""

    prepared_root: str
    spec: Spec  # its number of workers is that of the gang
    worker: int
    raises: tuple[ReplayRaise, ...] = ()  # see `step_plan`

    def open(self) -> OpenStream:
        # The cache holds all blocks that a group of steps may touch, so that no block is read twice.
        rows_at_once = plan_batching(self.spec).rows * (GROUP_STEPS if self.spec.grouped_by_length else 1)
        prepared = Prepared.open(self.prepared_root)
        split = prepared.split("train", 4 * WINDOW_BLOCKS + rows_at_once // ROWS_PER_BLOCK)
        parts = prepared.manifest.splits["train"]
        longest = max((part.longest_row for part in parts), default=0)
        mean = sum(part.tokens for part in parts) / max(sum(part.rows for part in parts), 1)
        plan = step_plan(self.spec, split, self.raises)
        return OpenStream(split, plan, plan_batching(self.spec), self.worker, longest, mean)


def step_plan(spec: Spec, split: Split, raises: Sequence[ReplayRaise] = ()) -> StepPlan:
    """Make the run's plan: its steps, and the rows of each step.

    Args:
        raises: steps from which on sources for replay have more weight, ascending. The number of steps stays.

    Raises:
        SpecError: the warmup is longer than the run, or sources are used up before its end. Both are known only when
            the rows are counted.
    """
    rows, order = plan_batching(spec).rows, row_order(spec, split)
    steps = total_steps(spec, order.num_rows, rows)
    warmup_steps(spec.train, steps)
    taken = total_rows(spec, order.num_rows, rows)
    if isinstance(order, Mixture):
        _check_mixture(spec, order, taken)
    plan = StepPlan(
        order=order,
        rows_per_step=rows,
        total_steps=steps,
        total_rows=taken,
        lengths=split.index.num_tokens if spec.grouped_by_length else None,
    )
    if not raises:
        return plan
    assert isinstance(order, Mixture)
    changes = (Weights(one.step * rows, raised_weights(spec, one.times)) for one in raises)
    return replace(plan, order=replace(order, changes=tuple(changes)))


def tokens_per_run(spec: Spec, split: Split) -> float:
    """Estimate the tokens of a run, without padding, from the mean length of a row. Raises SpecError."""
    return int(split.index.num_tokens.sum()) * step_plan(spec, split).total_rows / max(len(split), 1)


def row_order(spec: Spec, split: Split) -> RowOrder:
    """Return the row order: all rows once in each epoch, or, if the sources have weights, a mixture."""
    if not spec.data.mixed:
        return ShuffledRows(len(split), split.rows_per_block, spec.seed)
    sections = (
        MixedSection(rows, source.weight or 1.0, source.max_epochs)
        for source, rows in zip(spec.data.train, split.rows_of_sources, strict=True)
    )
    return Mixture(tuple(sections), split.rows_per_block, spec.seed)


def _check_mixture(spec: Spec, order: Mixture, rows: int) -> None:
    """Raise SpecError if the sources' limits leave too few rows, or keep a source from being used at all."""
    for number in order.left_out:
        source = spec.data.train[number]
        raise SpecError(
            f"data.train[{number}] ({source.path}): max_epochs {source.max_epochs} of {order.sections[number].rows} "
            "rows is less than its weight takes at the very start, so it would never be used. Raise it, or lower weight"
        )
    if order.num_positions is not None and order.num_positions < rows:
        raise SpecError(
            f"the run needs {rows:,} rows, but the max_epochs of all sources in data.train allow "
            f"{order.num_positions:,}. Remove max_epochs from one of them, or train for fewer steps (max_steps, "
            "num_train_epochs)"
        )


@dataclass(frozen=True)
class OpenStream:
    """A worker's rows, ready to be read."""

    split: Split
    plan: StepPlan
    batching: Batching
    worker: int
    longest_row: int  # tokens of the longest row of any worker
    mean_row: float  # tokens

    def read(self, start: int, stop: int) -> Any:
        """Read this worker's rows for steps start..stop-1.

        Returns:
            pyarrow.Table with CHUNK_SCHEMA, sorted by (step, micro).
        """
        steps, micros, rows = [], [], []
        for step in range(start, stop):
            for micro, piece in enumerate(self.dealt(step)):
                steps += [step] * len(piece)
                micros += [micro] * len(piece)
                rows.append(piece)
        table = self.split.read_rows(np.concatenate(rows))
        columns = [pa.array(steps, pa.int64()), pa.array(micros, pa.int32()), *table.columns]
        return pa.Table.from_arrays(columns, schema=CHUNK_SCHEMA)

    def dealt(self, step: int) -> list[Rows]:
        """Return the numbers of this worker's rows in each forward pass of a step."""
        shape = self.batching
        planned = self.plan.rows_of_step(step)
        return micro_batches(planned, shape.per_device, shape.accumulation, shape.num_workers)[self.worker]

    def steps(self, tables: Iterable[Any], start: int) -> Iterator[StepRows]:
        """Divide a reader's tables into steps, and compare each step with the plan.

        Raises:
            RuntimeError: the reader lost rows, or gave other rows than requested.
        """
        source, rest = iter(tables), CHUNK_SCHEMA.empty_table()
        for step in range(start, self.plan.total_steps):
            expected = [len(piece) for piece in self.dealt(step)]
            while rest.num_rows < sum(expected) and (table := next(source, None)) is not None:
                rest = pa.concat_tables([rest, table])
            rows, rest = rest.slice(0, sum(expected)), rest.slice(sum(expected))
            of_step = rows["micro"].to_numpy()[rows["step"].to_numpy() == step]
            given = np.bincount(of_step, minlength=len(expected)).tolist()
            if given != expected:
                raise RuntimeError(f"step {step} should have {expected} rows here, but the reader gave {given}")
            ends, plain = np.cumsum([0, *expected]), rows.select(ROW_SCHEMA.names)
            yield StepRows(step, tuple(plain.slice(low, high - low) for low, high in pairwise(ends)))

    def bytes_from(self, start: int) -> float:
        """Estimate the bytes of this worker's rows from step `start` to the end, from the mean length of a row."""
        rows = (self.plan.total_rows - start * self.plan.rows_per_step) / self.batching.num_workers
        return rows * _BYTES_PER_TOKEN * self.mean_row

    @property
    def bytes_of_data(self) -> float:
        """Estimate the bytes of all rows, which each epoch reads again."""
        return len(self.split) * _BYTES_PER_TOKEN * self.mean_row

    def chunks(self, start: int, stop: int) -> Iterator[Any]:
        at_once = steps_per_chunk(self.batching)
        for first in range(start, stop, at_once):
            yield self.read(first, min(first + at_once, stop))


def steps_per_chunk(batching: Batching) -> int:
    return max(1, _CHUNK_ROWS * batching.num_workers // batching.rows)


def block_bytes(batching: Batching, longest_row: int) -> int:
    """Return the size of one of Ray's blocks: a chunk of rows with `longest_row` tokens, within bounds."""
    rows = -(-batching.rows // batching.num_workers) * steps_per_chunk(batching)
    return min(max(rows * longest_row * _BYTES_PER_TOKEN, _LEAST_BLOCK_BYTES), _MOST_BLOCK_BYTES)


def plain_steps(stream: Stream, start: int) -> Iterator[StepRows]:
    """Yield the steps from `start` to the end, read ahead by a thread of this process."""
    opened = stream.open()

    def tables() -> Iterator[Any]:
        with _ahead(opened.chunks(start, opened.plan.total_steps), depth=2) as read:
            yield from read

    return opened.steps(tables(), start)


@contextlib.contextmanager
def _ahead(tables: Iterator[Any], depth: int) -> Iterator[Iterator[Any]]:
    """Read items in a thread that starts now and is at most `depth` items ahead of the next one. Raises its errors."""
    ready: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
    room, ended = threading.Semaphore(depth), threading.Event()

    def fill() -> None:
        try:
            for table in tables:
                ready.put((table, None))
                room.acquire()
                if ended.is_set():
                    return
            ready.put((None, None))
        except BaseException as error:
            ready.put((None, error))

    def taken() -> Iterator[Any]:
        while True:
            table, error = ready.get()
            room.release()
            if error is not None:
                raise error
            if table is None:
                return
            yield table

    thread = threading.Thread(target=fill, name="read-ahead", daemon=True)
    thread.start()
    try:
        yield taken()
    finally:
        ended.set()
        room.release()
        thread.join(_JOIN_S)  # ending the process while a thread is inside pyarrow would abort it


def ray_steps(stream: Stream, start: int, node: str | None = None) -> Iterator[StepRows]:
    """Yield the steps from `start` to the end. This process reads the first chunk; tasks of Ray Data read the rest.

    Ray needs seconds to start its first tasks. Ray Data starts with the second chunk, once the first step is taken. If
    the rest, or all of the data that its epochs repeat, has fewer than _LEAST_RAY_BYTES, a thread of this process reads
    it instead.

    Args:
        node: id of the node on which rows are read. Without it Ray spreads reading over all nodes, including those of
            other gangs and those that are being drained.
    """
    opened = stream.open()
    stop = opened.plan.total_steps
    soon, later = (min(start + steps, stop) for steps in (1, steps_per_chunk(opened.batching)))

    def tables() -> Iterator[Any]:
        yield opened.read(start, soon)
        if later == stop or min(opened.bytes_from(later), opened.bytes_of_data) < _LEAST_RAY_BYTES:
            with _ahead(opened.chunks(soon, stop), depth=2) as read:
                yield from read
            return
        with _ahead(_ray_tables(stream, opened, later, node), depth=1) as read:
            yield from opened.chunks(soon, later)
            yield from read

    return opened.steps(tables() if start < stop else (), start)


def _ray_tables(stream: Stream, opened: OpenStream, start: int, node: str | None) -> Iterator[Any]:
    """Yield tables with CHUNK_SCHEMA of this worker's rows from step `start` on, in order, through Ray Data.

    Each worker has a separate data set, which runs one read task at a time.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from jobs.data.ray_reads import ordered_reads

    stop, at_once = opened.plan.total_steps, steps_per_chunk(opened.batching)
    steps = at_once * max(_CHUNKS_PER_TASK, -(-(stop - start) // (at_once * _MOST_TASKS)))  # of a task
    reads = [functools.partial(_read, stream, low, min(low + steps, stop)) for low in range(start, stop, steps)]
    strategy = {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=True)} if node else {}
    dataset = ordered_reads(reads, concurrency=1, remote_args=strategy)
    block = block_bytes(opened.batching, opened.longest_row)
    context = dataset.context  # applies to this data set only
    context.target_max_block_size = block
    context.execution_options.resource_limits = context.execution_options.resource_limits.copy(
        object_store_memory=max(_LEAST_AHEAD_BYTES, _LEAST_AHEAD_BLOCKS * block)
    )
    context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, _resting()]
    context.execution_no_progress_timeout_s = -1  # a worker may train on one block, or evaluate, for hours
    yield from dataset.iterator().iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2)


def _resting() -> type[Any]:
    """Make a callback that lets Ray Data's scheduling loop sleep after a turn.

    The loop waits only while no task has a block to give. If a task has one but may not give it yet, because enough is
    read ahead, the loop would use up to one core beside the thread that trains.
    """
    from ray.data._internal.execution.execution_callback import ExecutionCallback

    class Resting(ExecutionCallback):  # type: ignore[misc]  # ray carries no types
        def on_execution_step(self, executor: Any) -> None:
            time.sleep(_WAITING_S if executor._consumer_idling() else _READY_S)

    return Resting


def _read(stream: Stream, start: int, stop: int) -> Iterator[Any]:
    """Yield the chunks of a read task. It opens the shards on the node where it runs."""
    yield from stream.open().chunks(start, stop)
