"""Has gangs carry out a task, again on another gang after a loss."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from cluster.errors import FleetuneError
from jobs.run.checkpoints import newest_step_if_known
from jobs.run.paths import JobPaths
from jobs.search.driver.gangs import Gangs
from jobs.search.driver.warm_gang import GangLost
from jobs.training.mailbox import Answer, GangTask
from jobs.training.on_ray.fit import Healing

_MOST_LOSSES = 3  # without a newer checkpoint of the run, after which a task is given up
_LOOK_S = 0.05


def carried_out(
    gangs: Gangs, task: GangTask, asked_to_stop: Callable[[], bool], after_loss: Callable[[], None] = lambda: None
) -> Answer:
    """Have a gang carry out a task; another gang if the first is lost.

    Args:
        asked_to_stop: returns whether the sweep is stopped. A task is then not given again.
        after_loss: called after each loss.

    Raises:
        GangLost: gangs were lost again and again, or one was lost while the sweep is stopped.
        FleetuneError: no gang is left.
    """
    run = JobPaths(task.run)
    losses = Healing(lambda: newest_step_if_known(run), _MOST_LOSSES - 1)
    while True:
        try:
            return gangs.carry_out(task)
        except GangLost as error:
            after_loss()
            if asked_to_stop():
                raise
            if not losses.may_go_on():
                said = f"its gang was lost {losses.losses} times without a newer checkpoint; the last time {error}"
                raise GangLost(said) from error


def carried_out_unless_stopped(gangs: Gangs, task: GangTask, asked_to_stop: Callable[[], bool]) -> Answer | None:
    """Have a gang carry out a task after the search. None: a stop was requested, so the gang is not waited for.

    Raises:
        GangLost, FleetuneError: as `carried_out` does.
    """
    done: dict[str, Any] = {}

    def carry_out() -> None:
        try:
            done["answer"] = carried_out(gangs, task, asked_to_stop)
        except FleetuneError as error:
            done["error"] = error

    thread = threading.Thread(target=carry_out, daemon=True)
    thread.start()
    while thread.is_alive() and not asked_to_stop():
        thread.join(_LOOK_S)
    if "error" in done and not asked_to_stop():
        raise done["error"]
    return done.get("answer")
