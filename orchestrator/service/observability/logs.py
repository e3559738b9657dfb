"""Output of a job: its programs' output, logs of its run, and metrics. Read in parts of bounded size."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from typing import Protocol

from cluster.backend import MAX_OUTPUT_BYTES, Backend
from cluster.errors import StorageError
from cluster.text import did_you_mean
from jobs.run.outcome import outcome_of
from jobs.run.paths import JobPaths, rank_name
from orchestrator.api import LogPart, LogSources, MetricsPart
from orchestrator.queue.errors import UnknownSource
from orchestrator.queue.names import OUTPUT, output_of, submission_of
from orchestrator.queue.records import Job
from orchestrator.queue.states import ENDED, HOLDS_A_LEASE, State
from orchestrator.service.context.context import ServiceContext
from orchestrator.service.observability.run_files import RunFiles, records
from orchestrator.service.observability.scrub import Scrubber

# With the bytes before it, in which a secret may begin, a part is at most what a backend returns at once.
PART_BYTES, END_BYTES = MAX_OUTPUT_BYTES - (128 << 10), 256 << 10
_MOST_BEGIN = 1 << 62  # behind the end of every file; the kernel refuses offsets near 2**63
_MOST_OUTCOME_BYTES = 16 << 20  # large, because an outcome may contain a confusion matrix
LOGS = "logs"
_OUTPUT_OF = re.compile(rf"{OUTPUT}(?:-([1-9][0-9]{{0,8}}))?")
_LOG = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,99})\.log")


def sources(context: ServiceContext, job: Job) -> LogSources:
    """List the logs: `output` (newest attempt), `output-1` ... (earlier attempts), and logs of the run: `driver`, ...

    Raises:
        StorageError: the run cannot be listed.
        StorageOutage: the storage does not answer now.
    """
    outputs = [OUTPUT] if job.attempt else []
    outputs += [output_of(attempt) for attempt in range(1, job.attempt)]
    files = RunFiles.of(context, job)
    found = _logs(files)
    failed = _log_of_failed_rank(files) if files is not None and job.state is State.FAILED else None
    return LogSources(sources=(*outputs, *found), failed=failed if failed in found else None)


def part(context: ServiceContext, job: Job, source: str, after: int | None, scrub: Scrubber) -> LogPart:
    """Return up to PART_BYTES from a byte on. `output-N` is valid for every attempt, including the newest.

    With `after=None`, return the last END_BYTES, from the beginning of a line on if possible.

    Secrets are hidden, also those that a piece has in part: some bytes before it are read too, and what may be the
    beginning of a secret is left for the next piece.

    Raises:
        UnknownSource: the job has no such log (404).
        StorageError: it cannot be read.
        StorageOutage, BackendUnreachable: it cannot be read at the moment.
    """
    # The job's state is older than what is read: if the attempt is over, the output is complete.
    attempt = _attempt(job, source)
    if attempt is not None:
        over = attempt < job.attempt or job.state not in HOLDS_A_LEASE
        log: _Log = _Output(context.backend, submission_of(job.job_id, attempt))
    else:
        over = job.state in ENDED
        log = _LogOfRun(_run_with(context, job, source), f"{source}.log")
    if after is None:
        begin, content = log.end(scrub.lead_bytes + END_BYTES)
        lead, is_all = _begin_of_end(begin, content), over
        after = begin + lead
    else:
        after = max(after, 0)
        lead = min(after, scrub.lead_bytes)
        most = lead + PART_BYTES + 1
        content = log.read(min(after, _MOST_BEGIN) - lead, most)
        is_all = over and len(content) < most
    piece, ended = _cut(content, lead, is_all, scrub)
    text = scrub.piece(*(some.decode("utf-8", "replace") for some in (content[:lead], piece)))
    return LogPart(text=text, begin=after, next=after + len(piece), ended=ended)


class _Log(Protocol):
    """A log as bytes. Both methods raise StorageError, StorageOutage or BackendUnreachable."""

    def read(self, begin: int, most: int) -> bytes: ...

    def end(self, most: int) -> tuple[int, bytes]:
        """Return the last bytes, and where they begin."""


@dataclass(frozen=True)
class _Output:
    backend: Backend
    submission: str

    def read(self, begin: int, most: int) -> bytes:
        return self.backend.output(self.submission, begin)[:most]

    def end(self, most: int) -> tuple[int, bytes]:
        return self.backend.output_end(self.submission, most)


@dataclass(frozen=True)
class _LogOfRun:
    files: RunFiles
    name: str

    def read(self, begin: int, most: int) -> bytes:
        return self.files.read(LOGS, self.name, begin, most)

    def end(self, most: int) -> tuple[int, bytes]:
        return self.files.end(LOGS, self.name, most)


def metrics(context: ServiceContext, job: Job, after: int) -> MetricsPart:
    """Return up to 1,000 records, from number `after` on. A command has none. Raises StorageError."""
    files = RunFiles.of(context, job)
    found = records(files, max(after, 0)) if files is not None else ()
    return MetricsPart(records=found, next=max(after, 0) + len(found))


def _attempt(job: Job, source: str) -> int | None:
    """Return the attempt of an output; None: the source is not an output. Raises UnknownSource."""
    match = _OUTPUT_OF.fullmatch(source)
    if match is None:
        return None
    attempt = int(match[1] or job.attempt)
    if not 1 <= attempt <= job.attempt:
        begun = f"it has begun {job.attempt} times" if job.attempt else "it has not begun"
        raise UnknownSource(f"job {job.job_id} has no {source} yet: {begun}")
    return attempt


def _logs(files: RunFiles | None) -> list[str]:
    return [match[1] for name in files.names(LOGS) if (match := _LOG.fullmatch(name))] if files is not None else []


def _log_of_failed_rank(files: RunFiles) -> str | None:
    """Return the log of the rank that the run's outcome names; None: there is no outcome, or it names no rank."""
    try:
        rank = outcome_of(files.read("", JobPaths("").outcome, 0, _MOST_OUTCOME_BYTES), files.run).rank
    except (StorageError, ValueError):  # a killed run has no outcome; a newer release's cannot be read
        return None
    return None if rank is None else rank_name(rank)


