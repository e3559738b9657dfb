"""Holds trainings at a step until the test has done what it does meanwhile, however long that takes."""

from __future__ import annotations

import json
import os
import pathlib

from tests.support.gangs import PACED
from tests.support.processes import wait_for


class Hold:
    """Works on trainings that have its `environment`. One at a time: a later `at` replaces an earlier one."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._file = folder / "hold"

    @property
    def environment(self) -> dict[str, str]:
        return {"PYTHONPATH": PACED, "FLEETUNE_TESTS_HOLD": str(self._file)}

    def at(self, step: int, *runs: str, heeds: bool = True) -> None:
        """From now on, no training gets past that step.

        Args:
            runs: parts of the directories of the runs that are held; without any, all are.
            heeds: a rank that sees a request to stop or to save makes one step more, so that it is answered.
        """
        self._reached.unlink(missing_ok=True)
        beside = self._file.with_suffix(".part")
        beside.write_text(json.dumps({"step": step, "runs": runs or [""], "heeds": heeds}))
        os.replace(beside, self._file)

    def wait(self, within_s: float = 120.0) -> int:
        """Return once a training waits, with the process id of its rank 0."""
        wait_for(self._reached.exists, "a training is held", within_s)
        return int(self._reached.read_text())

    def release(self) -> None:
        self._file.unlink(missing_ok=True)

    @property
    def _reached(self) -> pathlib.Path:
        return self._file.with_suffix(".reached")
