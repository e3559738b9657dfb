"""Runs programs as jobs of a Ray cluster, through its dashboard only: the caller is no driver and keeps no connection.

Three parts of the contract are built from Ray's jobs, because Ray has no equivalent:

* Fence: only programs that reach the GCS can use Ray's key-value store. So the fence is in the metadata of jobs, which
  every caller can read. A new caller submits a job that does nothing, named after the caller before it. Ray accepts a
  name once, so the callers form a chain, and each finds out with one request whether it has a successor. A start that
  was already under way may still take effect; the newer caller sees it in `submissions`.
* Hard stop: Ray sends one SIGTERM, and after RAY_JOB_STOP_WAIT_TIME_S kills the processes that it knew at that time. So
  a second job on the same node kills all processes with the submission's name in their environment.
* Forgetting: this process remembers which submissions are forgotten, and a new caller forgets them again. Ray's entry
  is deleted days later (`cluster.ray.client`). Then its name is free.

So a name stays in use for longer than any request to start it can be under way. The caller must not start an attempt
again later: an attempt that is over never becomes current again, and its number is not used twice. If a started
submission is not listed and was not forgotten, the cluster is a new one, and the program does not run.
"""

from __future__ import annotations

import contextlib
import math
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from cluster.backend import ENDED_PHASES, MAX_OUTPUT_BYTES, Launch, Phase, Submission, check_fence, check_launch
from cluster.capacity.inventory import Growth, Inventory
from cluster.errors import BackendUnreachable, LaunchRefused
from cluster.ray.client import (
    WRITE_MARK,
    OutputRetention,
    entries_to_delete,
    environment_like,
    has_no_log,
    job_named,
    json_of,
    phase_of,
    program_end,
    program_output,
    ray_client,
    submission_of,
)
from cluster.ray.nodes import Use, inventory_of, use_from_status, use_from_summary
from cluster.ray.runtime_env import digest_of_environment
from cluster.text import one_line

_ReadT = TypeVar("_ReadT")
FENCE_KEY, KIND_KEY, QUEUE_KEY = "fleetune.fence", "fleetune.kind", "fleetune.queue"
PROGRAM, FENCE, HARD_STOP = "program", "fence", "hard-stop"
NAME_VARIABLE = "FLEETUNE_SUBMISSION"

_PYTHONS = frozenset({"pip", "uv", "conda"})  # parts of a runtime environment that give a job a separate `python`
_FRESH_S = 3.0  # accepted age of the list of jobs, for questions about programs of other users
_DELETES_FOR_S = 0.3  # longest time for deletions in one pass
KEEPING = OutputRetention()
_MOST_NODES = 10_000  # the limit of Ray's state API; its default is 100
_GRACE_S = 3600  # time after a soft stop after which Ray kills the program
_TIMEOUT_S = 20.0  # of one request to the dashboard
_READ_AHEAD_BYTES = 16 << 20  # of the output of one program, which is kept in memory
_LOG_S = 600  # longest time in which Ray sends a log; its default is 30


