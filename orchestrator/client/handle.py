"""A handle of one job, for scripts, which resembles `concurrent.futures.Future`, and the job's result."""

from __future__ import annotations

import datetime
import math
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from cluster.errors import FleetuneError, Interrupted
from jobs.run.outcome import Outcome, read_outcome
from jobs.run.paths import JobPaths
from jobs.storage import files as storage
from orchestrator.api import JobView, MetricsPart, WhyView
from orchestrator.client.connection import Connection
from orchestrator.client.log_reader import LogLine, LogReader, follow_lines, log_of_end
from orchestrator.client.lookup import job_path
from orchestrator.queue.errors import JobEnded
from orchestrator.queue.names import OUTPUT
from orchestrator.queue.states import ENDED, Reason, State
from orchestrator.queue.wording import advice

if TYPE_CHECKING:
    import pandas

FRESH_S: Final = 0.5  # seconds; accepted age of a job's state
FIRST_POLL_S: Final = 0.5
LONGEST_POLL_S: Final = 2.0


@dataclass(frozen=True)
class Result:
    """The result of a job that has succeeded.

    Attributes:
        metrics: last known values: `loss`, `eval_loss`, ...; values that are not finite are NaN.
        paths: paths of its run's files; None for a command.
    """

    job_id: str
    name: str
    state: State
    message: str
    step: int
    metrics: Mapping[str, float]
    paths: JobPaths | None


class JobFailed(FleetuneError):
    """A job has failed.

    Attributes:
        log: end of the log that says most about the failure.
        source: name of this log.
    """

    def __init__(self, job_id: str, reason: Reason, message: str, log: str, source: str) -> None:
        self.job_id, self.reason, self.log, self.source = job_id, reason, log, source
        parts = [f"job {job_id} failed ({reason}){f': {message}' if message else ''}"]
        if log:
            parts.append(f"The end of its log ({source}):\n{log}")
        of_run = f" --source {source}" if source != OUTPUT else ""
        parts.append(f"All of it: fleetune logs {job_id}{of_run}" if log else "")
        parts.append(f"To do: {advice(reason, job_id)}")
        super().__init__("\n".join(filter(None, parts)))


class JobCancelled(Interrupted):
    """A job was cancelled."""

    def __init__(self, job_id: str, message: str) -> None:
        self.job_id = job_id
        said = f": {message}" if message not in ("", State.CANCELLED) else ""
        super().__init__(f"job {job_id} was cancelled{said}. To queue it again: fleetune retry {job_id}")


