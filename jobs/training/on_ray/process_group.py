"""Joins the workers in a process group of torch, as Ray Train's TorchTrainer does, without torch in the driver.

TorchTrainer imports torch in the driver, which does not use it: that takes 1.1 s of CPU time and 185 MB. Here only
workers import Ray Train's functions for torch, and one call of each worker takes the place of three.
"""

from __future__ import annotations

import contextlib
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.util import TrainingFramework

from cluster.settings import add_to_environment

_LEAVES_WITHIN_S = 30.0  # for how long TorchTrainer waits


class ProcessGroup(BackendConfig):  # type: ignore[misc]  # ray carries no types
    """Takes the place of TorchConfig. `backend`: gloo or nccl."""

    def __init__(self, backend: str) -> None:
        self.backend = backend

    @property
    def backend_cls(self) -> type[_Backend]:
        return _Backend

    @property
    def train_func_context(self) -> Any:
        return _on_own_gpu

    @property
    def framework(self) -> TrainingFramework:
        return TrainingFramework.TORCH

    def to_dict(self) -> dict[str, Any]:
        return {"backend": self.backend}


class _Backend(Backend):  # type: ignore[misc]
    share_cuda_visible_devices = True  # NCCL reaches the other GPUs of a node directly

    def on_start(self, worker_group: Any, backend_config: ProcessGroup) -> None:
        address, port = worker_group.execute_single(0, get_address_and_port)
        size = len(worker_group)
        ray.get(
            [
                worker_group.execute_single_async(rank, _join, backend_config.backend, rank, size, address, port)
                for rank in range(size)
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: ProcessGroup) -> None:
        left = worker_group.execute_async(_leave, len(worker_group) > 1)
        with contextlib.suppress(GetTimeoutError):  # a worker that does not leave is ended next
            ray.get(left, timeout=_LEAVES_WITHIN_S)


def _join(backend: str, rank: int, size: int, address: str, port: int) -> None:
    """Called in a worker."""
    from ray.train.torch import get_device
    from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group

    from jobs.training.collectives import be_patient

    add_to_environment({"MASTER_ADDR": address, "MASTER_PORT": str(port)})
    _set_torch_distributed_env_vars()
    if (
        backend == "nccl"
    ):  # DeepSpeed takes the GPU with this number. Ray counts ranks, and sorts GPUs as text: 10, 8, 9
        add_to_environment({"LOCAL_RANK": str(get_device().index)})
    _setup_torch_process_group(backend, rank, size, "env://")
    be_patient()


def _leave(destroy: bool) -> None:
    """Called in a worker."""
    from ray.train.torch.config import _shutdown_torch

    _shutdown_torch(destroy)


def _on_own_gpu() -> Any:
    """Called in a worker. Returns the context of its function: torch's current device is the worker's GPU."""
    from ray.train.torch.config import TorchConfigContextManager

    return TorchConfigContextManager()
