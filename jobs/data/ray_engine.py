"""Preparation on a Ray cluster: one read task per file, tokenising tasks behind it, tables back in source order.

Nothing here decides anything about rows: `jobs.data.blocks` does, as it does without Ray.
"""

from __future__ import annotations

import functools
import os
import pickle
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from jobs.data.blocks import Work, read_blocks, tokens_of
from jobs.spec import Data

# Ray Data gathers small blocks up to this size before it starts a task on them; its own 128 MiB would put a whole file
# into one task.
TASK_BYTES = 2**20
# Tokenising takes one CPU; where others leave fewer than two, a fraction, so that it starts at all.
CPUS_PER_TASK = 1.0
LEAST_CPUS_PER_TASK = 0.5


def spare_cpus() -> float:
    """CPUs that nobody holds now. Without any, tasks would wait in silence."""
    return float(ray.available_resources().get("CPU", 0.0))


class RecordsSource(Datasource):  # type: ignore[misc]  # ray is untyped
    """One read task per file; a row is a pickled `Block`, so that records of any shape share one Arrow schema."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self._work = work

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[Any]:
        work = self._work
        tasks = []
        for number, path in enumerate(work.files):
            metadata = BlockMetadata(num_rows=None, size_bytes=None, input_files=[path], exec_stats=None)
            tasks.append(ReadTask(functools.partial(_read, number, path, work.data, work.num_labels), metadata))
        return tasks


def _read(number: int, path: str, data: Data, num_labels: int | None) -> Iterator[Any]:
    for block in read_blocks(number, path, data, num_labels):
        yield pa.table({"block": pa.array([pickle.dumps(block)], pa.large_binary())})


def _tokenise(batch: Any, work: Work) -> Iterator[Any]:
    # Ray counts one CPU for this task; the tokenizer's own threads would take them all.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for pickled in batch["block"]:
        yield tokens_of(pickle.loads(pickled.as_py()), work)


def run_on_ray(work: Work) -> Iterator[Any]:
    """The Ray engine; `ray.init` was called. Yields tables with TOKENS_SCHEMA in the order that `run_here` gives.

    Reading holds no CPU, so that it cannot starve the tokenising behind it; and as the two ask for different resources,
    Ray Data does not fuse them, so that one large file is tokenised by many tasks.
    """
    readers = min(len(work.files), max(2, int(ray.cluster_resources().get("CPU", 2)) // 2))
    source = ray.data.read_datasource(
        RecordsSource(work), num_cpus=0, concurrency=readers, override_num_blocks=len(work.files)
    )
    context = source.context
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = TASK_BYTES
    tokens = source.map_batches(
        functools.partial(_tokenise, work=work),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=CPUS_PER_TASK if spare_cpus() >= 2 * CPUS_PER_TASK else LEAST_CPUS_PER_TASK,
    )
    yield from tokens.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)