class JobHandle:
    """A job of the queue. Thread-safe. The state of a running job is at most half a second old."""

    def __init__(self, connection: Connection, view: JobView) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._view, self._seen_s = view, time.monotonic()

    def __repr__(self) -> str:
        return f"JobHandle({self.id!r}, {self.view.state})"

    @property
    def id(self) -> str:
        return self._view.job_id

    @property
    def name(self) -> str:
        """The name in the spec. Several jobs may have the same name."""
        return self._view.name

    @property
    def view(self) -> JobView:
        """The last known state of the job. No request is made."""
        with self._lock:
            return self._view

    def refresh(self) -> JobView:
        """Request the state of the job now."""
        asked_s = time.monotonic()
        return self.learn(self._connection.get(self._path, JobView), asked_s)

    def learn(self, view: JobView, asked_s: float) -> JobView:
        """Take over a state of the job from the server, unless a newer one is known.

        A state that was requested after the known one had arrived is newer, even if its `changed` is smaller: a server
        whose store was restored from a backup counts on from there.

        Args:
            asked_s: when the state was requested, of `time.monotonic()`.
        """
        with self._lock:
            if asked_s >= self._seen_s or view.changed >= self._view.changed:
                self._view = view
            self._seen_s = time.monotonic()
            return self._view

    # Like concurrent.futures.Future

    def done(self) -> bool:
        """Whether the job has ended, in any state."""
        return self.state in ENDED

    def running(self) -> bool:
        return self.state in (State.RUNNING, State.STOPPING)

    def cancelled(self) -> bool:
        return self.state is State.CANCELLED

    def cancel(self) -> bool:
        """Request the job's end; a running job stops soon. Returns False if the job had ended before."""
        try:
            self._order("cancel")
        except JobEnded:
            return self.refresh().state is State.CANCELLED
        return True

    def result(self, timeout_s: float | None = None) -> Result:
        """Wait for the job's end, and return its result.

        Raises:
            JobFailed: the job has failed; the message has the end of its log.
            JobCancelled: the job was cancelled.
            TimeoutError: the job has not ended yet; it goes on.
        """
        error = self.exception(timeout_s)
        if error is not None:
            raise error
        view = self.view
        paths = None if view.run is None else JobPaths(view.run)
        outcome = _outcome(paths)
        return Result(
            job_id=view.job_id,
            name=view.name,
            state=view.state,
            message=view.message,
            step=view.step if outcome is None else outcome.step,
            metrics=_numbers(view.metrics) if outcome is None else _numbers(view.metrics) | outcome.metrics,
            paths=paths,
        )

    def exception(self, timeout_s: float | None = None) -> JobFailed | None:
        """Wait for the job's end, and return the error if it has failed; None: it has succeeded.

        Raises:
            JobCancelled: the job was cancelled.
            TimeoutError: the job has not ended yet; it goes on.
        """
        view = self.wait(timeout_s)
        if view.state is State.CANCELLED:
            raise JobCancelled(view.job_id, view.message)
        if view.state is State.SUCCEEDED:
            return None
        source, log = "", ""
        if view.attempt:
            try:
                source, log = log_of_end(self._connection, view)
            except FleetuneError as error:
                source, log = "not readable", str(error)
        return JobFailed(view.job_id, view.reason, view.message, log, source)

    def wait(self, timeout_s: float | None = None) -> JobView:
        """Wait for the job's end. Raises TimeoutError."""
        timeout_s = math.inf if timeout_s is None else timeout_s
        until_s, view, pause_s = time.monotonic() + timeout_s, self.view, FIRST_POLL_S
        while view.state not in ENDED and (view := self.refresh()).state not in ENDED:
            late = f"job {self.id} is {view.state} after {timeout_s:g} s, and goes on"
            pause_s = pause_between_polls(pause_s, until_s, late)
        return view

    # Specific to jobs

    @property
    def state(self) -> State:
        return self._fresh().state

    @property
    def reason(self) -> Reason:
        """The reason for its state."""
        return self._fresh().reason

    @property
    def message(self) -> str:
        """An explanation of the reason, in one line for people; may be empty."""
        return self._fresh().message

    @property
    def expected_start(self) -> datetime.datetime | None:
        """The expected start in UTC; None: unknown, or the job does not wait."""
        if self.state is not State.QUEUED:
            return None
        at_s = self.why().expected_start_s
        return None if at_s is None else datetime.datetime.fromtimestamp(at_s, datetime.UTC)

    def why(self) -> WhyView:
        """Explain why the job is in its state."""
        return self._connection.get(f"{self._path}/why", WhyView)

    @property
    def paths(self) -> JobPaths | None:
        """The paths of the run's files; None for a command, and before the job has begun."""
        run = self._fresh().run
        return None if run is None else JobPaths(run)

    def logs(self, follow: bool = False, source: str | None = None) -> Iterator[LogLine]:
        """Yield lines that the job's attempts have printed, in order, or those of one log (`driver`, `rank-0`, ...).

        Args:
            follow: go on until the job has ended.
            source: name of a log; "all": every log, one after another.
        """
        reader = LogReader(self._connection, self.id, source)
        if follow:
            return follow_lines(reader, self.refresh)
        return chain(reader.new(self._fresh().attempt), reader.rest())

    @property
    def metrics(self) -> pandas.DataFrame:
        """A row for each step: `step`, `loss`, `learning_rate`, `eval_loss`, ... Of a repeated step, the last row.

        Raises:
            FleetuneError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise FleetuneError(
                "metrics come as a DataFrame, and pandas is not installed: pip install pandas"
            ) from error
        return pandas.DataFrame(self.metric_records())

    def metric_records(self) -> list[dict[str, Any]]:
        """Return the rows of `metrics` as dictionaries."""
        found: dict[Any, dict[str, Any]] = {}
        after: int | None = None
        while True:
            part = self._connection.get(f"{self._path}/metrics", MetricsPart, {"after": after})
            for record in part.records:
                found[record.get("step")] = record
            if not part.records:
                return [found[step] for step in sorted(found, key=lambda step: (step is None, step))]
            after = part.next

    def pause(self) -> None:
        """Make the job release its nodes, and wait until `resume`."""
        self._order("pause")

    def resume(self) -> None:
        self._order("resume")

    def retry(self) -> None:
        """Queue the job again after it has failed or was cancelled.

        Raises:
            ParentFailed: a parent has failed; retry it first.
        """
        self._order("retry")

    @property
    def _path(self) -> str:
        return job_path(self.id)

    def _order(self, what: str) -> None:
        asked_s = time.monotonic()
        self.learn(self._connection.post(f"{self._path}/{what}", JobView), asked_s)

    def _fresh(self) -> JobView:
        """Return a fresh state. The state of an ended job does not change, so it is not requested again."""
        with self._lock:
            view, age_s = self._view, time.monotonic() - self._seen_s
        return view if view.state in ENDED or age_s < FRESH_S else self.refresh()


def pause_between_polls(pause_s: float, until_s: float, late: str) -> float:
    """Pause between two polls, and return the next pause. Raises TimeoutError with the text `late`."""
    left_s = until_s - time.monotonic()
    if left_s <= 0.0:
        raise TimeoutError(late)
    time.sleep(min(pause_s, left_s))
    return min(pause_s * 1.2, LONGEST_POLL_S)


def _numbers(metrics: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in metrics.items()}


def _outcome(paths: JobPaths | None) -> Outcome | None:
    """Read the outcome if the run is on this machine: a driver may have ended while no server was running."""
    if paths is None or not storage.is_local(paths.root):
        return None
    try:
        return read_outcome(paths)
    except (FleetuneError, ValueError):
        return None
