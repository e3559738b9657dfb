"""What a program of the fake cluster does. Values only."""

from __future__ import annotations

import math
from dataclasses import dataclass

NEVER = math.inf


@dataclass(frozen=True)
class Script:
    """By default it starts at once, runs for a minute, succeeds, and ends at once when it is asked to.

    Attributes:
        runs_s: from its start to its end; NEVER: until it is ended.
        starts_after_s: from when it is taken to its start; NEVER: it stays pending.
        stops_after_s: from a soft stop to its end; NEVER: it does not listen.
        stopped_exit_code: after a soft stop.
        output: written at its start.
        refused: why it can never start here; None: it can.
    """

    runs_s: float = 60.0
    exit_code: int = 0
    starts_after_s: float = 0.0
    stops_after_s: float = 0.0
    stopped_exit_code: int = 130
    output: bytes = b""
    message: str = ""
    refused: str | None = None
