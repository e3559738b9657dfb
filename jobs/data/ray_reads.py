"""A data set of Ray Data that reads by functions of this package, in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask


class _Reads(Datasource):  # type: ignore[misc]  # ray carries no types
    def __init__(self, reads: Sequence[Callable[[], Iterable[Any]]]) -> None:
        super().__init__()
        unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        self._tasks = [ReadTask(read, unknown) for read in reads]

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[Any]:
        return self._tasks


def ordered_reads(reads: Sequence[Callable[[], Iterable[Any]]], concurrency: int, remote_args: Any = None) -> Any:
    """Make a data set of the tables that functions yield, with a read task for each function.

    Reading reserves no CPU (`num_cpus=0`): other tasks or workers may hold every logical CPU, and a read task that
    needs one would wait forever.
    """
    dataset = ray.data.read_datasource(
        _Reads(reads), num_cpus=0, concurrency=concurrency, override_num_blocks=len(reads), ray_remote_args=remote_args
    )
    dataset.context.execution_options.preserve_order = True
    dataset.context.enable_progress_bars = False
    return dataset
