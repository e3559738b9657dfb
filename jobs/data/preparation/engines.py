"""Processes chunks in this process or in Ray Data's tasks. Both give the same tables in the same order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from jobs.data.preparation.progress import Say
from jobs.data.sources.chunks import Task, Todo, Work, read_chunks

Engine = Literal["plain", "ray"]

_FEW_FILES = 32
_PACKED, _PACKED_SUFFIXES = 10, (".gz", ".parquet")  # compressed files hold about ten times their size in text


def is_little(files: Sequence[tuple[str, int]], most_bytes: int) -> bool:
    """Whether files, given by name and size, hold at most `most_bytes` of text, as far as sizes tell."""
    text = sum(size * (_PACKED if name.endswith(_PACKED_SUFFIXES) else 1) for name, size in files)
    return text <= most_bytes and len(files) <= _FEW_FILES


def started(engine: Engine) -> object:
    """Start the engine's workers before the tokenizer is loaded. Keep the result until the workers are used."""
    if engine == "plain":
        return None
    from jobs.data.preparation.ray_data import warm_up

    return warm_up()


def run(task: Task, work: Work, todo: Todo, engine: Engine, say: Say) -> Iterator[Any]:
    """Yield the tables that `task` makes of all remaining chunks, in source order."""
    if engine == "plain" or not todo:
        return _run_here(task, work, todo)
    from jobs.data.preparation.ray_data import LEAST_CPUS_PER_TASK, run_on_ray, spare_cpus

    if spare_cpus() < LEAST_CPUS_PER_TASK:
        say("no CPU of the cluster is free: tokenising in the driver")
        return _run_here(task, work, todo)
    return run_on_ray(task, work, todo)


def _run_here(task: Task, work: Work, todo: Todo) -> Iterator[Any]:
    for file, skip in todo.items():
        for chunk in read_chunks(file, work, skip):
            yield task(chunk, work)
