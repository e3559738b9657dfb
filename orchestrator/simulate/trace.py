"""CSV files: traces of jobs that were submitted to a cluster, and schedules. All bad rows are reported together."""

from __future__ import annotations

import csv
import gzip
import io
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence

from cluster.errors import StorageError, TraceError
from cluster.text import grouped, many
from jobs.storage import files as storage
from orchestrator.pages.tables import shortened
from orchestrator.scheduling.forecast.queue_simulation import Attempt
from orchestrator.simulate.values import Simulated, TraceJob

COLUMNS = ("submit_s", "duration_s", "num_gpus", "tenant")  # required columns; priority is optional

_TOLD = 5  # most bad rows in a message
# Upper bounds in seconds: 3,000 years, which milliseconds since 1970 exceed, and ten years.
_MOST_S = {"submit_s": 1e11, "duration_s": 3.2e8}
_MOST_PRIORITY = 1_000_000_000
_CELL = 40  # most characters of a value in a message
_FORMAT = f"A trace is a CSV file whose first line names the columns {', '.join(COLUMNS)} and, optionally, priority."


def read_trace(path: str, most_gpus: int | None) -> tuple[TraceJob, ...]:
    """Read the jobs of a CSV file or URL, gzipped or not, in the order of its rows.

    Args:
        path: a file with the columns submit_s and duration_s in seconds, num_gpus, tenant and, optionally, priority
            (empty: 0), in any order; others are ignored.
        most_gpus: GPUs of the cluster, which no gang may exceed; None: not checked.

    Raises:
        TraceError: the file is missing, is not such a CSV file or has no jobs; or rows are bad, of which the first 5
            are named.
    """
    jobs, bad = list[TraceJob](), list[str]()
    last: tuple[int, float] | None = None  # (line, submit_s) of the previous row
    is_unsorted = False
    for line, fields in _rows(path):
        reader = _Reader(fields)
        job = reader.job(most_gpus)
        submit_s = job.submit_s
        if last and submit_s < last[1]:
            is_unsorted = True
            reader.reasons.append(f"submitted at {submit_s:g} s, before line {last[0]} ({last[1]:g} s)")
        last = last if math.isnan(submit_s) else (line, submit_s)
        jobs.append(job)
        bad += [f"line {line}: {'; '.join(reader.reasons)}"] if reader.reasons else []
    if bad:
        raise TraceError(_bad_rows(path, bad, is_unsorted))
    if not jobs:
        raise TraceError(f"{path} has no jobs: add a line for each job below the first line")
    return tuple(jobs)


