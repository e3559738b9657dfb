"""Threads of a process that torchrun has started. They act while its main thread may wait in a collective.

torchrun notices a process that ends, and ends the other processes of its node 30 seconds after SIGTERM. NCCL waits half
an hour for a rank that has left. In neither case could the main thread write an outcome.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cluster.errors import RunTaken, StorageError
from cluster.local.supervisor import process_lives
from cluster.settings import TorchrunWorld
from jobs.data.order.stream import StepRows, Stream
from jobs.drivers.stop_request import StopRequest
from jobs.run.attempts import check_held
from jobs.run.events import repeatedly
from jobs.run.paths import JobPaths
from jobs.storage import files as storage
from jobs.training.worker_context import TorchrunWorkerContext
from jobs.training.worker_input import Job

EVERY_S = 1.0  # seconds between two looks
LIST_REMOTE_EVERY_S = 10.0  # object storage charges for each list, and a failure stops the steps of all ranks anyway
# Seconds in which the main thread may notice a failure itself, and end the run in the ordinary way.
GRACE_S = 5.0


@dataclass(frozen=True)
class Peer:
    """One process of the run."""

    rank: int
    pid: int
    host: str


class LostPeers:
    """Finds processes of this host that have ended while they are watched. Used by two threads."""

    def __init__(self) -> None:
        self.peer: Peer | None = None  # the first one that was found
        self._watched: tuple[Peer, ...] = ()

    def watch(self, peers: tuple[Peer, ...]) -> None:
        """Watch these processes from now on, instead of earlier ones."""
        self.peer, self._watched = None, peers

    def look(self) -> bool:
        """Whether a watched process has ended."""
        if self.peer is None:
            self.peer = next((peer for peer in self._watched if not process_lives(peer.pid)), None)
        return self.peer is not None

    @property
    def text(self) -> str:
        """Describe the process that has ended."""
        peer = self.peer
        return "unknown" if peer is None else f"rank {peer.rank} on {peer.host}, pid {peer.pid}"


class FailureWatch:
    """A context manager that ends this process if the gang fails.

    One process of each node, and rank 1, watch `failures/` and the other processes of their node; once one has ended,
    torchrun ends those.
    """

    def __init__(
        self,
        paths: JobPaths,
        end: Callable[[], None],
        *,
        lost: Callable[[], bool] = lambda: False,
        every_s: float = EVERY_S,
        grace_s: float = GRACE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`end` is called in a thread and must end the process. `lost`: whether another process is gone."""
        self._paths, self._end, self._lost, self._every_s, self._grace_s = paths, end, lost, every_s, grace_s
        self._clock, self._listed_s = clock, -math.inf
        self._list_every_s = 0.0 if storage.is_local(paths.root) else LIST_REMOTE_EVERY_S
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="failures", daemon=True)

    def __enter__(self) -> FailureWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()  # if it is about to end the process, it has written the outcome

    def _run(self) -> None:
        while not self._closed.wait(self._every_s):
            if self.has_failed():
                if not self._closed.wait(self._grace_s):
                    self._end()
                return

    def has_failed(self) -> bool:
        """Look for a process that is gone, and, when that is due, for a reported failure."""
        if self._lost():
            return True
        if self._clock() - self._listed_s < self._list_every_s:
            return False
        self._listed_s = self._clock()
        with contextlib.suppress(StorageError):  # the next look tries again
            return bool(storage.list_names(self._paths.failures))
        return False


class StoppableContext(TorchrunWorkerContext):
    """Knows whether its rank has begun to train. A signal to stop is passed to all ranks by the next all-reduce."""

    def __init__(self, job: Job, world: TorchrunWorld, stop: StopRequest) -> None:
        self.has_begun = False
        gpus = job.spec.resources.gpus_per_worker
        super().__init__(job.paths, gpus, world, job.driver, lambda: stop.asked)

    def steps(self, stream: Stream, start: int, rewound: bool = False) -> Iterator[StepRows]:
        self.has_begun = True
        return super().steps(stream, start, rewound)


@contextlib.contextmanager
def ended_early(worker: StoppableContext, stop: StopRequest, end: Callable[[], None]) -> Iterator[None]:
    """On rank 0: call `end` in a thread if a stop is requested before training begins. `end` must end the process."""

    def look() -> None:
        if stop.asked and not worker.has_begun:
            end()

    with repeatedly(look, EVERY_S, "stop"):
        yield


@contextlib.contextmanager
def following(
    job: Job,
    world: TorchrunWorld,
    worker: StoppableContext,
    stop: StopRequest,
    lost: LostPeers,
    end: Callable[[], None],
) -> Iterator[None]:
    """On another rank: pass a request to stop on to rank 0, and call `end` once rank 0 has given the run up.

    Only rank 0 decides, because ranks begin to train at slightly different times. During training, and without a
    signal, one process of each node looks at the storage.
    """
    told = False

    def look() -> None:
        nonlocal told
        if world.local_rank == 0 or stop.asked or not worker.has_begun:
            try:
                check_held(job.paths, job.driver)
            except RunTaken:
                end()
                return
        if stop.asked and not told and not lost.look():  # torchrun also sends SIGTERM after a process has failed
            with contextlib.suppress(StorageError):  # the next look tries again
                storage.write_bytes(job.paths.stop_request, b"signal")
                told = True

    with repeatedly(look, EVERY_S, "stop"):
        yield
