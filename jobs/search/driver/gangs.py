"""All warm gangs of a sweep, and the choice of a free gang for each task."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from cluster.capacity.gang import Gang
from cluster.errors import FleetuneError, Interrupted, MachinesFailed, StorageError
from cluster.ray.connection import free_now
from jobs.run.attempts import take_run
from jobs.run.events import Announcer
from jobs.run.paths import JobPaths
from jobs.search.driver.warm_gang import GangLost, GangWaits, WarmGang
from jobs.search.rules.varying import engine_key
from jobs.spec.finetune import Spec
from jobs.storage import files as storage
from jobs.storage.text import read_end
from jobs.training.mailbox import Answer, GangTask
from jobs.training.worker_input import Job

_LEAVES_WITHIN_S = 3.0  # for the threads of all gangs
_LOG_BYTES = 1500  # of the end of a log, about 15 lines
_WORDS = 40  # characters of a reason that are looked for in logs


class Gangs:
    """All warm gangs of a sweep. Its methods may be called by any thread."""

    def __init__(
        self,
        job: Job,
        most: int,
        alone: bool,
        announce: Announcer,
        places: Sequence[str] | None = None,
        engines_vary: bool = False,
        at_once: bool = True,
    ) -> None:
        """
        Args:
            job: the base job; the gangs' directories are inside its run.
            most: largest number of gangs at once.
            alone: this process has started Ray, which ends with it.
            places: node of each worker of all gangs, as a queue assigned it; None lets Ray choose.
            engines_vary: start each gang at its first task, with the engine of that task, and again for a task with
                another engine. If a gang cannot be started, only the trial fails, and not the sweep.
            at_once: start all gangs now, instead of each at its first task.
        """
        self._job, self._alone, self._announce, self._places = job, alone, announce, places
        self._engines_vary = engines_vary
        self._changed = threading.Condition()
        self._starts = 0
        self._begins = True  # tasks may begin
        at_once = at_once and not engines_vary
        self._all: list[WarmGang | None] = [
            self._started(number, job.spec) if at_once else None for number in range(most)
        ]
        self._free = list(range(most))  # numbers of gangs: their places in `_all`
        # By number: the run whose state its gang holds. Two gangs never have the same run here: one of them would
        # have an old state of it.
        self._held = dict[int, str]()
        self._over = set[int]()  # numbers of gangs that get no more tasks
        self._given_back = set[int]()  # numbers of those of them whose workers have ended

    def _started(self, number: int, spec: Spec) -> WarmGang:
        """Start the gang of this number, with an engine for `spec`."""
        self._starts += 1
        root = storage.join(JobPaths(self._job.run_root).gangs, str(self._starts))
        own = replace(self._job, spec=spec, run_root=root, driver=take_run(JobPaths(root)))
        size = self._job.spec.resources.num_workers
        places = None if self._places is None else self._places[number * size : (number + 1) * size]
        return WarmGang(own, self._alone, self._announce, places)

    def __len__(self) -> int:
        return len(self._usable())

    def _usable(self) -> list[int]:
        """Return the numbers of gangs that may get a task; those that wait for room only if all others do."""
        usable = [number for number in range(len(self._all)) if self._is_usable(number)]
        return [number for number in usable if not ((gang := self._all[number]) and gang.waits_for_room)] or usable

    def _is_usable(self, number: int) -> bool:
        gang = self._all[number]
        return number not in self._over and (self._engines_vary or gang is None or gang.dead is None)

    @property
    def failure(self) -> FleetuneError | None:
        """Why no gang is left; None while there is one."""
        return None if len(self) else next((gang.dead for gang in self._all if gang is not None and gang.dead), None)

    def carry_out(self, task: GangTask) -> Answer:
        """Wait for a free gang, and carry out a task on it: the gang with the run's state, else with its engine.

        While that gang waits for room, the task moves to another one that becomes free.

        Raises:
            GangLost: the task may be given again.
            Interrupted: `begin_no_more` was called before a gang was free.
            FleetuneError: no gang is left; or a node that the queue has assigned is gone.
        """
        while True:
            with contextlib.suppress(GangWaits):
                return self._carried_out(task)

    def _carried_out(self, task: GangTask) -> Answer:
        """Carry out a task on a free gang. Raises what `carry_out` does, and GangWaits."""
        with self._taken(task) as number, self._holding(number, task.run):
            try:
                gang = self._gang_for(number, task.spec or self._job.spec)
                return gang.carry_out(task, self._any_is_free)
            except (GangLost, GangWaits, StorageError):
                raise
            except FleetuneError as error:
                if self._places and isinstance(error, MachinesFailed):
                    raise
                if self._engines_vary and not isinstance(error, MachinesFailed):
                    return Answer(status="failed", reason=str(error))
                if len(self):
                    raise GangLost(str(error)) from error
                raise

    @contextlib.contextmanager
    def _holding(self, number: int, run: str) -> Iterator[None]:
        """Record that the gang of this number holds the state of a run, and no other gang; after an error, none."""
        with self._changed:
            self._held = {each: held for each, held in self._held.items() if held != run} | {number: run}
        try:
            yield
        except BaseException:
            with self._changed:
                self._held.pop(number, None)
            raise

    def _any_is_free(self) -> bool:
        """Whether a gang with workers has no task."""
        gangs = [self._all[number] for number in list(self._free) if self._is_usable(number)]
        return any(gang is not None and gang.dead is None and not gang.waits_for_room for gang in gangs)

    def _gang_for(self, number: int, spec: Spec) -> WarmGang:
        """Return the gang of this number. Start a new one if there is none yet, or if it has another engine."""
        gang = self._all[number]
        if gang is not None and (not self._engines_vary or (gang.dead is None and gang.engine == engine_key(spec))):
            return gang
        if gang is not None:
            self._announce("phase", "starting a gang anew, for a trial with another engine", phase="workers")
            gang.end()
        with self._changed:
            new = self._all[number] = self._started(number, spec)
        return new

    @contextlib.contextmanager
    def _taken(self, task: GangTask) -> Iterator[int]:
        """Reserve a free gang, and yield its number."""
        engine = engine_key(task.spec or self._job.spec)

        def fits(number: int) -> tuple[bool, bool, bool]:
            gang = self._all[number]
            return self._held.get(number) == task.run, gang is not None and gang.engine == engine, gang is None

        with self._changed:
            while not (usable := self._free_now()):
                if (failure := self.failure) is not None:
                    raise failure
                self._changed.wait(1.0)
            number = max(usable, key=fits)
            self._free.remove(number)
        try:
            yield number
        finally:
            with self._changed:
                self._free.append(number)
                self._changed.notify_all()

    def _free_now(self) -> list[int]:
        """Return the numbers of the gangs that may get a task now. Raises Interrupted: no task begins any more."""
        if not self._begins:
            raise Interrupted("the sweep ends, and begins nothing more")
        return [number for number in self._usable() if number in self._free]

    def give_back(self, most: int) -> int:
        """End free gangs for good until `most` are left, and return the number of gangs that have ended."""
        with self._changed:
            over = len(self) - most
            unneeded = [number for number in reversed(self._free) if self._is_usable(number)][: max(over, 0)]
            self._over.update(unneeded)
        ended = [number for number in unneeded if (gang := self._all[number]) is None or gang.end()]
        self._given_back.update(ended)
        return len(ended)

    @property
    def workers_kept(self) -> tuple[int, ...]:
        """Numbers of the workers whose gangs have not been given back, of all workers of the sweep."""
        size = self._job.spec.resources.num_workers
        kept = [number for number in range(len(self._all)) if number not in self._given_back]
        return tuple(worker for number in kept for worker in range(number * size, (number + 1) * size))

    @property
    def num_workers_held(self) -> int:
        """Number of workers whose machines are taken: all of a queue's lease; without one, those of gangs that run."""
        if self._places is not None:
            return len(self.workers_kept)
        left = [gang for number, gang in enumerate(self._all) if gang is not None and number not in self._given_back]
        holding = [gang for gang in left if gang.dead is None and not gang.waits_for_room]
        return len(holding) * self._job.spec.resources.num_workers

    def log_of(self, reason: str) -> tuple[str, str] | None:
        """Return path and last lines of a log that contains the reason; None if no log does."""
        home = JobPaths(self._job.run_root).gangs
        with contextlib.suppress(StorageError):
            for logs in (JobPaths(storage.join(home, name)).logs for name in storage.list_names(home)):
                for path in (storage.join(logs, name) for name in storage.list_names(logs)):
                    end = read_end(path, _LOG_BYTES)
                    if reason[:_WORDS] in end:
                        return path, end
        return None

    def begin_no_more(self) -> None:
        """Refuse tasks that no gang has begun, and end the gangs that could not begin one now, which nobody waits for.

        These are the gangs that wait for room or load the model: there is nothing to save on them.
        """
        with self._changed:
            self._begins = False
            self._changed.notify_all()
        for gang in self._all:
            if gang is None:
                continue
            if gang.waits_for_room:
                gang.end()
            else:
                with contextlib.suppress(StorageError):  # else it ends after it has loaded
                    if gang.is_loading:
                        gang.leave()

    def end(self) -> bool:
        """End all gangs at once. Return False if workers have not ended after half a minute."""
        ended = list[bool]()
        gangs = [gang for gang in self._all if gang is not None]
        threads = [threading.Thread(target=lambda gang=gang: ended.append(gang.end()), daemon=True) for gang in gangs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return ended.count(True) == len(gangs)

    def leave(self) -> None:
        """Leave all gangs, without a wait for their workers: see `WarmGang.leave`."""
        gangs = [gang for gang in self._all if gang is not None]
        for gang in gangs:
            gang.leave()
        ends_s = time.monotonic() + _LEAVES_WITHIN_S
        for gang in gangs:
            gang.join(max(ends_s - time.monotonic(), 0.0))


def end_earlier_gangs(drivers: str) -> None:
    """Make the gangs of earlier drivers end.

    Such a gang still lives only if it is cut off from Ray. Its rank 0 sees the new driver id in its directory.

    Args:
        drivers: the directory that has one directory for each driver of the sweep.
    """
    for attempt in storage.list_names(drivers):
        gangs = JobPaths(storage.join(drivers, attempt)).gangs
        for gang in storage.list_names(gangs):
            take_run(JobPaths(storage.join(gangs, gang)))


def gangs_that_fit(gang: Gang, most: int, cpus: int | None = None) -> int:
    """Count the gangs that have room now on the connected cluster: at least 1, at most `most`.

    Args:
        cpus: most CPUs of a node to count, for a Ray cluster that reports more than there are.
    """
    free = free_now()
    each = [
        min(
            (node.cpus if cpus is None else min(node.cpus, cpus)) // gang.cpus_per_worker,
            node.gpus // gang.gpus_per_worker if gang.gpus_per_worker else node.cpus,
        )
        for node in free.nodes
    ]
    return max(1, min(most, sum(each) // gang.num_workers))
