"""One warm gang of a sweep's driver: starts its workers, gives them tasks, and starts them again after a loss."""

from __future__ import annotations

import contextlib
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace

from cluster.errors import FleetuneError, MachinesFailed, RunFailed, StorageError
from cluster.wakeup import Wakeup
from jobs.drivers.finetune.machines import find_room
from jobs.drivers.finetune.ray_driver import crash_of
from jobs.remedies.out_of_memory import advice
from jobs.run.attempts import retake_run
from jobs.run.events import Announcer
from jobs.run.outcome import Outcome, Status
from jobs.search.rules.varying import engine_key
from jobs.spec.load import dump_spec
from jobs.storage import files as storage
from jobs.training.ending import failures_of, outcome_of
from jobs.training.faults import first_line
from jobs.training.mailbox import Answer, GangTask, Mailbox
from jobs.training.on_ray.crash import How
from jobs.training.on_ray.fit import Healing, fit
from jobs.training.worker_input import Job

_END_S = 30.0


class GangLost(FleetuneError):
    """The gang was lost while it carried out a task. The task may be given again, to this gang or another one."""


class GangWaits(FleetuneError):
    """The gang waits for room while another one is free. The task was taken back, and may be given to that one."""


class _TaskFailed(FleetuneError):
    """The workers ended because of the task. The driver answers it in their place."""


