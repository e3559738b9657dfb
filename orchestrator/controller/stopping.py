"""How drivers are stopped: softly, then hard, then hard again ever less often."""

from __future__ import annotations

from collections.abc import Container
from typing import Final

from cluster.backend import Backend

_LONGEST_S: Final = 3600.0  # on Ray each hard stop is a job of its own, and a process that cannot be killed takes many


class Stops:
    """What one leadership has asked of drivers. Times are of the steady clock."""

    def __init__(self, backend: Backend, grace_s: float) -> None:
        """`grace_s`: from a soft stop to a hard one."""
        self._backend, self._grace_s = backend, grace_s
        self._asked: dict[str, float] = {}  # submission -> when it was told to stop for the first time
        self._hard: dict[str, tuple[float, float]] = {}  # submission -> when it is ended next, and the pause after that

    def asked_s(self, submission: str, default: float) -> float:
        """When a driver was told to stop for the first time."""
        return self._asked.get(submission, default)

    def stop(self, submission: str, steady_s: float) -> None:
        """Ask once; end it when its grace is over. Raises BackendUnreachable."""
        if submission not in self._asked:
            self._backend.stop(submission)
            self._asked[submission] = steady_s
        elif steady_s - self._asked[submission] > self._grace_s:
            self.end(submission, steady_s)

    def end(self, submission: str, steady_s: float) -> None:
        """End it hard, unless that was tried a short while ago. Raises BackendUnreachable."""
        next_s, pause_s = self._hard.get(submission, (steady_s, self._grace_s))
        if steady_s >= next_s:
            self._backend.stop(submission, hard=True)
            self._hard[submission] = steady_s + pause_s, min(2 * pause_s, _LONGEST_S)

    def forget_all_but(self, current: Container[str]) -> None:
        self._asked = {name: at_s for name, at_s in self._asked.items() if name in current}
        self._hard = {name: when for name, when in self._hard.items() if name in current}
