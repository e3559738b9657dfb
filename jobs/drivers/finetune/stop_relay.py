"""Passes the request to stop a driver on to the workers of a run."""

from __future__ import annotations

import contextlib

from jobs.drivers.stop_request import StopKind, StopRequest
from jobs.errors import Interrupted, StorageError
from jobs.run.events import Announcer
from jobs.run.paths import JobPaths
from jobs.storage import files as storage


class StopRelay:
    """Writes the stop file of a run, which its workers answer with a checkpoint and an end."""

    def __init__(self, stop: StopRequest, paths: JobPaths, announce: Announcer) -> None:
        self.stop = stop
        self._paths, self._announce, self._told = paths, announce, False

    def check(self) -> None:
        """Act on the request, if there is one. The main thread calls this regularly.

        Raises:
            Interrupted: a second signal has arrived.
        """
        if self.stop.kind is StopKind.AT_ONCE:
            raise Interrupted("interrupted twice: ended at once, without a checkpoint of the last steps")
        if self.stop.asked and not self._told:
            source, reason = self.stop.source, self.stop.reason
            more = "; Ctrl-C again ends at once" if source == "signal" else f": {reason}"
            with contextlib.suppress(StorageError):  # the next check tries again
                storage.write_bytes(self._paths.stop_request, str(source).encode())
                self._told = True
                self._announce("stopping", f"stopping after a checkpoint of the next step{more}")
