"""Starts lost workers again, within a budget, and says what that costs the run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from cluster.errors import MachinesFailed, RunFailed
from jobs.run.checkpoints import newest_step, newest_step_if_known
from jobs.run.events import Announcer
from jobs.run.paths import JobPaths
from jobs.run.remedies import RemedyReport
from jobs.storage.journal import Record
from jobs.training.on_ray.crash import Crash, How
from jobs.training.on_ray.fit import Healing

REMEDY = "lost_workers"  # as in `jobs.spec.remedies`


class LostWorkers:
    """The losses of one driver. Call `look` while workers run, and `go_on` when they were lost."""

    def __init__(
        self,
        paths: JobPaths,
        announce: Announcer,
        places: Sequence[str] | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`places`: ids of the nodes that a queue has assigned; None: any node may run workers."""
        self._paths, self._announce, self._places, self._clock = paths, announce, places, clock
        self._healing = Healing(lambda: newest_step(paths))
        self._lost: tuple[float, Record | None] | None = None  # when, and the newest step then; until training goes on
        self._before: Record | None = None  # the newest step when the present group began

    def begin(self, newest: Record | None) -> None:
        """Note that a group starts. `newest`: the newest step of the run."""
        self._before = newest

    def look(self, newest: Record | None) -> None:
        """Announce how long the loss has held up training, once there is a new step."""
        if self._lost is None or newest is None or newest is self._lost[1]:
            return
        seconds, self._lost = self._clock() - self._lost[0], None
        effect = f"training goes on {seconds:.1f} s after the workers were lost"
        self._announce("remedy", effect, remedy=REMEDY, effect=effect, seconds=round(seconds, 1))

    def go_on(self, crash: Crash, newest: Record | None, *, allowed: bool, told: bool) -> None:
        """Return if the workers should be started again.

        Args:
            newest: the newest step of the run.
            allowed: `remedies.lost_workers` of the spec.
            told: another remedy has ended the workers, and has said so. The driver's log repeats it.

        Raises:
            MachinesFailed: they were lost too often; a queue may try other nodes.
            RunFailed: the same without a queue, or it is not allowed.
        """
        if not (allowed or told or crash.how is How.NO_ROOM):
            raise RunFailed(f"{crash}, and remedies.lost_workers is false. Look at the log of that rank", crash.rank)
        if self._healing.may_go_on():
            self._tell(crash, newest, told)
            return
        said = f"workers were lost {self._healing.losses} times without a newer checkpoint; the last time {crash}"
        if self._places is not None:
            raise MachinesFailed(said)
        raise RunFailed(f"{said}. Look at the log of that rank", crash.rank)

    def _tell(self, crash: Crash, newest: Record | None, told: bool) -> None:
        message = f"{crash}: starting the workers again"
        if told:
            print(message, flush=True)
            return
        saved = newest_step_if_known(self._paths)
        # A group that was lost before its first step has done nothing that is computed again.
        step = saved if newest is None or newest is self._before else int(newest["step"])
        report = RemedyReport(
            REMEDY,
            str(crash),
            "the workers are started again",
            f"they go on from step {saved}" if saved else "they begin anew",
            steps_again=max(step - saved, 0),
        )
        self._lost = self._clock(), newest
        report.tell(self._announce, message, step=max(step, saved), losses=self._healing.losses)
