"""One warm gang, seen from the driver of a sweep: started, given orders, started again after a loss, ended."""

from __future__ import annotations

import contextlib
import threading
import traceback
from collections.abc import Sequence
from dataclasses import replace

from cluster.ray.connection import held_places, wait_for_room
from jobs.drivers.finetune.ray_driver import crash_of
from jobs.errors import FleetuneError, MachinesFailed, RunFailed, StorageError
from jobs.planning import gang_of
from jobs.planning.out_of_memory import advice
from jobs.run.attempts import take_run
from jobs.run.events import Announcer
from jobs.run.outcome import Outcome, Status
from jobs.search.rules.varying import engine_of
from jobs.spec.load import dump_spec
from jobs.storage import files as storage
from jobs.training.ending import failures_of, outcome_of
from jobs.training.faults import first_line
from jobs.training.mailbox import Answer, Mailbox, Order
from jobs.training.on_ray.crash import How
from jobs.training.on_ray.fit import fit
from jobs.training.on_ray.healing import Healing
from jobs.training.on_ray.worker import warm_ray_worker
from jobs.training.worker_input import Job

_END_S = 30.0


class GangLost(FleetuneError):
    """The gang was lost while it carried out an order. The order may be given again, to this gang or another one."""


class WarmGang:
    """Workers that stay, and the orders that they carry out one at a time. Its methods may be called by any thread."""

    def __init__(self, job: Job, alone: bool, announce: Announcer, places: Sequence[str] | None = None) -> None:
        """
        Args:
            job: the base job; its run's directory is the gang's.
            alone: on a Ray that ends with this process.
            places: the node of each worker, given by a queue; None: wherever there is room.
        """
        self._job, self._alone, self._announce, self._places = job, alone, announce, places
        self.engine = engine_of(job.spec)
        self._mailbox = Mailbox(job.run_root)
        self._lock = threading.Lock()
        self._next = 1  # number of the next order
        self._open: int | None = None  # the order that is being carried out
        self._given_up: dict[int, Answer | FleetuneError] = {}  # by number of an order that will not be answered
        self._dead: FleetuneError | None = None
        self._ending = False
        self.waits_for_room = False  # its workers were lost, and the cluster has no room for others
        storage.write_bytes(job.paths.spec, dump_spec(job.spec))
        self._thread = threading.Thread(target=self._run, name="gang", daemon=True)
        self._thread.start()

    @property
    def dead(self) -> FleetuneError | None:
        """Why it will not carry out any more orders; None while it may."""
        return self._dead

    def carry_out(self, order: Order) -> Answer:
        """Wait until it is done.

        Raises:
            GangLost: see there.
            FleetuneError: the gang cannot be started (again).
        """
        with self._lock:
            if self._dead is not None:
                raise self._dead
            assert self._open is None, "one order at a time"
            number = self._open = self._next
            self._next += 1

        def look() -> None:
            with self._lock:
                given_up = self._given_up.pop(number, None)
                if given_up is None and self._dead is not None:
                    given_up = self._dead
            if isinstance(given_up, FleetuneError):
                raise given_up
            if given_up is not None:
                raise _Instead(given_up)

        try:
            self._mailbox.send(number, order)
            return self._mailbox.await_answer(number, look)
        except _Instead as instead:
            return instead.answer
        finally:
            with self._lock:
                if self._open == number:
                    self._open = None

    def end(self) -> bool:
        """Have its workers end, and wait for that. False: they had not ended after half a minute."""
        with self._lock:
            self._ending = True
            number = self._next
            self._next += 1
        with contextlib.suppress(StorageError):
            self._mailbox.send(number, Order(action="end"))
        self._thread.join(_END_S)
        return not self._thread.is_alive()

    def _run(self) -> None:
        healing = Healing(lambda: self._next)
        try:
            while not self._ending:
                outcome = self._served()
                if self._ending:
                    return
                self._go_on_after(outcome, healing)
        except FleetuneError as error:
            self._dead = error
        except Exception as error:
            traceback.print_exc()
            self._dead = RunFailed(f"the gang failed: {type(error).__name__}: {error}")

    def _served(self) -> Outcome:
        """Start the workers; once they have ended, what came of them."""
        paths = self._job.paths
        storage.remove_dir(paths.failures)
        self._mailbox.close()
        # Workers of an earlier start that wait for a rank that has failed see that another driver has come, and end.
        self._job = replace(self._job, driver=take_run(paths))
        self._find_room()
        with self._lock:
            if self._ending:
                return outcome_of(paths, None, [])
            first = self._open or self._next
        try:
            result = fit(self._job, self._places, self._alone, lambda: None, warm_ray_worker, first=first)
        except FleetuneError:
            raise
        except Exception as error:
            if self._ending:
                return outcome_of(paths, None, [])
            traceback.print_exc()
            return self._outcome_of_crash(error)
        return outcome_of(paths, result, failures_of(paths))

    def _find_room(self) -> None:
        """Wait for room. Raises MachinesFailed: a node that the queue has assigned is gone."""
        gang = gang_of(self._job.spec)
        if self._places is None:
            self.waits_for_room = True
            try:
                wait_for_room(gang, lambda text: self._announce("phase", text, phase="workers"), self._check_ending)
            finally:
                self.waits_for_room = False
            return
        with held_places(gang, self._places, lambda: None):
            pass

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
        reason = f"{crash}. {advice(self._job.spec)}" if out_of_memory else str(crash)
        lost = outcome_of(self._job.paths, None, [])
        facts = {"lost": not out_of_memory, "out_of_memory": out_of_memory, "rank": crash.rank}
        return lost.model_copy(update={"reason": reason, **facts})

    def _go_on_after(self, outcome: Outcome, healing: Healing) -> None:
        """Give the open order up. Raises FleetuneError where the workers are not worth another start."""
        reason = str(outcome.reason)
        if outcome.status is not Status.FAILED:
            raise RunFailed("the workers of the gang ended without being asked to")
        if not outcome.lost and not self._mailbox.is_open:
            raise RunFailed(reason, outcome.rank)
        if not healing.may_go_on():
            raise MachinesFailed(f"the workers of a gang were lost {healing.losses} times; the last time {reason}")
        self._announce("warning", f"{reason}: starting the workers of the gang again", losses=healing.losses)
        given_up: Answer | FleetuneError = GangLost(reason) if outcome.lost else Answer(status="failed", reason=reason)
        with self._lock:
            if self._open is not None:
                self._given_up[self._open] = given_up
                self._open = None  # the workers are not to begin with it again


class _Instead(Exception):
    """An order is answered by the driver in the gang's place."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.reason)
        self.answer = answer
