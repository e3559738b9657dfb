"""On PYTHONPATH, rank 0 of a training waits a moment in each step, and the others wait for it.

A test that needs a training that goes on for minutes does not need it to keep every core busy meanwhile: what the test
is about, processes that start, then takes half as long.
"""

from __future__ import annotations

from typing import Any

from tests.support.changed_loop import when_loaded

_STEP_S = 0.5


def _pace(loop: Any) -> None:
    import time

    step = loop.train_step

    def paced(run: Any, *rest: Any) -> Any:
        if run.gang.rank == 0:
            time.sleep(_STEP_S)
        return step(run, *rest)

    loop.train_step = paced


when_loaded(_pace)
