"""One job of the queue, for a script: like `concurrent.futures.Future`, and what only a job has."""

from __future__ import annotations

import datetime
import math
import threading
import time
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from jobs.errors import FleetuneError
from jobs.run.outcome import Outcome, read_outcome
from jobs.run.paths import JobPaths
from jobs.storage import files as storage
from orchestrator.api import JobView, MetricsPart, WhyView
from orchestrator.client.connection import Connection
from orchestrator.client.log_reader import LogLine, LogReader, followed, telling_end
from orchestrator.client.result import JobCancelled, JobFailed, Result
from orchestrator.queue.errors import JobEnded
from orchestrator.queue.states import ENDED, Reason, State

if TYPE_CHECKING:
    import pandas

FRESH_S: Final = 0.5  # what is known may be as old
FIRST_POLL_S: Final = 0.5
LONGEST_POLL_S: Final = 2.0


class JobHandle:
    """May be used by several threads at once. What it says of a running job is at most half a second old."""

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
        """As in the spec. Several jobs may have it."""
        return self._view.name

    @property
    def view(self) -> JobView:
        """All that was last known of it; nothing is asked for."""
        with self._lock:
            return self._view

    def refresh(self) -> JobView:
        """Ask now."""
        return self.learn(self._connection.get(self._path, JobView))

    def learn(self, view: JobView) -> JobView:
        """Take what somebody else was told of this job, unless something newer is known."""
        with self._lock:
            if view.changed >= self._view.changed:
                self._view = view
            self._seen_s = time.monotonic()
            return self._view

    # As concurrent.futures.Future

    def done(self) -> bool:
        """Whether it has ended, whichever way."""
        return self.state in ENDED

    def running(self) -> bool:
        return self.state in (State.RUNNING, State.STOPPING)

    def cancelled(self) -> bool:
        return self.state is State.CANCELLED

    def cancel(self) -> bool:
        """Ask for its end; what runs ends soon. False where it has ended before."""
        try:
            self.learn(self._connection.post(f"{self._path}/cancel", JobView))
        except JobEnded:
            return self.refresh().state is State.CANCELLED
        return True

    def result(self, timeout_s: float | None = None) -> Result:
        """Wait for its end.

        Raises:
            JobFailed: with the end of its log.
            JobCancelled: somebody has cancelled it.
            TimeoutError: it has not ended yet, and goes on.
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
        """What `result` would raise for a job that has failed; None where it has succeeded.

        Raises:
            JobCancelled: somebody has cancelled it.
            TimeoutError: it has not ended yet, and goes on.
        """
        view = self.wait(timeout_s)
        if view.state is State.CANCELLED:
            raise JobCancelled(view.job_id, view.message)
        if view.state is State.SUCCEEDED:
            return None
        source, log = "", ""
        if view.attempt:
            try:
                source, log = telling_end(self._connection, view)
            except FleetuneError as error:
                source, log = "not readable", str(error)
        return JobFailed(view.job_id, view.reason, view.message, log, source)

    def wait(self, timeout_s: float | None = None) -> JobView:
        """Raises TimeoutError."""
        until_s = None if timeout_s is None else time.monotonic() + timeout_s
        view, pause_s = self.view, FIRST_POLL_S
        while view.state not in ENDED:
            view = self.refresh()
            if view.state in ENDED:
                break
            left_s = math.inf if until_s is None else until_s - time.monotonic()
            if left_s <= 0.0:
                raise TimeoutError(f"job {self.id} is {view.state} after {timeout_s:g} s, and goes on")
            time.sleep(min(pause_s, left_s))
            pause_s = min(pause_s * 1.2, LONGEST_POLL_S)
        return view

    # What only a job has

    @property
    def state(self) -> State:
        return self._fresh().state

    @property
    def reason(self) -> Reason:
        """Why it is in its state."""
        return self._fresh().reason

    @property
    def message(self) -> str:
        """The same in one line for people; may be empty."""
        return self._fresh().message

    @property
    def expected_start(self) -> datetime.datetime | None:
        """In UTC; None where nobody can say, and of a job that does not wait."""
        if self.state is not State.QUEUED:
            return None
        at_s = self.why().expected_start_s
        return None if at_s is None else datetime.datetime.fromtimestamp(at_s, datetime.UTC)

    def why(self) -> WhyView:
        """Why it is where it is."""
        return self._connection.get(f"{self._path}/why", WhyView)

    @property
    def paths(self) -> JobPaths | None:
        """Of what its run leaves behind; None for a command, and before it has begun."""
        run = self._fresh().run
        return None if run is None else JobPaths(run)

    def logs(self, follow: bool = False, source: str | None = None) -> Iterator[LogLine]:
        """Lines that its attempts have printed, in their order, or those of one log (`driver`, `rank-0`, ...).

        With `follow` until it has ended. The source "all" gives every log, one after another.
        """
        reader = LogReader(self._connection, self.id, source)
        if follow:
            return followed(reader, self.refresh)
        return chain(reader.new(self._fresh().attempt), reader.rest())

    @property
    def metrics(self) -> pandas.DataFrame:
        """A row for each step: `step`, `loss`, `learning_rate`, `eval_loss`, ... Of a step done twice, the later.

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
        """The same as dictionaries."""
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
        """Have it leave what it holds, and wait until `resume`."""
        self._order("pause")

    def resume(self) -> None:
        self._order("resume")

    def retry(self) -> None:
        """Queue it again after it has failed or was cancelled.

        Raises:
            ParentFailed: a job that it comes after has failed: that one is to be retried before.
        """
        self._order("retry")

    @property
    def _path(self) -> str:
        return f"/v1/jobs/{quote(self.id, safe='')}"

    def _order(self, what: str) -> None:
        self.learn(self._connection.post(f"{self._path}/{what}", JobView))

    def _fresh(self) -> JobView:
        """What ends does not change, and is not asked for again."""
        with self._lock:
            view, age_s = self._view, time.monotonic() - self._seen_s
        return view if view.state in ENDED or age_s < FRESH_S else self.refresh()


def _numbers(metrics: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in metrics.items()}


def _outcome(paths: JobPaths | None) -> Outcome | None:
    """Where this machine sees the run: a driver may have ended while no server was there to be told."""
    if paths is None or not storage.is_local(paths.root):
        return None
    try:
        return read_outcome(paths)
    except (FleetuneError, ValueError):
        return None
