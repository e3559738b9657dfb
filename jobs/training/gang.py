"""The gang: what surrounds the loop of one worker. Two kinds, behind one protocol: Ray Train's and torchrun's."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Protocol

import torch
import torch.distributed as dist

from cluster.settings import TorchrunWorld
from jobs import storage
from jobs.data.stream import StepRows, Stream, plain_steps, ray_steps
from jobs.errors import StorageError
from jobs.paths import JobPaths, checkpoint_name, checkpoint_step


class Gang(Protocol):
    """One worker's view of its gang."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device

    def steps(self, stream: Stream, start: int) -> Iterator[StepRows]:
        """This worker's rows from step `start` on."""
        ...

    def latest_checkpoint(self) -> tuple[int, contextlib.AbstractContextManager[str]] | None:
        """Step of the newest checkpoint, and its files on local disk while the context is open."""
        ...

    def save(self, step: int, write: Callable[[str], None]) -> None:
        """Keep what every worker's `write(folder)` puts into a folder as the checkpoint of `step`. A barrier."""
        ...

    def stop_requested(self) -> bool:
        """Whether this worker has been told to stop; looked at every step, so it must be cheap."""
        ...


def gang_device(gpus_per_worker: int, local_rank: int) -> torch.device:
    if gpus_per_worker == 0:
        return torch.device("cpu")
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


class RayGang:
    """A worker of Ray Train: rows through Ray Data, checkpoints through `ray.train.report`."""

    def __init__(self, paths: JobPaths, gpus_per_worker: int) -> None:
        import ray.train
        import ray.train.torch

        context = ray.train.get_context()
        self.rank = context.get_world_rank()
        self.world_size = context.get_world_size()
        self.local_rank = context.get_local_rank()
        self.device = ray.train.torch.get_device() if gpus_per_worker else torch.device("cpu")
        self._paths = paths
        self._stop = StopWatch(paths) if self.rank == 0 else None

    def steps(self, stream: Stream, start: int) -> Iterator[StepRows]:
        import ray.train

        if self.rank == 0:  # read by the data configuration, which this call of get_dataset_shard sets off
            write_attempt(self._paths, start, self.world_size)
        return ray_steps(ray.train.get_dataset_shard("train"), stream, start)

    def latest_checkpoint(self) -> tuple[int, contextlib.AbstractContextManager[str]] | None:
        import ray.train

        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        step = checkpoint_step(checkpoint.path.rstrip("/").rsplit("/", 1)[-1])
        return None if step is None else (step, checkpoint.as_directory())

    def save(self, step: int, write: Callable[[str], None]) -> None:
        import ray.train

        with tempfile.TemporaryDirectory(prefix="fleetune-checkpoint-") as folder:
            write(folder)
            checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report({"step": step}, checkpoint=checkpoint, checkpoint_dir_name=checkpoint_name(step))

    def stop_requested(self) -> bool:
        return self._stop is not None and self._stop.requested


class TorchrunGang:
    """A process that torchrun started: rows from a plain reader, checkpoints straight to the run's directory."""

    def __init__(self, paths: JobPaths, gpus_per_worker: int, keep: int, world: TorchrunWorld) -> None:
        self.rank, self.world_size, self.local_rank = world.rank, world.world_size, world.local_rank
        self.device = gang_device(gpus_per_worker, self.local_rank)
        self._paths = paths
        self._keep = keep
        self._stop = StopWatch(paths) if self.rank == 0 else None
        self._signalled = False

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """A signal handler: the next step's all-reduce tells the others."""
        self._signalled = True

    def steps(self, stream: Stream, start: int) -> Iterator[StepRows]:
        return plain_steps(stream, start)

    def latest_checkpoint(self) -> tuple[int, contextlib.AbstractContextManager[str]] | None:
        whole = self._whole_steps()
        return (whole[-1], _local_copy(self._paths.checkpoint(whole[-1]))) if whole else None

    def save(self, step: int, write: Callable[[str], None]) -> None:
        with tempfile.TemporaryDirectory(prefix="fleetune-checkpoint-") as folder:
            write(folder)
            for base, _, files in os.walk(folder):
                for name in files:
                    local = os.path.join(base, name)
                    inner = os.path.relpath(local, folder)
                    storage.put_file(local, storage.join(self._paths.checkpoint(step), inner))
        dist.barrier()
        if self.rank == 0:
            storage.write_bytes(_marker(self._paths, step), b"")
            whole = self._whole_steps()
            for old in self._steps():
                if old < whole[-self._keep :][0]:
                    storage.remove_dir(self._paths.checkpoint(old))

    def stop_requested(self) -> bool:
        return self._signalled or (self._stop is not None and self._stop.requested)

    def _whole_steps(self) -> list[int]:
        return [step for step in self._steps() if storage.exists(_marker(self._paths, step))]

    def _steps(self) -> list[int]:
        steps = [checkpoint_step(name) for name in storage.list_names(self._paths.checkpoints)]
        return sorted(step for step in steps if step is not None)


def _marker(paths: JobPaths, step: int) -> str:
    return storage.join(paths.checkpoint(step), "complete")


@contextlib.contextmanager
def _local_copy(path: str) -> Iterator[str]:
    if storage.is_local(path):
        yield storage.local_path(path)
        return
    with tempfile.TemporaryDirectory(prefix="fleetune-checkpoint-") as folder:
        storage.fetch_dir(path, folder)
        yield folder


def write_attempt(paths: JobPaths, start: int, world_size: int) -> None:
    """Publish at which step this worker group starts."""
    number = len(storage.list_names(os.path.dirname(paths.attempt(0)))) + 1
    storage.write_bytes(paths.attempt(number), json.dumps({"start": start, "num_workers": world_size}).encode())


def read_attempt(paths: JobPaths) -> dict[str, Any]:
    """The newest worker group's start."""
    folder = os.path.dirname(paths.attempt(0))
    attempt: dict[str, Any] = json.loads(storage.read_bytes(storage.join(folder, storage.list_names(folder)[-1])))
    return attempt


class StopWatch:
    """Rank 0's look, in a thread, whether the run's stop request has appeared; an all-reduce tells the others."""

    def __init__(self, paths: JobPaths, every_s: float = 1.0) -> None:
        self.requested = False
        self._paths, self._every_s = paths, every_s
        self._ended = threading.Event()
        threading.Thread(target=self._run, name="stop-watch", daemon=True).start()

    def _run(self) -> None:
        while not self._ended.wait(self._every_s):
            with contextlib.suppress(StorageError):  # asked again a second later
                if storage.exists(self._paths.stop_request):
                    self.requested = True
                    return
