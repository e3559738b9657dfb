"""The script of a program on the fake cluster. Values only."""

from __future__ import annotations

import math
from dataclasses import dataclass

NEVER = math.inf


@dataclass(frozen=True)
class Script:
    """What a program does. By default it starts at once, runs for a minute, succeeds, and obeys a soft stop at once.

    Attributes:
        runs_s: seconds from its start to its end; NEVER: it runs until it is stopped.
        starts_after_s: seconds from the launch to its start; NEVER: it stays pending.
        stops_after_s: seconds from a soft stop to its end; NEVER: it ignores soft stops.
        stopped_exit_code: exit code after a soft stop.
        output: text that it writes at its start.
        refused: why the launch is refused; None: it is accepted.
    """

    runs_s: float = 60.0
    exit_code: int = 0
    starts_after_s: float = 0.0
    stops_after_s: float = 0.0
    stopped_exit_code: int = 130
    output: bytes = b""
    message: str = ""
    refused: str | None = None
