"""Heartbeats, written in batches: two thousand drivers report every ten seconds, and a write waits for the disk."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterable
from dataclasses import fields, replace

from cluster.errors import FleetuneError
from orchestrator.queue.clock import Clock
from orchestrator.queue.errors import StoreBroken
from orchestrator.queue.records import Measured
from orchestrator.queue.store import Store

# Seconds between writes, and the longest pause after unexpected errors.
_EVERY_S, _LONGEST_PAUSE_S = 1.0, 30.0
_LOG = logging.getLogger(__name__)


class Heartbeats:
    """Collects reports, and writes them once a second in a thread that lives only while there are any.

    Reports stay until the store takes them. They are lost if the process fails, or if a write of them fails
    unexpectedly. That is harmless: the next heartbeat repeats them.
    """

    def __init__(self, store: Store, clock: Clock, every_s: float = _EVERY_S) -> None:
        self._store, self._clock, self._every_s = store, clock, every_s
        self._pending: dict[tuple[str, int], Measured] = {}
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self.faults = 0  # writes that failed with an unexpected exception

    def note(self, said: Measured) -> None:
        """Take a report, to be written soon. It is merged with an earlier one that is not written yet."""
        with self._lock:
            self._merge([said])
            if self._thread is None and not self._closed.is_set():
                self._thread = threading.Thread(target=self._run, name="heartbeats", daemon=True)
                self._thread.start()

    def flush(self) -> None:
        """Write pending reports now, also those that another thread has failed to write.

        Raises:
            StoreBroken: the reports stay pending.
            Exception: the store has failed unexpectedly; the reports are lost.
        """
        with self._writing:
            with self._lock:
                said, self._pending = list(self._pending.values()), {}
            if said:
                self._write(said)

    def _write(self, said: list[Measured]) -> None:
        """Write reports. If the store refuses one of them, the others are written all the same."""
        now_s = self._clock.now_s()
        try:
            self._store.measure(said, now_s)
        except StoreBroken:
            self._put_back(said)
            raise
        except Exception:
            if len(said) == 1:
                raise
            for at, one in enumerate(said):
                try:
                    self._store.measure([one], now_s)
                except StoreBroken:
                    self._put_back(said[at:])
                    raise
                except Exception:
                    _LOG.exception("a report of attempt %d of %s could not be written", one.attempt, one.job_id)

    def _put_back(self, said: list[Measured]) -> None:
        """Make reports pending again. Those that have come since are newer."""
        with self._lock:
            newer, self._pending = self._pending, {}
            self._merge([*said, *newer.values()])

    def _merge(self, said: Iterable[Measured]) -> None:
        """Add reports, the newest last. The caller holds the lock."""
        for one in said:
            key = one.job_id, one.attempt
            before = self._pending.get(key)
            self._pending[key] = one if before is None else _newer(before, one)

    def close(self) -> None:
        """Write pending reports, and end the thread."""
        self._closed.set()
        thread = self._thread
        if thread is not None:
            thread.join()
        self._flush_quietly()

    def _run(self) -> None:
        pause_s = self._every_s
        while True:
            self._closed.wait(pause_s)
            wrote = self._flush_quietly()
            pause_s = self._every_s if wrote else min(2 * pause_s, max(_LONGEST_PAUSE_S, self._every_s))
            with self._lock:
                if self._closed.is_set() or not self._pending:
                    self._thread = None
                    return

    def _flush_quietly(self) -> bool:
        """Write pending reports. Returns False after an unexpected error, which must not end the thread."""
        try:
            with contextlib.suppress(FleetuneError):
                self.flush()
            return True
        except Exception:
            self.faults += 1
            _LOG.exception("heartbeats of drivers could not be written; later ones are still written")
            return False


def _newer(before: Measured, said: Measured) -> Measured:
    news = {one.name: value for one in fields(said) if (value := getattr(said, one.name)) is not None}
    metrics = {**(before.metrics or {}), **(said.metrics or {})}
    return replace(before, **{**news, "metrics": metrics or None})