def _run_with(context: ServiceContext, job: Job, source: str) -> RunFiles:
    """Return the run if its folder lists this log. No other file is ever read. Raises UnknownSource."""
    files = RunFiles.of(context, job)
    known = _logs(files)
    if source not in known or files is None:
        some = did_you_mean(source, known) or f": there are {', '.join([OUTPUT, *known][:20])}"
        raise UnknownSource(f"job {job.job_id} has no log {source[:100]!r}{some}")
    return files


def _begin_of_end(begin: int, content: bytes) -> int:
    """Return where to begin in `content`, the end of a log: at a line, with at most END_BYTES behind it."""
    start = max(len(content) - END_BYTES, 0)
    if begin + start == 0:
        return 0
    line = content.find(b"\n", max(start - 1, 0)) + 1
    return line if 0 < line < len(content) else start


def _cut(content: bytes, lead: int, is_all: bool, scrub: Scrubber) -> tuple[bytes, bool]:
    """Cut a part that ends with a line, or at least with a whole character. Returns also whether nothing follows.

    Args:
        lead: bytes before the part.
        is_all: the source ends with `content`, and nothing more will be written.
    """
    piece = content[lead : lead + PART_BYTES]
    if is_all and len(content) <= lead + PART_BYTES:
        return piece, True
    if end := piece.rfind(b"\n") + 1:
        return piece[:end], False
    piece = _whole_characters(piece)
    begun = scrub.begun((content[:lead] + piece).decode("utf-8", "replace"))
    return piece[: max(len(piece) - begun, 0)], False


def _whole_characters(piece: bytes) -> bytes:
    """Drop an incomplete UTF-8 character at the end."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(piece)
    return piece[: len(piece) - len(decoder.getstate()[0])]
