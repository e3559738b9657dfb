"""Ray's client of the dashboard, with a time limit; and what is made of its jobs: submissions, output, old entries."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from cluster.backend import MAX_OUTPUT_BYTES, Phase, Submission
from cluster.text import TAIL_BYTES, error_line, one_line

_OURS = "FLEETUNE_"
# Errors by which Ray reports that it has lost a job. Other errors report a job that has failed.
_LOST_TYPES = frozenset(
    f"JOB_SUPERVISOR_ACTOR_{what}"
    for what in ("START_TIMEOUT", "START_FAILURE", "UNSCHEDULABLE", "UNKNOWN_FAILURE", "DIED")
)
# Ray's answers if a log does not exist: its node has not written it, or Ray has removed the node.
_NO_LOG = ("A file is not found at", "Agent for node id")
# Ray keeps one log of a job, with lines of its own. Most come first, but Ray may write the last one after the program
# has begun. So the shell writes a mark before it starts the program, and Ray's line is removed wherever it is.
WRITE_MARK = r"printf '\036\n'"  # for a shell
_MARK = b"\x1e\n"


def job_named(client: Any, submission: str) -> Any:
    """Return the JobDetails of a submission; None: Ray knows no such submission."""
    job = client.job_or_none(quote(submission, safe=""))
    return job if job is not None and job.submission_id == submission else None  # Ray finds jobs by internal ids, too


def json_of(client: Any, path: str) -> Any:
    """Return the answer to a request. Raises RuntimeError: Ray reports an error."""
    answer = client._do_request("GET", path)
    if answer.status_code != 200:
        raise RuntimeError(f"status {answer.status_code} for {path}: {answer.text[:500]}")
    return answer.json()


def has_no_log(status: int, text: str) -> bool:
    """Whether an answer of Ray says that there is no such log. Any other error means that it cannot be read now.

    Args:
        text: body of the answer. Ray answers 500 both for a missing log and for failures.
    """
    return status == 404 or (status == 500 and text.startswith(_NO_LOG))


def ray_client(dashboard: str, token: str | None, timeout_s: float) -> Any:
    """Make Ray's client, but with a time limit, and for the given address even if RAY_ADDRESS is set."""
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobDetails, JobSubmissionClient

    class TimelyClient(JobSubmissionClient):  # type: ignore[misc]
        def __init__(self) -> None:
            headers = {"Authorization": f"Bearer {token}"} if token else None
            # JobSubmissionClient.__init__ is skipped: it resolves the address, and may wait for a GCS that is gone.
            super(JobSubmissionClient, self).__init__(dashboard, headers=headers)

        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            try:
                return super()._do_request(method, endpoint, **{"timeout": timeout_s, **options})
            except AuthenticationError as error:
                raise ConnectionError(str(error)) from error

        def job_or_none(self, name: str) -> JobDetails | None:
            """Return the details of a job; None if Ray does not know it. `get_job_info` raises the same error for both.

            Raises:
                RuntimeError: Ray reports another error.
            """
            answer = self._do_request("GET", f"/api/jobs/{name}")
            if answer.status_code not in (200, 404):
                self._raise_error(answer)
            return JobDetails(**answer.json()) if answer.status_code == 200 else None

    return TimelyClient()


def environment_like(job: Any) -> dict[str, Any]:
    """Return a job's runtime environment for another job, without the variables that name the first one's server."""
    found = dict((job.runtime_env if job is not None else None) or {})
    variables = dict(found.get("env_vars") or {})
    return {**found, "env_vars": {name: value for name, value in variables.items() if not name.startswith(_OURS)}}


def phase_of(job: Any) -> Phase:
    return Phase[job.status.value]


def submission_of(job: Any) -> Submission:
    """Make a submission from JobDetails."""
    name, phase = job.submission_id, phase_of(job)
    if phase is not Phase.FAILED:
        return Submission(name, phase, job.driver_exit_code, node_id=job.driver_node_id)
    if job.error_type in _LOST_TYPES:
        return Submission(name, Phase.LOST, message=one_line(job.message or ""))
    # If the program ran, Ray's message is the end of its output.
    text = job.message or ""
    message = error_line(text[-TAIL_BYTES:]) if job.driver_exit_code is not None else one_line(text)
    return Submission(name, phase, job.driver_exit_code, message)


def program_output(log: Iterable[bytes], rays_line: bytes, after: int, most: int = MAX_OUTPUT_BYTES) -> bytes:
    """Return the program's bytes from `after` on, up to `most`. Reads the log only as far as needed."""
    wanted, skip = bytearray(), after
    for chunk in _behind_mark(_without(log, rays_line)):
        wanted += chunk[skip:]
        skip = max(0, skip - len(chunk))
        if len(wanted) >= most:
            break
    return bytes(wanted[:most])


def program_end(log: Iterable[bytes], rays_line: bytes, most: int) -> tuple[int, bytes]:
    """Return the program's last `most` bytes, and the byte at which they begin. Reads the whole log once."""
    end, size = bytearray(), 0
    for chunk in _behind_mark(_without(log, rays_line)):
        end += chunk
        size += len(chunk)
        del end[: max(len(end) - most, 0)]
    return size - len(end), bytes(end)


def _without(log: Iterable[bytes], line: bytes) -> Iterable[bytes]:
    """Yield the log without the first occurrence of a line."""
    held, found = b"", False
    for chunk in log:
        held += chunk
        if not found and (at := held.find(line)) >= 0:
            held, found = held[:at] + held[at + len(line) :], True
        keep = 0 if found else len(line) - 1  # the chunk may end within the line
        whole, held = held[: max(0, len(held) - keep)], held[max(0, len(held) - keep) :]
        yield whole
    yield held


def _behind_mark(log: Iterable[bytes]) -> Iterable[bytes]:
    head, rest = b"", iter(log)
    for chunk in rest:
        head += chunk
        if _MARK in head:
            yield head.partition(_MARK)[2]
            yield from rest


@dataclass(frozen=True)
class OutputRetention:
    """How long entries of ended attempts stay in Ray's list, which Ray never shortens, and their output with them.

    Attributes:
        kept_s: longest time that an entry stays after its end.
        most: most entries that stay after `least_s`; the oldest go first. Ray's maintainers call about 1,000 entries
            fine.
        least_s: shortest time that an entry stays. It is longer than a request to start the attempt can be under way.
    """

    kept_s: float = 7 * 86_400.0
    most: int = 500
    least_s: float = 3600.0


def entries_to_delete(
    ended_s: Mapping[str, float], over: Iterable[str], helpers: Collection[str], now_s: float, keeping: OutputRetention
) -> list[str]:
    """Return the names of entries that can be deleted, the oldest first.

    Args:
        ended_s: when each entry ended, by name.
        over: names of attempts that will never hold a lease again.
        helpers: names of jobs that only stopped another program. They are not needed after their end.
    """
    oldest_first = sorted((name for name in over if name in ended_s), key=lambda name: ended_s[name])
    too_many = max(len(oldest_first) - keeping.most, 0)
    due = [
        name
        for place, name in enumerate(oldest_first)
        if now_s - ended_s[name] > (keeping.least_s if place < too_many else max(keeping.kept_s, keeping.least_s))
    ]
    return [*(name for name in helpers if name in ended_s), *due]