class RayJobsBackend:
    """See `cluster.backend.Backend`. Ray runs the programs on the head node, unless it is configured otherwise."""

    def __init__(
        self,
        dashboard: str,
        *,
        token: str | None = None,
        queue: str = "",
        foreign: Callable[[Use], Use] = lambda use: use,
        growth: Callable[[], Growth] = Growth,
        keeping: OutputRetention = KEEPING,
    ) -> None:
        """
        Args:
            dashboard: `http://host:8265`.
            token: token of the cluster; None: Ray finds it by RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH.
            queue: id of the queue. Programs and callers of other queues on the cluster are ignored.
            foreign: returns what is not Fleetune's of the use that Ray reports.
            growth: returns how far the cluster's autoscaler may extend it.
            keeping: how long entries of attempts that are over stay in Ray's list.
        """
        self._dashboard, self._token = dashboard.rstrip("/"), token
        self._queue = queue
        self._foreign, self._growth = foreign, growth
        self._keeping = keeping
        self._forgotten: set[str] = set()
        self._listed: tuple[float, list[Any]] = (-math.inf, [])  # time of the newest list, and all jobs in it
        self._fence: int | None = None  # fence of this caller, once the cluster knows it
        self._highest: int | None = None  # highest fence in the newest list
        self._hard_stops: dict[str, str] = {}  # submission -> the newest job that ends it
        self._read_ahead = ("", 0, b"")  # the submission whose output was read last, and its bytes from a byte on
        self._connected: Any = None

    def inventory(self) -> Inventory:
        with self._asking() as client:
            nodes = json_of(client, f"/api/v0/nodes?detail=1&limit={_MOST_NODES}")["data"]["result"]["result"]
            use = use_from_status(json_of(client, "/api/cluster_status")["data"])
            if use is None:  # the newer autoscaler publishes it in this larger answer
                use = use_from_summary(json_of(client, "/nodes?view=summary")["data"])
        return replace(inventory_of(nodes, self._foreign(use)), growth=self._growth())

    def fence(self, fence: int) -> None:
        with self._asking() as client:
            self._list(client)
            self._take_fence(client, fence)

    def start(self, launch: Launch, fence: int) -> None:
        check_launch(launch)  # before Ray gets a name that is not valid
        with self._asking() as client:
            if self._fence != fence:
                self._list(client)
                self._take_fence(client, fence)
            check_fence(fence, self._highest)
            check_fence(fence, _fence_of(job_named(client, self._mark(fence))))
            job = job_named(client, launch.submission)
            if job is not None:
                self._check_ours(launch.submission, job)
                return
            self._submit(client, launch, fence)

    def submissions(self) -> Sequence[Submission]:
        """Read Ray's list of jobs. It contains the whole history of the cluster, so call this once in a pass."""
        with self._asking() as client:
            jobs = [job for job in self._list(client) if self._kind(job) == PROGRAM]
            if self._fence is not None and (self._highest is None or self._highest < self._fence):
                self._take_fence(client, self._fence)  # the head was restarted, and its jobs are gone
        self._forgotten &= {job.submission_id for job in jobs}
        lives = {job.submission_id for job in jobs if phase_of(job) not in ENDED_PHASES}
        self._hard_stops = {name: self._hard_stops[name] for name in lives & self._hard_stops.keys()}
        return [submission_of(job) for job in jobs if job.submission_id not in self._forgotten]

    def stop(self, submission: str, *, hard: bool = False) -> None:
        with self._asking() as client:
            job = self._program(client, submission)
            if job is None or submission_of(job).ended:
                return
            client.stop_job(submission)
            if hard and job.driver_node_id is not None:  # None: it has not started, and Ray will not start it
                self._end_hard(client, submission, job.driver_node_id)

    def forget(self, submissions: Sequence[str]) -> None:
        with self._asking() as client:
            if not self._ended_s(PROGRAM).keys() >= set(submissions):
                self._list(client)
            self._forgotten |= self._ended_s(PROGRAM).keys() & set(submissions)
            self._delete_old(client)

    def discard(self, submissions: Sequence[str]) -> None:
        with self._asking() as client:
            for name in self._ended_s(PROGRAM).keys() & set(submissions):
                client.delete_job(name)
                self._forgotten.discard(name)

    def _delete_old(self, client: Any) -> None:
        """Delete old entries for a short time. The next call continues."""
        helpers = self._ended_s(HARD_STOP)
        ended_s = self._ended_s(PROGRAM) | helpers
        until_s, deleted = time.monotonic() + _DELETES_FOR_S, set()
        for name in entries_to_delete(ended_s, self._forgotten, helpers, time.time(), self._keeping):
            if time.monotonic() > until_s:
                break
            with contextlib.suppress(RuntimeError):  # it is gone already, or the next list has it again
                client.delete_job(name)
            deleted.add(name)
        at_s, jobs = self._listed
        self._listed = at_s, [job for job in jobs if job.submission_id not in deleted]

    def _ended_s(self, kind: str) -> dict[str, float]:
        """Return the end times of ended programs of a kind in the newest list, by name."""
        return {
            job.submission_id: (job.end_time or 0) / 1000.0
            for job in self._listed[1]
            if self._kind(job) == kind and phase_of(job) in ENDED_PHASES
        }

    def _list(self, client: Any, not_older_s: float = 0.0) -> list[Any]:
        """Return all jobs of the cluster. `not_older_s`: accepted age of the list; 0 reads it now."""
        at_s, jobs = self._listed
        if not_older_s <= 0.0 or time.monotonic() - at_s > not_older_s:
            jobs = client.list_jobs()
            self._listed = time.monotonic(), jobs
            seen = (_fence_of(job) for job in jobs if self._kind(job) is not None)
            self._highest = max((one for one in seen if one is not None), default=None)
        return jobs

    def output(self, submission: str, after: int = 0) -> bytes:
        """See `Backend.output`. Ray sends a log from its first byte on, so a caller that goes on gets more at once."""
        kept, begin, content = self._read_ahead
        goes_on = kept == submission and begin <= after <= begin + len(content)
        if goes_on and after + MAX_OUTPUT_BYTES <= begin + len(content):
            return content[after - begin :][:MAX_OUTPUT_BYTES]
        most = _READ_AHEAD_BYTES if goes_on else MAX_OUTPUT_BYTES
        found = self._output(submission, b"", lambda log, rays_line: program_output(log, rays_line, after, most))
        self._read_ahead = submission, after, found
        return found[:MAX_OUTPUT_BYTES]

    def output_end(self, submission: str, most: int) -> tuple[int, bytes]:
        return self._output(submission, (0, b""), lambda log, rays_line: program_end(log, rays_line, most))

    def _output(self, submission: str, nothing: _ReadT, read: Callable[[Iterable[bytes], bytes], _ReadT]) -> _ReadT:
        """Read a program's log as a stream, which is the only way that Ray offers. `nothing`: there is no log."""
        with self._asking() as client:
            job = self._program(client, submission)
            if job is None or job.driver_node_id is None:
                return nothing
            file = f"node_id={job.driver_node_id}&filename=job-driver-{submission}.log"
            answer = client._do_request("GET", f"/api/v0/logs/file?{file}&lines=-1&timeout={_LOG_S}", stream=True)
            with contextlib.closing(answer):
                if answer.status_code != 200:
                    if has_no_log(answer.status_code, answer.text):
                        return nothing
                    raise RuntimeError(f"status {answer.status_code} for the log of {submission}: {answer.text[:500]}")
                rays_line = f"Running entrypoint for job {submission}: {job.entrypoint}\n".encode()
                return read(answer.iter_content(1 << 16), rays_line)

    def ended_elsewhere(self, programs: Sequence[str]) -> frozenset[str]:
        with self._asking() as client:
            jobs = self._list(client, _FRESH_S)
            known = {job.submission_id: phase_of(job) for job in jobs if job.submission_id}
        return frozenset(program for program in programs if known.get(program) in ENDED_PHASES)

    def others(self) -> Sequence[str]:
        """Return the cluster's running jobs that are not this package's. Drivers without a submission have a job id."""
        with self._asking() as client:
            jobs = [job for job in self._list(client, _FRESH_S) if phase_of(job) is Phase.RUNNING]
        return [job.submission_id or f"job {job.job_id}" for job in jobs if QUEUE_KEY not in (job.metadata or {})]

    def session(self) -> str:
        """Return the name of the cluster's session. A restarted head has a new one. Raises BackendUnreachable."""
        with self._asking() as client:
            return str(json_of(client, "/api/version").get("session_name", ""))

    @contextlib.contextmanager
    def _asking(self) -> Iterator[Any]:
        """Provide the client. Errors of the dashboard and of the connection become BackendUnreachable."""
        try:
            if self._connected is None:
                self._connected = ray_client(self._dashboard, self._token, _TIMEOUT_S)
            yield self._connected
        except (OSError, RuntimeError) as error:  # requests' own errors are OSErrors, Ray's are RuntimeErrors
            raise BackendUnreachable(_unreachable(self._dashboard, error)) from error

    def _take_fence(self, client: Any, fence: int) -> None:
        """Become the newest caller, unless this one is it already. Raises Fenced."""
        before = self._highest
        while before is None or before < fence:
            try:
                client.submit_job(
                    entrypoint="true", submission_id=self._mark(before), metadata=self._metadata(FENCE, fence)
                )
                before = fence
            except RuntimeError:  # another caller was faster, or Ray accepted the job and its answer was lost
                followed = _fence_of(job_named(client, self._mark(before)))
                if followed is None or (before is not None and followed <= before):
                    raise
                before = followed
        check_fence(fence, before)
        self._fence = self._highest = fence

    def _mark(self, before: int | None) -> str:
        """Return the name of the job that the successor of the caller `before` submits."""
        return "-".join(filter(None, ("fleetune-fence", self._queue, f"after-{before or 0}")))

    def _submit(self, client: Any, launch: Launch, fence: int) -> None:
        runtime_env = self._like(client, launch)
        own = {**launch.environment, "RAY_JOB_STOP_WAIT_TIME_S": str(_GRACE_S)}
        runtime_env["env_vars"] = runtime_env.get("env_vars", {}) | own
        if launch.working_dir is not None:
            runtime_env["working_dir"] = launch.working_dir
        words = launch.command if not _PYTHONS & runtime_env.keys() else ("python", *launch.command[1:])
        # With `exec`, signals reach the program, and its exit code is the job's. Its name is in the environment of the
        # program and of its children, but not of Ray's processes, which a hard stop must not kill.
        program = shlex.join((f"{NAME_VARIABLE}={launch.submission}", *words))
        try:
            client.submit_job(
                entrypoint=f"{WRITE_MARK}; exec env {program}",
                submission_id=launch.submission,
                runtime_env=runtime_env,
                metadata={**launch.metadata, **self._metadata(PROGRAM, fence)},
            )
        except ValueError as error:  # before anything was sent
            raise LaunchRefused(f"{launch.submission} cannot start on Ray: {error}") from error
        except RuntimeError:
            job = job_named(client, launch.submission)
            if job is None:
                raise
            self._check_ours(launch.submission, job)  # another caller was faster, or Ray's answer was lost

    def _like(self, client: Any, launch: Launch) -> dict[str, Any]:
        """Return the runtime environment of the job that the launch names, for its program. Raises LaunchRefused."""
        job = job_named(client, launch.like) if launch.like is not None else None
        if job is not None and digest_of_environment(job.runtime_env or {}) != launch.like_digest:
            raise LaunchRefused(
                f"{launch.submission} cannot start: Ray's job {launch.like} is not the one that has asked for it. "
                "Submit it again"
            )
        return environment_like(job)

    def _program(self, client: Any, submission: str) -> Any:
        job = job_named(client, submission)
        return job if job is not None and self._kind(job) == PROGRAM else None

    def _metadata(self, kind: str, fence: int) -> dict[str, str]:
        return {KIND_KEY: kind, FENCE_KEY: str(fence), QUEUE_KEY: self._queue}

    def _kind(self, job: Any) -> str | None:
        """Return the kind of a job of this queue; None for any other job."""
        said = (job.metadata or {}) if job.submission_id else {}
        kind: str | None = said.get(KIND_KEY)
        return kind if said.get(QUEUE_KEY, "") == self._queue else None

    def _check_ours(self, submission: str, job: Any) -> None:
        if self._kind(job) != PROGRAM:
            raise LaunchRefused(
                f"{submission} cannot start: somebody else has a job of that name on this Ray cluster. Give it another "
                "name"
            )

    def _end_hard(self, client: Any, submission: str, node_id: str) -> None:
        before = self._hard_stops.get(submission)
        job = job_named(client, before) if before is not None else None
        if job is not None and phase_of(job) not in ENDED_PHASES:
            return
        wanted = shlex.quote(f"{NAME_VARIABLE}={submission}")
        # Twice, because a process may start another one during the first search.
        look = f"grep -lzxF {wanted} /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3 | xargs -r kill -9 2>/dev/null"
        name = self._hard_stops[submission] = f"{submission}.{HARD_STOP}-{time.time_ns()}"
        client.submit_job(
            entrypoint=f"{look}; sleep 0.2; {look}; true",
            submission_id=name,
            metadata=self._metadata(HARD_STOP, 0),
            entrypoint_label_selector={"ray.io/node-id": node_id},
        )


def _unreachable(dashboard: str, error: BaseException) -> str:
    """Say why the dashboard does not answer: with the system's error if the HTTP libraries have hidden one."""
    beneath: BaseException | None = error
    while beneath is not None and not (isinstance(beneath, OSError) and beneath.strerror):
        beneath = beneath.__cause__ or beneath.__context__
    if isinstance(beneath, OSError):
        return f"no Ray dashboard answers at {dashboard} ({beneath.strerror}). Check that the cluster is up"
    return (
        f"the Ray dashboard at {dashboard} does not answer as expected: {one_line(error)}. Check that the cluster is "
        "up. With token authentication, set RAY_AUTH_MODE=token and write the token to ~/.ray/auth_token"
    )


def _fence_of(job: Any) -> int | None:
    """Return the fence in a job's metadata; None without a job, or if no queue has submitted it."""
    text = str((job.metadata or {}).get(FENCE_KEY, "")) if job is not None else ""
    return int(text) if text.isdecimal() and len(text) < 19 else None
