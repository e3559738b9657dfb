"""Read a source through one of the engines: samples to scratch files, bad rows to a list, fatal ones raised."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow.compute as pc

from jobs import storage
from jobs.data.blocks import Work, run_here
from jobs.data.formats import BadRow, first_of
from jobs.data.scratch import Samples, Scratch
from jobs.errors import DataError

Engine = Literal["plain", "ray"]
Say = Callable[[str], None]

SAY_EVERY_S = 5.0
MOST_BAD_SHARE = 0.01
BAD_ROWS_SHOWN = 10
# So many bad rows end the reading at once if their share is too high by then; fewer wait for the end of the source.
BAD_ROWS_TO_STOP = 10_000


@dataclass(frozen=True)
class Source:
    """What was read of `train` or of `eval`."""

    name: str
    samples: Samples
    records: int
    bad: tuple[BadRow, ...]


class Progress:
    """Says how far and how fast, at most every SAY_EVERY_S seconds."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._started_at = self._said_at = time.monotonic()
        self._samples = 0

    def add(self, samples: int) -> None:
        self._samples += samples
        now = time.monotonic()
        if now - self._said_at >= SAY_EVERY_S:
            self._said_at = now
            self._say(f"prepared {self.so_far()}")

    def so_far(self) -> str:
        rate = self._samples / max(time.monotonic() - self._started_at, 1e-9)
        return f"{self._samples:,} samples, {rate:,.0f}/s"


def tables(work: Work, engine: Engine, say: Say) -> Iterator[Any]:
    """Tables with `blocks.TOKENS_SCHEMA` in source order."""
    if engine == "plain":
        return run_here(work)
    from jobs.data.ray_engine import LEAST_CPUS_PER_TASK, run_on_ray, spare_cpus

    if spare_cpus() < LEAST_CPUS_PER_TASK:
        say("no CPU of the cluster is free: tokenising in the driver")
        return run_here(work)
    return run_on_ray(work)


def read_source(name: str, work: Work, found: Iterable[Any], folder: str, progress: Progress) -> Source:
    """Take in the tables of one source.

    Raises:
        DataError: a file cannot be read, a label is no class of the model, or far too many rows are bad.
    """
    bad, records = list[BadRow](), 0
    with Scratch(folder, name) as scratch:
        for table in found:
            good = table.filter(pc.is_null(table["reason"]))
            bad += _bad_rows(table, work.files)
            records += pc.sum(pc.equal(table["part"], 0)).as_py()
            scratch.append(good)
            progress.add(good.num_rows)
            if len(bad) >= BAD_ROWS_TO_STOP and _too_many(bad, records):
                break
    return Source(name, scratch.samples(), records, tuple(bad))


def _bad_rows(table: Any, files: tuple[str, ...]) -> list[BadRow]:
    rows = table.filter(pc.is_valid(table["reason"])).select(["file", "line", "reason", "fatal"]).to_pylist()
    bad = [BadRow(files[row["file"]], row["line"], row["reason"], fatal=row["fatal"]) for row in rows]
    for row in bad:
        if row.fatal:
            raise DataError(str(row) if row.line else row.reason)
    return bad


def write_bad_rows(root: str, sources: Iterable[Source]) -> int:
    """Leave bad_rows.jsonl in the prepared directory; returns how many there are.

    Raises:
        DataError: they are more than MOST_BAD_SHARE of a source.
    """
    sources = tuple(sources)
    path = storage.join(root, "bad_rows.jsonl")
    lines = [
        json.dumps({"file": row.file, "line": row.line, "reason": row.reason})
        for source in sources
        for row in source.bad
    ]
    storage.write_bytes(path, "".join(f"{line}\n" for line in lines).encode())
    for source in sources:
        if _too_many(source.bad, source.records):
            raise DataError(_complaint(source, path))
    return len(lines)


def _too_many(bad: tuple[BadRow, ...] | list[BadRow], records: int) -> bool:
    return len(bad) > MOST_BAD_SHARE * records


def _complaint(source: Source, path: str) -> str:
    count, records = len(source.bad), source.records
    return (
        f"{count:,} of {records:,} rows ({count / records:.1%}) of data.{source.name} cannot be used, and at most "
        f"{MOST_BAD_SHARE:.0%} may be set aside. Correct the data or data.columns. The first ones (all: {path}):\n"
        + first_of(list(source.bad), BAD_ROWS_SHOWN)
    )
