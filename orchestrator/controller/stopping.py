"""How drivers are stopped: a soft stop, then hard stops at growing intervals."""

from __future__ import annotations

from collections.abc import Container
from typing import Final

from cluster.backend import Backend

_LONGEST_S: Final = 3600.0  # seconds; on Ray each hard stop is a separate job, and an unkillable process needs many


class Stops:
    """The stops that one leadership has requested. Times are of the steady clock."""

    def __init__(self, backend: Backend, grace_s: float) -> None:
        """`grace_s`: time between the soft stop and the first hard one."""
        self._backend, self._grace_s = backend, grace_s
        self._asked: dict[str, float] = {}  # submission -> time of the soft stop
        self._hard: dict[str, tuple[float, float]] = {}  # submission -> (time of the next hard stop, pause after it)

    def asked_s(self, submission: str, default: float) -> float:
        """When a driver was first told to stop."""
        return self._asked.get(submission, default)

    def stop(self, submission: str, steady_s: float) -> None:
        """Request a soft stop once, and hard stops after the grace period. Raises BackendUnreachable."""
        if submission not in self._asked:
            self._backend.stop(submission)
            self._asked[submission] = steady_s
        elif steady_s - self._asked[submission] > self._grace_s:
            self.end(submission, steady_s)

    def end(self, submission: str, steady_s: float) -> None:
        """Request a hard stop, unless one was requested recently. Raises BackendUnreachable."""
        next_s, pause_s = self._hard.get(submission, (steady_s, self._grace_s))
        if steady_s >= next_s:
            self._backend.stop(submission, hard=True)
            self._hard[submission] = steady_s + pause_s, min(2 * pause_s, _LONGEST_S)

    def forget_all_but(self, current: Container[str]) -> None:
        self._asked = {name: at_s for name, at_s in self._asked.items() if name in current}
        self._hard = {name: when for name, when in self._hard.items() if name in current}
