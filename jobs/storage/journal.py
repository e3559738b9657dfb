"""Append-only records on storage that can neither append nor rename: numbered parts, which a reader joins."""

from __future__ import annotations

import functools
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cluster.errors import StorageError
from jobs.storage import files as storage
from jobs.storage import strict_json

Record = dict[str, Any]

FIRST_INTERVAL_S = 1.0  # between parts of a new journal
LAST_INTERVAL_S = 30.0  # between parts after half an hour
_READERS = 16
PART_BYTES = 1 << 20  # a part may exceed this by one record

_PART_NAME = re.compile(r"\d{20}-[^/]*\.jsonl")


class JournalWriter:
    """Collects records and writes them to the folder as parts named `{time in ns}-{writer}.jsonl`.

    A part is written when an interval has passed since the last one. The interval is 1 s at the start of a run and
    grows with its age to 30 s, so that days of training do not produce a million files. A background thread writes, so
    slow storage never delays a step.
    """

    def __init__(self, folder: str, writer: str = "0") -> None:
        self._folder = folder
        self._writer = writer
        self._part: str | None = None
        self._writing = threading.Lock()
        self._pending: list[str] = []
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closed = False
        self._started_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=f"journal-{writer}", daemon=True)
        self._thread.start()

    def append(self, record: Record) -> None:
        """Add one record. Records keep their order. Never waits for the storage."""
        line = strict_json.exact(record)
        with self._lock:
            self._pending.append(line)

    def hurry(self) -> None:
        """Have the background thread write now, instead of at the end of the interval."""
        self._wake.set()

    def flush(self) -> None:
        """Write all pending records to storage now. Raises StorageError."""
        with self._writing:
            while lines := self._taken():
                self._put(lines)

    def _taken(self) -> list[str]:
        """Remove the records of the next part from those pending. After an outage there may be several parts."""
        with self._lock:
            size = count = 0
            while count < len(self._pending) and (not count or size < PART_BYTES):
                size += len(self._pending[count])
                count += 1
            lines, self._pending = self._pending[:count], self._pending[count:]
        return lines

    def _put(self, lines: list[str]) -> None:
        if self._part is None:  # otherwise the last write failed: use the same name, so that no record is stored twice
            self._part = f"{time.time_ns():020d}-{self._writer}.jsonl"
        try:
            storage.write_bytes(storage.join(self._folder, self._part), ("\n".join(lines) + "\n").encode())
            self._part = None
        except BaseException:
            with self._lock:
                self._pending = lines + self._pending
            raise

    def close(self) -> None:
        """Write all pending records and end the thread. Raises StorageError."""
        self._closed = True
        self._wake.set()
        self._thread.join()
        self.flush()

    def _run(self) -> None:
        while not self._closed:
            age_s = time.monotonic() - self._started_at
            self._wake.wait(interval_s(age_s))
            self._wake.clear()
            try:
                self.flush()
            except Exception:  # a storage may raise anything
                continue  # the records are kept for the next part; close() raises the error


def interval_s(age_s: float) -> float:
    """Return the seconds between two parts of a journal of this age."""
    return min(max(age_s / 60.0, FIRST_INTERVAL_S), LAST_INTERVAL_S)


class JournalReader:
    """Joins the parts of a folder. Each call of `new` yields the records since the last call."""

    def __init__(self, folder: str, skip: str | None = None) -> None:
        """`skip` names a writer whose parts are ignored."""
        self._folder = folder
        self._skipped = (f"-{skip}.jsonl",) if skip else ()
        self._seen: set[str] = set()

    def pass_over(self) -> None:
        """Treat all present parts as read, because they belong to an earlier attempt. Raises StorageError."""
        self._seen.update(storage.list_names(self._folder))

    def new(self) -> Iterator[Record]:
        for name in storage.list_names(self._folder):
            if name in self._seen or not is_part(name):
                continue
            records = [] if name.endswith(self._skipped) else read_part(self._folder, name)
            self._seen.add(name)  # after reading, so that a part that could not be read is tried again
            yield from records


def is_part(name: str) -> bool:
    """Whether a file in a journal's folder is one of its parts."""
    return _PART_NAME.fullmatch(name) is not None


def part_names(folder: str) -> list[str]:
    """List the names of the parts, oldest first. Raises StorageError."""
    return [name for name in storage.list_names(folder) if is_part(name)]


def written_at_s(part: str) -> float:
    """Return the time in a part's name, when it was written, in seconds since 1970."""
    return int(part[:20]) / 1e9


def read_part(folder: str, part: str) -> list[Record]:
    """Read the records of one part. Raises StorageError, also if the part is damaged."""
    path = storage.join(folder, part)
    content = storage.read_bytes(path)
    try:
        records: list[Record] = [strict_json.read(line) for line in content.splitlines()]
    except (ValueError, RecursionError) as error:
        raise _damaged(path) from error
    if not all(isinstance(record, dict) for record in records):
        raise _damaged(path)
    return records


def _damaged(path: str) -> StorageError:
    return StorageError(f"{path} is damaged. Restore the file, or remove it: then the records in it are missing")


def newest_record(folder: str) -> Record | None:
    """Return the record that was written last; None if there is none. Raises StorageError.

    An earlier attempt may have written records of later steps.
    """
    names = part_names(folder)
    records = read_part(folder, names[-1]) if names else []
    return records[-1] if records else None


def read_journal(folder: str) -> list[Record]:
    """Read all records, in the order of their parts. Raises StorageError.

    Many parts are read at a time: object storage takes tens of milliseconds for each, and a day of training has 1,500.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        parts = pool.map(functools.partial(read_part, folder), part_names(folder))
        return [record for records in parts for record in records]
