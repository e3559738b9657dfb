"""Timeouts of the leader: how long it waits for machines and drivers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Timeouts in seconds.

    Attributes:
        grace_s: time between a soft stop and the first hard one. More hard stops follow at growing intervals.
        slow_s: once a job takes longer than this to stop, its nodes are not expected to be free soon.
        pending_s: a driver that has not come up within this time is started again.
        absent_s: a node that has not been seen for this long is lost.
        replan_s: interval between plans if nothing has changed.
        doubt_s: how long a start that was not answered may still happen.
        register_s: a running driver that has not registered within this time is stopped.
        silent_s: a driver that has not been heard for this long is stopped. None: drivers do not report, for example
            those of fake machines.
    """

    grace_s: float = 120.0
    slow_s: float = 180.0
    pending_s: float = 600.0
    absent_s: float = 10.0
    doubt_s: float = 60.0
    replan_s: float = 15.0
    register_s: float = 600.0
    silent_s: float | None = None


USUAL = Timing()
