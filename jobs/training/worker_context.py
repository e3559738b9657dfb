"""The context of a worker's loop: one protocol with two implementations, for Ray Train and for torchrun."""

from __future__ import annotations

import contextlib
import copy
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from cluster.settings import TorchrunWorld
from jobs.data.order.stream import StepRows, Stream, plain_steps, ray_steps
from jobs.errors import StorageError
from jobs.remedies.hang import Doing
from jobs.run.attempts import write_attempt
from jobs.run.paths import JobPaths
from jobs.storage import files as storage
from jobs.training.pulse import PulseWriter


class WorkerContext(Protocol):
    """One worker's view of its gang."""

    rank: int
    world_size: int
    device: torch.device
    node: str  # Ray's id of the node; without Ray, the host's name

    def steps(self, stream: Stream, start: int, rewound: bool = False) -> Iterator[StepRows]:
        """Yield this worker's rows from step `start` on. `rewound`: the same worker group goes back to that step."""

    def requests(self) -> Requests:
        """Return the requests since the last call. Called at every step, so it must be cheap."""

    def mark(self, doing: Doing) -> None:
        """Record what the loop does from now on. `steps` itself marks the wait for rows and the start of a step."""

    def for_run(self, paths: JobPaths, driver: str = "") -> WorkerContext:
        """Return this worker's context for another run, with that run's requests. Close it after that run."""

    def close(self) -> None:
        """Stop watching for requests."""


@dataclass(frozen=True)
class Requests:
    """Requests to a running gang. One rank reads them; the step's all-reduce passes them to the others."""

    stop: bool = False  # end after a checkpoint of the next step
    save: bool = False  # write a checkpoint at the next step


def gang_device(gpus_per_worker: int, local_rank: int) -> torch.device:
    if gpus_per_worker == 0:
        return torch.device("cpu")
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


class RayGang:
    """A worker of Ray Train, whose rows come through Ray Data."""

    def __init__(
        self, paths: JobPaths, gpus_per_worker: int, driver: str = "", pulse: PulseWriter | None = None
    ) -> None:
        """For `driver`, see `Job`."""
        import ray.train
        import ray.train.torch

        context = ray.train.get_context()
        self.rank = context.get_world_rank()
        self.world_size = context.get_world_size()
        self.node = ray.get_runtime_context().get_node_id()
        self.device = ray.train.torch.get_device() if gpus_per_worker else torch.device("cpu")
        self._paths = paths
        self._watch = OrderWatch(paths, driver, self.rank)
        self._pulse = pulse or PulseWriter("", self.rank)

    def for_run(self, paths: JobPaths, driver: str = "") -> RayGang:
        other = copy.copy(self)
        other._paths, other._watch = paths, OrderWatch(paths, driver, self.rank)
        return other

    def steps(self, stream: Stream, start: int, rewound: bool = False) -> Iterator[StepRows]:
        if rewound:
            return self._marked(plain_steps(stream, start), start)
        if self.rank == 0:
            write_attempt(self._paths, start, self.world_size)
        return self._marked(ray_steps(stream, start, self.node), start)

    def _marked(self, steps: Iterator[StepRows], start: int) -> Iterator[StepRows]:
        self._pulse.mark(Doing.DATA, start)
        for rows in steps:
            self._pulse.mark(Doing.STEP, rows.step + 1)
            yield rows
            self._pulse.mark(Doing.DATA)

    def mark(self, doing: Doing) -> None:
        self._pulse.mark(doing)

    def requests(self) -> Requests:
        return self._watch.requests()

    def close(self) -> None:
        self._watch.close()


class TorchrunGang:
    """A process that torchrun started, whose rows come from a plain reader."""

    def __init__(
        self,
        paths: JobPaths,
        gpus_per_worker: int,
        world: TorchrunWorld,
        asked_to_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """`asked_to_stop` returns whether this process got a stop request; the next all-reduce tells other ranks."""
        self.rank, self.world_size = world.rank, world.world_size
        self.node = os.uname().nodename
        self.device = gang_device(gpus_per_worker, world.local_rank)
        self._watch = OrderWatch(paths, "", self.rank)
        self._asked_to_stop = asked_to_stop

    def for_run(self, paths: JobPaths, driver: str = "") -> TorchrunGang:
        other = copy.copy(self)
        other._watch = OrderWatch(paths, driver, self.rank)
        return other

    def steps(self, stream: Stream, start: int, rewound: bool = False) -> Iterator[StepRows]:
        return plain_steps(stream, start)

    def mark(self, doing: Doing) -> None:
        """Do nothing: under torchrun there is no detection of hangs."""

    def requests(self) -> Requests:
        heard = self._watch.requests()
        return replace(heard, stop=heard.stop or self._asked_to_stop())

    def close(self) -> None:
        self._watch.close()


def end_superseded() -> None:
    """End the process at once, without a checkpoint, because another driver has the run."""
    print("another driver has the run: these workers end", flush=True)
    os._exit(1)


class OrderWatch:
    """Looks, in a thread on rank 0, for requests in the run's directory and for another driver that has taken the run.

    Workers that are cut off from Ray and from their driver may still reach the storage. Another driver that resumes the
    run on other nodes takes much longer to its first step than these workers need to see its id.
    """

    def __init__(
        self, paths: JobPaths, driver: str, rank: int, every_s: float = 1.0, leave: Callable[[], None] = end_superseded
    ) -> None:
        """For `driver`, see `Job`."""
        self._paths, self._driver, self._every_s, self._leave = paths, driver, every_s, leave
        self._stop = self._save = False
        self._closed = threading.Event()
        if rank == 0:
            threading.Thread(target=self._run, name="orders", daemon=True).start()

    def requests(self) -> Requests:
        save = self._save
        if save:  # clear the flag only if it was read as set, so that a new request is not lost
            self._save = False
        return Requests(self._stop, save)

    def close(self) -> None:
        self._closed.set()

    def _run(self) -> None:
        while not self._stop and not self._closed.wait(self._every_s):
            if self._is_superseded():
                self._leave()
                return
            with contextlib.suppress(StorageError):  # the next look is a second later
                self._stop = storage.exists(self._paths.stop_request)
                if storage.exists(self._paths.save_request):
                    storage.remove_file(self._paths.save_request)
                    self._save = True

    def _is_superseded(self) -> bool:
        try:
            return bool(self._driver) and storage.read_bytes(self._paths.driver).decode() != self._driver
        except StorageError:  # the next look is a second later
            return False