class _Reader:
    """Converts the fields of one row to a job. `reasons`: the problems found."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        self._fields = fields
        self.reasons = [fields[""]] if "" in fields else []

    def job(self, most_gpus: int | None) -> TraceJob:
        """Return the job. Fields that cannot be read are NaN or 0."""
        if self.reasons:
            return TraceJob(math.nan, math.nan, 0, "")
        submit_s, duration_s = self._time("submit_s"), self._time("duration_s")
        if duration_s == 0:
            self.reasons.append("duration_s must be above 0")
        tenant = self._fields["tenant"].strip()
        if not tenant:
            self.reasons.append("tenant is empty")
        priority = self._whole("priority") if self._fields.get("priority", "").strip() else 0
        if abs(priority) > _MOST_PRIORITY:
            self.reasons.append(f"priority {priority:g} is outside of -{_MOST_PRIORITY:,} to {_MOST_PRIORITY:,}")
        return TraceJob(submit_s, duration_s, self._gpus(most_gpus), tenant, priority)

    def _time(self, name: str) -> float:
        value = self._number(name)
        least = "at least 0" if name == "submit_s" else "above 0"
        if value < 0:
            self.reasons.append(f"{name} must be {least}, but is {value:g}")
        if value > _MOST_S[name]:
            self.reasons.append(f"{name} {value:g} is more than {_MOST_S[name]:g} s; are these milliseconds?")
        return value

    def _gpus(self, most_gpus: int | None) -> int:
        gpus = self._whole("num_gpus", least=1)
        if most_gpus is not None and gpus > most_gpus:
            asked = grouped(gpus) if gpus < 10**15 else f"{gpus:g}"
            self.reasons.append(f"needs {asked} GPUs, but the cluster has {most_gpus:,}")
        return gpus

    def _whole(self, name: str, least: int | None = None) -> int:
        value = self._number(name)
        if math.isnan(value):
            return 0
        if value.is_integer() and (least is None or value >= least):
            return int(value)
        wanted = "a whole number" if least is None else f"a whole number of at least {least}"
        self.reasons.append(f"{name} must be {wanted}, but is {value:g}")
        return 0

    def _number(self, name: str) -> float:
        text = self._fields[name].strip()
        try:
            value = float(text) if "_" not in text else math.nan
        except ValueError:
            value = math.nan
        if math.isfinite(value):
            return value
        self.reasons.append(f"{name} is {f'not a number: {shortened(text, _CELL)}' if text else 'empty'}")
        return math.nan


def _rows(path: str) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Yield (line number, fields by name) of each row. A row of the wrong length has only a field '' with an error."""
    reader = csv.reader(io.StringIO(_text(path), newline=""))
    try:
        names = [name.strip() for name in next(reader, [])]
        _check_header(path, names)
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(names):
                yield reader.line_num, {"": f"has {len(cells)} fields, the first line has {len(names)}"}
            else:
                yield reader.line_num, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise TraceError(f"{path} is not a CSV file: line {reader.line_num}: {error}. {_FORMAT}") from error


def _check_header(path: str, names: Sequence[str]) -> None:
    if not any(names):
        raise TraceError(f"{path} is empty or begins with an empty line. {_FORMAT}")
    if missing := [name for name in COLUMNS if name not in names]:
        found = ", ".join(shortened(name, _CELL) for name in names[:20])
        column = "column" if len(missing) == 1 else "columns"
        raise TraceError(f"{path} lacks the {column} {', '.join(missing)}; found: {found}. {_FORMAT}")
    if twice := [name for name in (*COLUMNS, "priority") if names.count(name) > 1]:
        raise TraceError(f"{path} has more than one column {twice[0]}: keep one of them")


def _text(path: str) -> str:
    try:
        content = storage.read_bytes(path)
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
        text = content.decode("utf-8-sig")
    except StorageError as error:
        raise TraceError(f"the trace cannot be read: {error}. Give the path or URL of a trace. {_FORMAT}") from error
    except (UnicodeDecodeError, OSError, EOFError, zlib.error) as error:
        raise TraceError(f"{path} is not a text file: {error}. {_FORMAT}") from error
    if "\0" in text:
        raise TraceError(f"{path} is not a text file: it contains zero bytes. {_FORMAT}")
    return text


def _bad_rows(path: str, bad: Sequence[str], is_unsorted: bool) -> str:
    count = many(len(bad), "bad row")
    lines = [f"{path} has {count}, and nothing was simulated:", *(f"  {one}" for one in bad[:_TOLD])]
    if len(bad) > _TOLD:
        lines.append(f"  and {len(bad) - _TOLD:,} more")
    if is_unsorted:
        lines.append("To correct their order, sort the rows by submit_s.")
    return "\n".join(lines)


def schedule_csv(simulated: Simulated) -> str:
    """Format the schedule, one line for each attempt, sorted by job and start.

    `job` is the row of the trace, counted from 0. Times are seconds as in the trace, with all digits, so that the
    attempts of a job add up to its duration and the cost of interruptions. `placement` is node:GPUs, joined by
    semicolons.
    """
    ordered = sorted(simulated.attempts, key=lambda attempt: (attempt.row, attempt.start_s))
    return "\n".join(["job,start_s,end_s,placement", *map(_line, ordered), ""])


def _line(attempt: Attempt) -> str:
    placement = ";".join(f"{node}:{gpus}" for node, gpus in attempt.placement)
    return f"{attempt.row},{float(attempt.start_s)!r},{float(attempt.end_s)!r},{placement}"
