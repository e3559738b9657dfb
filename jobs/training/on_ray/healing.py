"""Limits how often lost workers are replaced. A newer checkpoint resets the count."""

from __future__ import annotations

from collections.abc import Callable

# Workers are replaced after this many losses without a newer checkpoint. After one more, the queue tries other nodes.
MOST_LOSSES = 3


class Healing:
    """Counts how often this driver has lost workers."""

    def __init__(self, newest: Callable[[], int], most: int = MOST_LOSSES) -> None:
        """`newest` returns the step of the newest checkpoint, or 0."""
        self._newest, self._most = newest, most
        self._step, self.losses = newest(), 0

    def may_go_on(self) -> bool:
        """Count one more loss. Returns whether the workers may be started again."""
        step = self._newest()
        if step > self._step:
            self._step, self.losses = step, 0
        self.losses += 1
        return self.losses <= self._most
