"""How long the leader waits for machines and drivers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """All in seconds.

    Attributes:
        grace_s: from a soft stop to a hard one. Further hard ones follow ever less often.
        slow_s: a job that takes longer than this to stop does not count as leaving.
        pending_s: a driver that has not come up by then is started again.
        absent_s: a node that is not seen for so long is lost.
        replan_s: where nothing has changed, it is planned anew only when so long has passed.
        doubt_s: a start that was not answered may still happen for so long.
        register_s: a driver that runs and has not registered by then is stopped.
        silent_s: a driver that was not heard for so long is stopped; None: drivers do not speak, as those of made-up
            machines.
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
