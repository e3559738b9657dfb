"""The clocks that decisions are based on, and the timeouts of the leader."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

TOLERANCE_S: Final = 60.0  # tolerated difference from the steady clock or from another server's clock
_SETTLES_S: Final = 2 * 3600.0  # after this time a jump of the clock is accepted
_LONGEST_DOWN_S: Final = 30 * 86400.0  # after a longer time without a leader, the machine's clock is not trusted


class Clock(Protocol):
    def now_s(self) -> float:
        """Return seconds since 1970. They never decrease, unless a wrong clock is corrected."""

    def steady_s(self) -> float:
        """Return seconds since an unknown start. They pass evenly, also while this process is frozen."""


def _steady_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)  # goes on while the machine is suspended


class SystemClock:
    """The machine's clock, without its jumps. Thread-safe.

    The machine's clock is followed as long as it agrees with the steady clock within a minute. If it goes back by less,
    the time stands still. After a larger jump, time goes on evenly from before the jump. If the jump has not been
    undone within two hours, the machine's clock is accepted, even if that means going back.
    """

    def __init__(
        self,
        not_before_s: float = 0.0,
        say: Callable[[str], None] = lambda text: None,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = _steady_s,
    ) -> None:
        """
        Args:
            not_before_s: the newest time that earlier leaders have written to the store. The machine's clock is not
                trusted if it is behind this time, or more than a month ahead.
            say: reports jumps to people.
        """
        self._say, self._wall, self._steady = say, wall, steady
        self._lock = threading.Lock()
        now_s, self._at_s = wall(), steady()
        fits = not not_before_s or -TOLERANCE_S <= now_s - not_before_s <= _LONGEST_DOWN_S
        self._now_s = max(now_s, not_before_s) if fits else not_before_s
        self._doubted: tuple[float, float] | None = None  # (deviation of the machine's clock, steady time since when)

    def now_s(self) -> float:
        with self._lock:
            text = self._go_on()
            now_s = self._now_s
        if text:
            self._say(text)
        return now_s

    def steady_s(self) -> float:
        return self._steady()

    def _go_on(self) -> str:
        """Advance the time. Returns a message about a jump; '': nothing to report."""
        wall_s, at_s = self._wall(), self._steady()
        expected_s, self._at_s = self._now_s + at_s - self._at_s, at_s
        off_s = wall_s - expected_s
        if abs(off_s) <= TOLERANCE_S:
            self._now_s = max(self._now_s, wall_s)
            was_doubted, self._doubted = self._doubted is not None, None
            return "the clock of this machine is right again" if was_doubted else ""
        self._now_s = expected_s
        jump = f"{'ahead' if off_s > 0 else 'back'} by {abs(off_s):.0f} s"
        if self._doubted is None or abs(off_s - self._doubted[0]) > TOLERANCE_S:
            self._doubted = off_s, at_s
            return f"the clock of this machine has jumped {jump}, and is not followed for two hours: is it right?"
        if at_s - self._doubted[1] < _SETTLES_S:
            return ""
        self._now_s, self._doubted = wall_s, None
        return f"the clock of this machine has been {jump} for two hours, and is followed from now on"


@dataclass(frozen=True)
class Timing:
    """Timeouts in seconds.

    Attributes:
        grace_s: time between a soft stop and the first hard one. More hard stops follow at growing intervals.
        most_grace_s: most of that time for a job whose checkpoints take long.
        slow_s: once a job takes longer than this to stop, its nodes are not expected to be free soon.
        pending_s: a driver that has not come up within this time is started again. Only time in which the server looks
            counts.
        absent_s: a node that is still missing so long after it was first missed is lost.
        replan_s: interval between plans if nothing has changed.
        doubt_s: how long a start that was not answered may still happen.
        register_s: a running driver that has not registered within this time is stopped.
        silent_s: a driver that has not been heard for this long is stopped. None: drivers do not report, for example
            those of fake machines.
    """

    grace_s: float = 120.0
    most_grace_s: float = 1800.0
    slow_s: float = 180.0
    pending_s: float = 600.0
    absent_s: float = 10.0
    doubt_s: float = 60.0
    replan_s: float = 15.0
    register_s: float = 600.0
    silent_s: float | None = None

    def grace_of(self, checkpoint_s: float | None) -> float:
        """Return the grace time, in seconds, of a job whose newest checkpoint took `checkpoint_s`; None: unknown.

        A checkpoint may be under way already, and storage may be slower than before.
        """
        return max(self.grace_s, min(3.0 * (checkpoint_s or 0.0), self.most_grace_s))


USUAL = Timing()
