"""The controller's passes as a server runs them: measured, told, and with what follows a pass."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence

from cluster.errors import BackendUnreachable, Fenced
from orchestrator.controller.controller import Controller
from orchestrator.controller.keeping import Keeper
from orchestrator.controller.leadership import Leading
from orchestrator.http.metrics import Meters
from orchestrator.queue.errors import NotLeader, StoreBroken
from orchestrator.server.control_loop import run_passes
from orchestrator.server.event_log import News

NEWEST = "newest_s"  # the fact of the store that the clock goes by after a restart
_NOTE_EVERY_S = 60.0
_SHORTEST_GAP_S = 0.1
_REST = 9.0  # times as long as a pass took, nothing is done: submissions in a row do not each bring one about
_ENDS_WITHIN_S = 5.0
_FAILING = 3  # passes that have failed in a row: one may be chance

Follow = Callable[[], object]


class Passes:
    """Runs in a thread of its own, between `start` and `end`."""

    def __init__(
        self,
        controller: Controller,
        leading: Leading,
        news: News,
        meters: Meters,
        say: Callable[[str], None],
        after: Sequence[Follow],
        begins: Follow,
    ) -> None:
        """`after`: what the leader does after each pass. `begins`: called each time this server begins to lead."""
        self._controller, self._leading, self._news = controller, leading, news
        self._meters, self._say, self._after, self._begins = meters, say, after, begins
        self._stop, self._wake = threading.Event(), threading.Event()
        self._keeper = Keeper(leading)
        self._thread = threading.Thread(target=self._run, name="passes", daemon=True)
        self._led = self._fenced = False
        self._failures = 0  # passes in a row
        self._rest_until_s = 0.0

    def start(self) -> None:
        self._keeper.start()
        self._thread.start()

    def end(self) -> bool:
        """Whether the pass that was going on has ended."""
        self._stop.set()
        self._wake.set()
        self._thread.join(_ENDS_WITHIN_S)
        self._keeper.end()
        return not self._thread.is_alive()

    def wake(self) -> None:
        self._wake.set()

    def leads(self) -> bool:
        """As of now: a right that was not renewed in time has run out."""
        try:
            return self._leading.epoch > 0 and not self._fenced
        except NotLeader:
            return False

    def trouble(self) -> str:
        """Why the queue does not move; '' where it does. Machines that do not answer are no fault of this server."""
        if self._failures < _FAILING:
            return ""
        return f"the last {self._failures} passes over the queue have failed: see the server's log"

    def step(self) -> bool:
        self._stop.wait(max(self._rest_until_s - time.monotonic(), 0.0))
        began_s = time.monotonic()
        failed = True
        try:
            with self._keeper.working():
                leads = self._step()
            failed = False
            return leads
        except StoreBroken:
            self._meters.store_errors.inc()
            raise
        except Fenced:
            self._fenced = True
            self._note(False)
            raise
        except BackendUnreachable:
            failed = False
            self._meters.backend_errors.inc()
            raise
        finally:
            self._count(failed)
            took_s = time.monotonic() - began_s
            self._meters.passes.observe(took_s)
            self._rest_until_s = time.monotonic() + min(max(_REST * took_s, _SHORTEST_GAP_S), 1.0)

    def _step(self) -> bool:
        leads = self._controller.step()
        self._fenced = False
        self._note(leads)
        with contextlib.suppress(StoreBroken):  # of which the next pass tells
            self._news.tell()
        failed: Exception | None = None
        for follow in self._after if leads else ():
            try:
                follow()
            except Exception as error:  # one that fails holds up no other
                failed = failed or error
        if failed is not None:
            raise failed
        return leads

    def _count(self, failed: bool) -> None:
        self._failures = self._failures + 1 if failed else 0
        self._meters.failing.set(self._failures)
        if self._failures >= _FAILING:
            self._meters.leads.set(False)

    def _note(self, leads: bool) -> None:
        if leads and not self._led:
            with contextlib.suppress(StoreBroken):  # only the event is lost, and the next pass says what is wrong
                self._begins()
        elif self._led and not leads:
            self._say("this server does not lead any more")
        self._led = leads
        self._meters.leads.set(leads)

    def _run(self) -> None:
        run_passes(self, self._stop, self._wake, self._say)


class Minute:
    """Does something about once a minute, whenever it is called."""

    def __init__(self, act: Follow, every_s: float = _NOTE_EVERY_S) -> None:
        self._act, self._every_s, self._next_s = act, every_s, 0.0

    def __call__(self) -> None:
        if time.monotonic() >= self._next_s:
            self._act()
            self._next_s = time.monotonic() + self._every_s
