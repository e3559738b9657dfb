"""Limits how often lost workers are started again. A newer checkpoint restores the budget."""

from __future__ import annotations

from collections.abc import Callable

# Losses without a newer checkpoint between them. After one more, a queue tries other machines.
MOST_LOSSES = 3


class Healing:
    """Counts the losses of workers of one driver."""

    def __init__(self, newest: Callable[[], int], most: int = MOST_LOSSES) -> None:
        """`newest`: the step of the newest checkpoint; 0 while there is none."""
        self._newest, self._most = newest, most
        self._step, self.losses = newest(), 0

    def may_go_on(self) -> bool:
        """Count one more loss, and say whether the workers may be started again."""
        step = self._newest()
        if step > self._step:
            self._step, self.losses = step, 0
        self.losses += 1
        return self.losses <= self._most
