"""On PYTHONPATH, rank 0 of a training waits a moment in each step, and the others wait for it.

A test that needs a training that goes on for minutes does not need it to keep every core busy meanwhile: what the test
is about, processes that start, then takes half as long.

With FLEETUNE_TESTS_HOLD, the path of a file, nothing is slowed down. As long as the file is there, rank 0 waits where
`tests.support.hold` says. What it does meanwhile is marked as a wait for rows, which may take any time.

With FLEETUNE_TESTS_RAY_DATA, the path of a file, Ray Data reads all rows but the first few of a worker, however little
they are, and each start of Ray Data adds a line to the file.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

from tests.support.changed_module import LOOP, when_loaded

_STEP_S, _LOOK_S = 0.5, 0.05
_HOLD = os.environ.get("FLEETUNE_TESTS_HOLD")
_RAY_DATA = os.environ.get("FLEETUNE_TESTS_RAY_DATA")


def _pace(loop: Any) -> None:
    step = loop.train_step

    def paced(run: Any, rows: Any, *rest: Any) -> Any:
        if run.worker.rank == 0:
            time.sleep(_STEP_S) if _HOLD is None else _wait(_HOLD, run, rows.step)
        return step(run, rows, *rest)

    loop.train_step = paced


def _read_by_ray(stream: Any) -> None:
    read = stream._ray_tables

    def noted(*given: Any) -> Any:
        with open(str(_RAY_DATA), "a") as file:
            file.write("started\n")
        return read(*given)

    stream._LEAST_RAY_BYTES, stream._CHUNK_ROWS, stream._ray_tables = 0, 16, noted


def _wait(hold: str, run: Any, steps: int) -> None:
    """`steps`: that the run has ended."""
    from jobs.remedies.hang import Doing

    waited = False
    while _is_held(hold, run, steps):
        if not waited:
            run.worker.mark(Doing.DATA)
            with open(f"{hold}.part-{os.getpid()}", "w") as file:
                file.write(str(os.getpid()))
            os.replace(file.name, f"{hold}.reached")
        waited = True
        time.sleep(_LOOK_S)
    if waited:
        run.worker.mark(Doing.STEP)


def _is_held(hold: str, run: Any, steps: int) -> bool:
    try:
        with open(hold) as file:
            wanted = json.load(file)
    except FileNotFoundError:
        return False
    watch = getattr(run.worker, "_watch", None)
    if wanted["heeds"] and watch is not None and (watch._stop or watch._save):
        return False
    return steps >= wanted["step"] and any(part in run.job.run_root for part in wanted["runs"])


when_loaded(LOOP, _pace)
if _RAY_DATA is not None:
    when_loaded("jobs.data.order.stream", _read_by_ray)
