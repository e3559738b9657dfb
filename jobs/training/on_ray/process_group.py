"""Joins the workers in a process group of torch, as Ray Train's TorchTrainer does, without torch in the driver.

TorchTrainer imports torch in the driver, which does not use it: that takes 1.1 s of CPU time and 185 MB. Here only
workers import Ray Train's functions for torch, and one call of each worker takes the place of three.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.util import TrainingFramework

from cluster.settings import add_to_environment, set_default

_LEAVES_WITHIN_S = 30.0  # for how long TorchTrainer waits
_ADDRESS_OF = 0x8915  # SIOCGIFADDR of Linux, netdevice(7)


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

    from jobs.training.collectives import make_patient_group

    add_to_environment({"MASTER_ADDR": address, "MASTER_PORT": str(port)})
    _set_torch_distributed_env_vars()
    if backend == "nccl":
        # DeepSpeed takes the GPU with this number. Ray numbers the ranks of a node, but lists its GPUs as 10, 8, 9.
        add_to_environment({"LOCAL_RANK": str(get_device().index)})
        # gloo, of the patient group, would take the address of the host's name, which may be a loopback one.
        if (name := interface_of(ray.util.get_node_ip_address())) is not None:
            set_default("GLOO_SOCKET_IFNAME", name)
    _setup_torch_process_group(backend, rank, size, "env://")
    make_patient_group()


def interface_of(address: str) -> str | None:
    """Return the network interface of this host that has an IPv4 address; None: there is none."""
    for _, name in socket.if_nameindex():
        request = struct.pack("256s", name.encode())
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
            if socket.inet_ntoa(fcntl.ioctl(asked, _ADDRESS_OF, request)[20:24]) == address:
                return name
    return None


def _leave(destroy: bool) -> None:
    """Called in a worker."""
    from ray.train.torch.config import _shutdown_torch

    _shutdown_torch(destroy)


def _on_own_gpu() -> Any:
    """Called in a worker. Returns the context of its function: torch's current device is the worker's GPU."""
    from ray.train.torch.config import TorchConfigContextManager

    return TorchConfigContextManager()
