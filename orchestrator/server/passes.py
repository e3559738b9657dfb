"""The controller's passes on a server: with metrics, reports, and follow-up actions."""

from __future__ import annotations

import contextlib
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from cluster.errors import BackendUnreachable, Fenced
from orchestrator.controller.controller import Controller
from orchestrator.controller.leadership import LeaderElection, LeadershipRenewal
from orchestrator.http.metrics import Meters
from orchestrator.queue.errors import NotLeader, OtherMachines, StoreBroken
from orchestrator.queue.states import UNFINISHED
from orchestrator.queue.store import Filter, Store
from orchestrator.server.event_log import EventLog
from orchestrator.service.admission.clients import any_alive

NEWEST = "newest_s"  # fact in the store: the newest time, for the clock of a restarted server
_EVERY_S = 1.0
_NOTE_EVERY_S = 60.0
_SHORTEST_GAP_S = 0.1
_REST = 9.0  # idle for nine times the duration of the last pass, so that bursts of submissions share one pass
_ENDS_WITHIN_S = 5.0
_IDLE_S = 10.0  # time without clients and jobs after which an embedded server ends
_FAILING = 3  # consecutive failed passes before trouble is reported; a single failure may be chance

Follow = Callable[[], object]


def run_passes(
    step: Follow,
    stop: threading.Event,
    wake: threading.Event,
    say: Callable[[str], None],
    every_s: float = _EVERY_S,
) -> None:
    """Run passes until `stop` is set.

    `wake` makes the next pass start at once. `stop` takes effect after the current pass. A pass that fails is repeated;
    the error is reported once, and so is its end.
    """
    trouble = ""
    while not stop.is_set():
        try:
            step()
        except Exception as error:  # an internal error must not end the queue
            known = isinstance(error, StoreBroken | BackendUnreachable | Fenced | OtherMachines)
            text = str(error) if known else "".join(traceback.format_exception(error))
            if text != trouble:
                trouble = text
                say(text)
        else:
            if trouble:
                trouble = ""
                say("passes over the queue succeed again")
        wake.wait(every_s)
        wake.clear()


class ControlLoop:
    """Runs passes in a separate thread, between `start` and `end`."""

    def __init__(
        self,
        controller: Controller,
        election: LeaderElection,
        event_log: EventLog,
        meters: Meters,
        say: Callable[[str], None],
        after: Sequence[Follow],
        begins: Follow,
    ) -> None:
        """`after`: actions of the leader after each pass. `begins`: called each time this server becomes the leader."""
        self._controller, self._election, self._event_log = controller, election, event_log
        self._meters, self._say, self._after, self._begins = meters, say, after, begins
        self._stop, self._wake = threading.Event(), threading.Event()
        self._renewal = LeadershipRenewal(election)
        passes = (self.step, self._stop, self._wake, say)
        self._thread = threading.Thread(target=run_passes, args=passes, name="passes", daemon=True)
        self._led = self._fenced = False
        self._failures = 0  # consecutive failed passes
        self._unanswered = ""
        self._rest_until_s = 0.0

    def start(self) -> None:
        self._renewal.start()
        self._thread.start()

    def end(self) -> None:
        """Stop the passes. Waits for the current one, though not for long."""
        self._stop.set()
        self._wake.set()
        self._thread.join(_ENDS_WITHIN_S)
        self._renewal.end()

    def wake(self) -> None:
        self._wake.set()

    def leads(self) -> bool:
        """Whether this server leads now. False as soon as its term has run out."""
        try:
            return self._election.epoch > 0 and not self._fenced
        except NotLeader:
            return False

    def trouble(self) -> str:
        """Say why the queue makes no progress; '' if it does. Machines that do not answer do not count as a failure."""
        if self._failures < _FAILING:
            return ""
        return f"the last {self._failures} passes over the queue have failed: see the server's log"

    def unanswered(self) -> str:
        """Say why the machines did not answer the last pass of this server; '' if they did, or were not asked."""
        return self._unanswered

    def step(self) -> None:
        self._stop.wait(max(self._rest_until_s - time.monotonic(), 0.0))
        began_s, failed = time.monotonic(), True
        try:
            with self._renewal.working():
                self._step()
            failed, self._unanswered = False, ""
        except StoreBroken:
            self._meters.store_errors.inc()
            raise
        except (Fenced, OtherMachines):
            self._fenced = True
            self._note(False)
            raise
        except BackendUnreachable as error:
            failed, self._unanswered = False, str(error)
            self._meters.backend_errors.inc()
            raise
        finally:
            self._count(failed)
            took_s = time.monotonic() - began_s
            self._meters.passes.observe(took_s)
            self._rest_until_s = time.monotonic() + min(max(_REST * took_s, _SHORTEST_GAP_S), 1.0)

    def _step(self) -> None:
        leads = self._controller.step()
        self._fenced = False
        self._note(leads)
        with contextlib.suppress(StoreBroken):  # the next pass reports it
            self._event_log.write_new()
        failed: Exception | None = None
        for follow in self._after if leads else ():
            try:
                follow()
            except NotLeader:  # the term has run out: the other actions are for the next leader
                break
            except Exception as error:  # the other actions are still carried out
                failed = failed or error
        if failed is not None:
            raise failed

    def _count(self, failed: bool) -> None:
        self._failures = self._failures + 1 if failed else 0
        self._meters.failing.set(self._failures)
        if self._failures >= _FAILING:
            self._meters.leads.set(False)

    def _note(self, leads: bool) -> None:
        if leads and not self._led:
            with contextlib.suppress(StoreBroken):  # only the event is lost; the next pass reports the error
                self._begins()
        elif self._led and not leads:
            self._say("this server does not lead any more")
        self._led = leads
        self._meters.leads.set(leads)


class Throttled:
    """Calls a function at most once in an interval, a minute by default.

    A call that fails is repeated at once, so that passes count as failed until it succeeds.
    """

    def __init__(self, act: Follow, every_s: float = _NOTE_EVERY_S) -> None:
        self._act, self._every_s, self._next_s = act, every_s, 0.0

    def __call__(self) -> None:
        if time.monotonic() >= self._next_s:
            self._act()
            self._next_s = time.monotonic() + self._every_s


class IdleShutdown:
    """Ends an embedded server after a time without living clients and unfinished jobs. Called after each pass."""

    def __init__(self, store: Store, home: Path, end: Callable[[], None]) -> None:
        self._store, self._home, self._end = store, home, end
        self._needed_s = time.monotonic()

    def __call__(self) -> None:
        """Check whether the server is needed. Raises StoreBroken."""
        if any_alive(self._home) or self._store.jobs(Filter(states=UNFINISHED), limit=1):
            self._needed_s = time.monotonic()
        elif time.monotonic() - self._needed_s > _IDLE_S:
            self._end()
