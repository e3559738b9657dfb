"""Leadership: of the servers of one queue, only one at a time may move jobs."""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Iterator
from typing import Final

from orchestrator.queue.clock import TOLERANCE_S, Clock
from orchestrator.queue.errors import NotLeader
from orchestrator.queue.records import Leadership
from orchestrator.queue.store import Store

_MOST_RENEWED_S: Final = 600.0  # longest time to renew for one pass; far above the time of a pass


class LeaderElection:
    """Takes the leadership when it is free, and keeps it. Thread-safe.

    A leader that has not renewed in time must not act. This is measured by the steady clock, which goes on while a
    process is frozen.
    """

    def __init__(self, store: Store, clock: Clock, holder: str, url: str, term_s: float = 15.0) -> None:
        self._store, self._clock, self._url, self.term_s = store, clock, url, term_s
        self._lock = threading.RLock()
        self._name = holder
        self._holder = self._new_holder()  # unique to this process, so that a restarted server counts as another one
        self._mine: Leadership | None = None
        self._until_s = 0.0  # of the steady clock
        self._other: tuple[Leadership, float] | None = None  # another's, and the steady time since when it is unchanged

    @property
    def epoch(self) -> int:
        """The epoch of this leadership. Raises NotLeader, also if the term has run out. Does not wait for a renewal."""
        mine = self._mine
        if mine is None or self._clock.steady_s() >= self._until_s:
            raise NotLeader("this server does not lead any more: another one may")
        return mine.epoch

    def keep(self) -> None:
        """Renew the leadership if this server has it; never take it. Raises StoreBroken."""
        with self._lock:
            if self._mine is not None:
                self.renew()

    def renew(self) -> bool:
        """Take or renew the leadership. Returns whether this server leads.

        A leader asks the store only after a third of its term.
        """
        with self._lock:
            steady_s = self._clock.steady_s()
            if self._mine is not None and steady_s < self._until_s - self.term_s * 2 / 3:
                return True
            now_s = max(self._clock.now_s(), self._silent_since_s(steady_s), self._later_s())
            mine = self._store.lead(self._holder, self._url, now_s, self.term_s)
            self._until_s = steady_s + self.term_s
            self._mine = mine
            if self._mine is not None:
                self._other = None
            return self._mine is not None

    def still_leads(self) -> bool:
        """Whether this server leads according to the store, regardless of what was renewed here."""
        leader = self._store.leader()
        return leader is not None and leader.holder == self._holder

    def go_on(self, epoch: int) -> None:
        """Renew if needed, before an action that only the leader may take.

        Raises:
            NotLeader: the leadership with this epoch is over, even if this server leads again.
        """
        self.renew()
        if self.epoch != epoch:
            raise NotLeader("this server led before and leads again: its earlier observations are out of date")

    def resign(self) -> None:
        with self._lock:
            if self._mine is not None:
                self._mine = None
                self._store.resign(self._holder)
                self._holder = self._new_holder()  # so that a later leadership of this server has a new epoch

    def _new_holder(self) -> str:
        return f"{self._name}-{secrets.token_hex(4)}"

    def _later_s(self) -> float:
        """Return a time that makes the next renewal later than the last, even while this clock is held back.

        If this clock was far ahead and has been corrected, return 0: the term must not end far in the future.
        """
        renewed_s = 0.0 if self._mine is None else self._mine.expires_s - self.term_s + 1e-3
        return renewed_s if renewed_s - self._clock.now_s() <= TOLERANCE_S else 0.0

    def _silent_since_s(self, steady_s: float) -> float:
        """Return a time at which the other server's term has expired, if it was not renewed for a whole term; else 0.

        Clocks differ and may be set back, so the time without a change of the record counts, not its expiry time.
        """
        other = self._store.leader()
        if other is None or other.holder == self._holder:
            return 0.0
        if self._other is None or self._other[0] != other:
            self._other = other, steady_s
        silent = steady_s - self._other[1] > self.term_s
        return other.expires_s + 1e-3 if silent else 0.0


class LeadershipRenewal:
    """A thread that renews the leadership every fifth of a term, between `start` and `end`, while `working` is entered.

    A new leader reads the store, asks the machines and plans before its first write, which may take longer than its
    term. Writes of a leader that was frozen are still refused, by the epoch that every write carries.
    """

    def __init__(self, election: LeaderElection, most_s: float = _MOST_RENEWED_S) -> None:
        """`most_s`: longest time to renew for one pass. A longer pass hangs, and another server should lead."""
        self._election, self._most_s = election, most_s
        self._since_s: float | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="leadership", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self._end.set()

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        self._since_s = time.monotonic()
        try:
            yield
        finally:
            self._since_s = None

    def _run(self) -> None:
        while not self._end.wait(self._election.term_s / 5):
            since_s = self._since_s
            if since_s is not None and time.monotonic() - since_s < self._most_s:
                with contextlib.suppress(Exception):  # the pass meets and reports the same error
                    self._election.keep()