class WarmGang:
    """A gang that stays from trial to trial, and carries out one task at a time.

    Its methods may be called by any thread.

    Attributes:
        engine: see `engine_key`.
        dead: why it will not carry out any more tasks; None while it may.
        waits_for_room: its workers were lost, and the cluster has no room for others.
    """

    def __init__(self, job: Job, alone: bool, announce: Announcer, places: Sequence[str] | None = None) -> None:
        """
        Args:
            job: the base job; its run's directory is the gang's.
            alone: this process has started Ray, which ends with it.
            places: node of each worker, as a queue assigned it; None lets Ray choose.
        """
        self._job, self._alone, self._announce, self._places = job, alone, announce, places
        self.engine = engine_key(job.spec)
        self.dead: FleetuneError | None = None
        self.waits_for_room = False
        self._mailbox = Mailbox(job.run_root)
        self._lock = threading.Lock()
        self._next = 1  # number of the next task
        self._open: int | None = None  # number of the task that is being carried out
        self._given_up: dict[int, FleetuneError] = {}  # by number: why the workers will not answer a task
        self._ending = self._left = False
        self._wakeup = Wakeup()
        storage.write_bytes(job.paths.spec, dump_spec(job.spec))
        self._thread = threading.Thread(target=self._run, name="gang", daemon=True)
        self._thread.start()

    @property
    def is_loading(self) -> bool:
        """Whether its workers have not loaded the model yet, which an end would wait for. Raises StorageError."""
        return self.dead is None and not self._mailbox.is_open

    def carry_out(self, task: GangTask, another_is_free: Callable[[], bool] = lambda: False) -> Answer:
        """Give a task to the workers, and wait for the answer.

        Args:
            another_is_free: returns whether another gang could carry out the task now.

        Raises:
            GangLost: the workers were lost.
            GangWaits: there are no workers, and another gang is free.
            FleetuneError: the gang cannot be started (again).
        """
        with self._lock:
            if self.dead is not None:
                raise self.dead
            assert self._open is None, "one task at a time"
            number = self._open = self._next
            self._next += 1

        def look() -> None:
            with self._lock:
                error = self._given_up.pop(number, self.dead)
                if error is None and self.waits_for_room and another_is_free():
                    self._open = None  # the new workers must not begin with it
                    error = GangWaits("the gang waits for room")
            if error is not None:
                raise error

        try:
            self._mailbox.tasks.put(number, task)
            return self._mailbox.answers.wait(number, look)
        except _TaskFailed as error:
            return Answer(status="failed", reason=str(error))
        finally:
            with self._lock:
                if self._open == number:
                    self._open = None

    def end(self) -> bool:
        """Make its workers end, and wait for that. Return False if they have not ended after half a minute."""
        with self._lock:
            self._ending = True
            number = self._next
            self._next += 1
        with contextlib.suppress(StorageError):
            self._mailbox.tasks.put(number, GangTask(action="end"))
        self._thread.join(_END_S)
        return not self._thread.is_alive()

    def leave(self) -> None:
        """Let this gang's thread end without its workers, which Ray ends later. `join` waits for the thread."""
        self._ending = self._left = True
        self._wakeup.set()

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    def _check_left(self) -> None:
        if self._left:
            raise MachinesFailed("the driver has left the gang")

    def _run(self) -> None:
        healing = Healing(lambda: self._next)
        try:
            while not self._ending:
                outcome = self._served()
                if self._ending:
                    return
                self._go_on_after(outcome, healing)
        except FleetuneError as error:
            self.dead = error
        except Exception as error:
            traceback.print_exc()
            self.dead = RunFailed(f"the gang failed: {type(error).__name__}: {error}")
        finally:  # otherwise, a task that it was given before would be waited for without end
            self.dead = self.dead or MachinesFailed("the gang was ended")

    def _served(self) -> Outcome:
        """Start the workers, and return their outcome once they have ended."""
        paths = self._job.paths
        storage.remove_dir(paths.failures)
        self._mailbox.close()
        # Workers of an earlier start, which may still wait for a failed rank, see the new driver id and end.
        self._job = replace(self._job, driver=retake_run(paths, self._job.driver))
        self._find_room()
        with self._lock:
            if self._ending:
                return outcome_of(paths, None, [])
            first = self._open or self._next
        try:
            result = fit(self._job, self._places, self._alone, self._check_left, wakeup=self._wakeup, first=first)
        except FleetuneError:
            raise
        except Exception as error:
            if self._ending:
                return outcome_of(paths, None, [])
            traceback.print_exc()
            return self._outcome_of_crash(error)
        return outcome_of(paths, result, failures_of(paths))

    def _find_room(self) -> None:
        """Wait for room. Raises MachinesFailed: an assigned node is gone, or the gang was ended."""
        self.waits_for_room = self._places is None
        try:
            find_room(self._job.spec, self._places, self._announce, self._check_ending)
        finally:
            self.waits_for_room = False

    def _check_ending(self) -> None:
        """Raise MachinesFailed if the gang was ended, so that it stops waiting for room."""
        if self._ending:
            raise MachinesFailed("the gang was ended while it waited for room")

    def _outcome_of_crash(self, error: Exception) -> Outcome:
        crash = crash_of(error, self._job.driver, self._places or ())
        if crash is None:
            cause = first_line(getattr(error, "controller_failure", error))
            raise RunFailed(f"Ray Train gave the gang up: {cause}") from error
        out_of_memory = crash.how is How.MEMORY
        advised = advice(self._job.spec, checkpointing=self._job.supports_checkpointing)
        reason = f"{crash}. {advised}" if out_of_memory else str(crash)
        lost = outcome_of(self._job.paths, None, [])
        facts = {"lost": not out_of_memory, "out_of_memory": out_of_memory, "rank": crash.rank}
        return lost.model_copy(update={"reason": reason, **facts})

    def _go_on_after(self, outcome: Outcome, healing: Healing) -> None:
        """Give up the open task. Raises FleetuneError if the workers should not be started again."""
        reason = str(outcome.reason)
        if outcome.status is not Status.FAILED:
            raise RunFailed("the workers of the gang ended without a task to end")
        if not outcome.lost and not self._mailbox.is_open:
            raise RunFailed(reason, outcome.rank)
        if not healing.may_go_on():
            raise MachinesFailed(f"the workers of a gang were lost {healing.losses} times; the last time {reason}")
        self._announce("warning", f"{reason}: starting the workers of the gang again", losses=healing.losses)
        with self._lock:
            self.waits_for_room = self._places is None  # until `_find_room` ends; no task may come here before
            if self._open is not None:
                self._given_up[self._open] = GangLost(reason) if outcome.lost else _TaskFailed(reason)
                self._open = None  # the new workers must not begin with it again
