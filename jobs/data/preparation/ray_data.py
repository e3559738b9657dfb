"""Preparation on a Ray cluster: one read task per file, followed by tokenising tasks; results are in source order.

Rows are decided by `sources.chunks`, as without Ray. Ray Data holds readers back while the tokenising tasks are busy,
so only a few chunks for each CPU are in flight.
"""

from __future__ import annotations

import functools
import os
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa
import ray

from jobs.data.ray_reads import ordered_reads
from jobs.data.sources.chunks import Task, Todo, Work, read_chunks
from jobs.model_files.tokenizer import TokenizerFiles

# Ray Data collects small blocks up to this size before it starts a task on them. Its default of 128 MiB would put a
# whole file into one task.
TASK_BYTES = 2**20
# Tokenising takes one CPU. If fewer than two are free, a task asks for a fraction, so that it starts at all.
CPUS_PER_TASK = 1.0
LEAST_CPUS_PER_TASK = 0.5
MOST_WARMED_UP = 64


def warm_up() -> list[Any]:
    """Start workers that import what tokenising needs, while the driver still imports.

    There is one for every free CPU, up to a number that starts quickly. Keep the result until the workers are used.
    """
    imports = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy="SPREAD")(_import_libraries)
    return [imports.remote() for _ in range(min(int(spare_cpus()), MOST_WARMED_UP))]


def _import_libraries() -> None:
    import jobs.data.preparation.parts  # noqa: F401


def spare_cpus() -> float:
    """Return the CPUs that are free now. Without free CPUs, tasks would wait without a message."""
    return float(ray.available_resources().get("CPU", 0.0))


def _read(file: int, work: Work, skip: frozenset[int]) -> Iterator[Any]:
    """Yield pickled chunks as rows, so that records of any shape have one Arrow schema."""
    for chunk in read_chunks(file, work, skip):
        yield pa.table({"chunk": pa.array([pickle.dumps(chunk)], pa.large_binary())})


def _applied(task: Task, work: Work) -> Callable[[Any], Iterator[Any]]:
    """Turn the task into a function of Ray Data's batches. The large tokenizer is put into the object store once."""
    stored = ray.put((task, replace(work, tokenizer=work.tokenizer.for_workers())))

    def tokenise(batch: Any) -> Iterator[Any]:
        # Ray counts one CPU for this task, but the tokenizer's threads would use all CPUs.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        here, with_work = _taken_up(stored)
        for pickled in batch["chunk"]:
            yield here(pickle.loads(pickled.as_py()), with_work)

    return tokenise


def _taken_up(stored: Any) -> tuple[Task, Work]:
    """Get the task and the work from the object store, unpickled once per process."""
    if stored.hex() not in _TAKEN_UP:
        _TAKEN_UP.clear()  # another source's tokenizer would stay in memory
        _TAKEN_UP[stored.hex()] = ray.get(stored)
    return _TAKEN_UP[stored.hex()]


_TAKEN_UP: dict[str, tuple[Task, Work]] = {}


def run_on_ray(task: Task, work: Work, todo: Todo) -> Iterator[Any]:
    """Yield the tables that `task` makes, in the order of the plain engine. Call `ray.init` before.

    There is one read task per file. It reserves no CPU, so that it cannot starve tokenising. Because the two ask for
    different resources, Ray Data does not fuse them, so many tasks tokenise one large file.
    """
    # Readers need no tokenizer, and Ray Data rejects a read task of over a megabyte.
    small = replace(work, tokenizer=TokenizerFiles("", ()), code=None)
    reads = [functools.partial(_read, file, small, skip) for file, skip in todo.items()]
    readers = min(len(todo), max(2, int(ray.cluster_resources().get("CPU", 2)) // 2))
    source = ordered_reads(reads, readers)
    source.context.print_on_execution_start = False
    source.context.target_max_block_size = TASK_BYTES
    results = source.map_batches(
        _applied(task, work),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=CPUS_PER_TASK if spare_cpus() >= 2 * CPUS_PER_TASK else LEAST_CPUS_PER_TASK,
    )
    yield from results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)
