"""On PYTHONPATH, rank 0 of a training waits a moment in each step, and the others wait for it.

A test that needs a training that goes on for minutes does not need it to keep every core busy meanwhile: what the test
is about, processes that start, then takes half as long.

With FLEETUNE_TESTS_HOLD, the path of a file, nothing is slowed down. As long as the file is there, the rank ends no
more steps than HELD_AFTER: whichever gang begins first waits there for the test.
"""

from __future__ import annotations

import itertools
import os
import time
from typing import Any

from tests.support.changed_loop import when_loaded

_STEP_S = 0.5
HELD_AFTER = 4
_HOLD = os.environ.get("FLEETUNE_TESTS_HOLD")


def _pace(loop: Any) -> None:
    step, begun = loop.train_step, itertools.count()

    def paced(run: Any, *rest: Any) -> Any:
        if run.gang.rank == 0:
            _wait(next(begun))
        return step(run, *rest)

    loop.train_step = paced


def _wait(steps: int) -> None:
    """`steps`: that this process has ended, of all its runs."""
    if _HOLD is None:
        time.sleep(_STEP_S)
    while _HOLD is not None and steps >= HELD_AFTER and os.path.exists(_HOLD):
        time.sleep(0.05)


when_loaded(_pace)
