"""The context of a worker's loop: what is common, and what differs under Ray Train and under torchrun."""

from __future__ import annotations

import abc
import contextlib
import copy
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from cluster.errors import StorageError
from cluster.settings import TorchrunWorld
from jobs.data.order.stream import StepRows, Stream, plain_steps, ray_steps
from jobs.remedies.hang import Doing
from jobs.run.attempts import write_attempt
from jobs.run.checkpoints import passed_over
from jobs.run.paths import JobPaths
from jobs.storage import files as storage
from jobs.training.pulse import PulseWriter


class WorkerContext(abc.ABC):
    """One worker's view of its gang.

    Attributes:
        node: Ray's id of the node; without Ray, the host's name.
    """

    def __init__(
        self, rank: int, world_size: int, node: str, device: torch.device, paths: JobPaths, driver: str
    ) -> None:
        """For `driver`, see `Job`."""
        self.rank, self.world_size, self.node, self.device = rank, world_size, node, device
        self._paths, self._watch = paths, RequestWatch(paths, driver, rank)

    @abc.abstractmethod
    def steps(self, stream: Stream, start: int, rewound: bool = False) -> Iterator[StepRows]:
        """Yield this worker's rows from step `start` on. `rewound`: the same worker group goes back to that step."""

    def requests(self) -> Requests:
        """Return the requests since the last call. Called at every step, so it must be cheap."""
        return self._watch.requests()

    @abc.abstractmethod
    def mark(self, doing: Doing) -> None:
        """Record what the loop does from now on. `steps` itself marks the wait for rows and the start of a step."""

    def for_run(self, paths: JobPaths, driver: str = "") -> WorkerContext:
        """Return this worker's context for another run, with that run's requests. Close it after that run."""
        other = copy.copy(self)
        other._paths, other._watch = paths, RequestWatch(paths, driver, self.rank)
        return other

    def close(self) -> None:
        """Stop watching for requests."""
        self._watch.close()


@dataclass(frozen=True)
class Requests:
    """Requests to a running gang. One rank reads them; the step's all-reduce passes them to the others."""

    stop: bool = False  # end after a checkpoint of the next step
    save: bool = False  # write a checkpoint at the next step


def worker_device(gpus_per_worker: int, local_rank: int) -> torch.device:
    if gpus_per_worker == 0:
        return torch.device("cpu")
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


class RayWorkerContext(WorkerContext):
    """A worker of Ray Train, whose rows come through Ray Data."""

    def __init__(
        self, paths: JobPaths, gpus_per_worker: int, driver: str = "", pulse: PulseWriter | None = None
    ) -> None:
        import ray.train
        import ray.train.torch

        context, node = ray.train.get_context(), ray.get_runtime_context().get_node_id()
        device = ray.train.torch.get_device() if gpus_per_worker else torch.device("cpu")
        super().__init__(context.get_world_rank(), context.get_world_size(), node, device, paths, driver)
        self._pulse = pulse or PulseWriter("", self.rank)

    def steps(self, stream: Stream, start: int, rewound: bool = False) -> Iterator[StepRows]:
        if rewound:
            return self._marked(plain_steps(stream, start), start)
        if self.rank == 0:
            write_attempt(self._paths, start, self.world_size, passed_over(self._paths, start))
        return self._marked(ray_steps(stream, start, self.node), start)

    def _marked(self, steps: Iterator[StepRows], start: int) -> Iterator[StepRows]:
        self._pulse.mark(Doing.DATA, start)
        for rows in steps:
            self._pulse.mark(Doing.STEP, rows.step + 1)
            yield rows
            self._pulse.mark(Doing.DATA)

    def mark(self, doing: Doing) -> None:
        self._pulse.mark(doing)


class TorchrunWorkerContext(WorkerContext):
    """A process that torchrun started, whose rows come from a plain reader."""

    def __init__(
        self,
        paths: JobPaths,
        gpus_per_worker: int,
        world: TorchrunWorld,
        driver: str = "",
        asked_to_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """For `driver`, see `Job`.

        Args:
            asked_to_stop: returns whether this process got a stop request; the next all-reduce tells other ranks.
        """
        device = worker_device(gpus_per_worker, world.local_rank)
        super().__init__(world.rank, world.world_size, os.uname().nodename, device, paths, driver)
        self._asked_to_stop = asked_to_stop

    def steps(self, stream: Stream, start: int, rewound: bool = False) -> Iterator[StepRows]:
        if self.rank == 0 and not rewound:
            write_attempt(self._paths, start, self.world_size, passed_over(self._paths, start))
        return plain_steps(stream, start)

    def mark(self, doing: Doing) -> None:
        """Do nothing: under torchrun there is no detection of hangs."""

    def requests(self) -> Requests:
        heard = super().requests()
        return replace(heard, stop=heard.stop or self._asked_to_stop())


def end_superseded() -> None:
    """End the process at once, without a checkpoint, because another driver has the run."""
    print("another driver has the run: these workers end", flush=True)
    os._exit(1)


class RequestWatch:
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
            threading.Thread(target=self._run, name="requests", daemon=True).start()

    def requests(self) -> Requests:
        save = self._save
        if save:  # clear the flag only if it was read as set, so that a new request is not lost
            self._save = False
        return Requests(self._stop, save)

    def close(self) -> None:
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.wait(self._every_s):
            if self._is_superseded():
                self._leave()
                return
            if self._stop:
                continue
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
