"""Classifies exceptions of a worker, which decides whether the same run may succeed elsewhere. Pure functions.

CUDA raises the same exception for a broken GPU and for a bug of the program. The names of its errors differ: an
assertion, a wrong address or a missing kernel is a bug of the program. Everything else is a fault of the machine.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from enum import StrEnum
from typing import Final

from cluster.errors import Diverged, FleetuneError, InputError, OutOfMemory, StorageError, StorageOutage
from jobs.remedies.out_of_memory import advice
from jobs.run.record import failure_of_storage
from jobs.training.worker_input import Job


class Fault(StrEnum):
    INPUT = "input"  # the spec, the data or the model is wrong
    DIVERGENCE = "divergence"  # the training diverged; a resume would compute the same
    PROGRAM = "program"  # any other error that the same input would raise again
    MEMORY = "memory"  # the memory of the GPU or of the host ran out
    MACHINE = "machine"  # the GPU, its driver or its links failed; the run may succeed on another node
    PEER = "peer"  # another rank is lost
    STORAGE = "storage"  # the storage does not answer now; no node is to blame


_SIGNS_OF_MEMORY = re.compile(
    r"out of memory|cudaErrorMemoryAllocation|STATUS_ALLOC_FAILED|can't allocate memory|Failed to CUDA malloc"
    r"|not enough memory: you tried to allocate",
    re.IGNORECASE,
)
_OF_CUDA = re.compile(r"CUDA error|CUDA driver error|cuDNN error|CUBLAS_STATUS_|CUSOLVER_STATUS_|Cuda failure")
_SIGNS_OF_A_BUG = re.compile(
    r"device-side assert|illegal memory access|illegal address|misaligned address|illegal instruction|invalid argument"
    r"|invalid configuration|invalid device function|no kernel image|invalid resource handle|invalid device ordinal"
    r"|too many resources requested|operation not permitted when stream is capturing"
    r"|STATUS_NOT_SUPPORTED|STATUS_INVALID_VALUE|STATUS_BAD_PARAM|STATUS_ARCH_MISMATCH"
    r"|cudaError(Assert|IllegalAddress|IllegalInstruction|MisalignedAddress|InvalidValue|NoKernelImageForDevice)",
    re.IGNORECASE,
)
# NCCL's messages about a fault of this rank's machine. Its other messages are about a peer or the network.
_SIGNS_OF_THE_MACHINE = re.compile(r"unhandled cuda error|unhandled system error|Cuda failure", re.IGNORECASE)
_SIGNS_OF_A_LOST_PEER = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Timed out waiting",
    "Application timeout caused pair closure",
    # The kernel's messages about a host that has lost its power or its network.
    "Connection timed out",
    "Connection refused",
    "No route to host",
    "Network is unreachable",
)
IN_UPDATE: Final = "Raised in the update of the weights."  # note of an exception
_PLACE = re.compile(r"\[[^\]\s]+\.(?:cc|cpp|cu|h):\d+\] ?")  # a line of gloo's source code, which helps no user
_GPU_MEMORY = re.compile(
    r"Tried to allocate (?P<asked>[\d.]+ \w+)\."
    r".*?total capacity of (?P<total>[\d.]+ \w+) of which (?P<free>[\d.]+ \w+)",
    re.DOTALL,
)


def fault_of(error: BaseException, taken_apart: bool = False) -> Fault:
    """Classify an exception of a worker.

    Args:
        taken_apart: the process group was closed while the rank was training: another rank is lost, and Ray Train has
            ended the gang. The kind of the error then depends on the call that the rank was in.
    """
    if isinstance(error, StorageOutage):
        return Fault.STORAGE
    if isinstance(error, InputError):
        return Fault.INPUT
    if isinstance(error, OutOfMemory):
        return Fault.MEMORY
    if isinstance(error, Diverged):
        return Fault.DIVERGENCE
    if isinstance(error, FleetuneError):
        return Fault.PROGRAM
    import torch
    import torch.distributed as dist

    text = str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return Fault.MEMORY
    if isinstance(error, ConnectionError | dist.DistNetworkError):
        return Fault.PEER
    if isinstance(error, RuntimeError) and _SIGNS_OF_MEMORY.search(text):
        return Fault.MEMORY
    if isinstance(error, dist.DistBackendError):
        return Fault.MACHINE if _SIGNS_OF_THE_MACHINE.search(text) else Fault.PEER
    if isinstance(error, torch.AcceleratorError) or (isinstance(error, RuntimeError) and _OF_CUDA.search(text)):
        return Fault.PROGRAM if _SIGNS_OF_A_BUG.search(text) else Fault.MACHINE
    if isinstance(error, RuntimeError | ValueError) and any(sign in text for sign in _SIGNS_OF_A_LOST_PEER):
        return Fault.PEER
    return Fault.PEER if taken_apart else Fault.PROGRAM


@contextlib.contextmanager
def storage_to_blame() -> Iterator[None]:
    """Raise RunFailed for a StorageError of the block, which runs after training has begun.

    The input is no mistake then, and the run can be resumed. A StorageOutage stays one.
    """
    try:
        yield
    except StorageOutage:
        raise
    except StorageError as error:
        raise failure_of_storage(error) from error


def reason_of(error: BaseException, fault: Fault, rank: int, host: str, job: Job) -> str:
    """Describe a failure in one line for people: what failed where, and what to change."""
    if isinstance(error, FleetuneError):
        return str(error)
    if fault is Fault.MEMORY:
        return f"{shortage_of(error, rank, host)}. {advice(job.spec, checkpointing=job.supports_checkpointing)}"
    if fault is Fault.MACHINE:
        return (
            f"the hardware of rank {rank} on {host} failed: {first_line(error)}. Check that node with nvidia-smi and "
            "dmesg, and resume the run on another one"
        )
    if is_of_a_gpu(error):
        return (
            f"rank {rank} on {host} failed: {first_line(error)}. The same program and data would fail again. An "
            "assertion or a wrong address is mostly a token or a label that the model does not have. Run it once with "
            "CUDA_LAUNCH_BLOCKING=1 to see the place"
        )
    return f"rank {rank} on {host} failed: {type(error).__name__}: {error}"


def shortage_of(error: BaseException, rank: int, host: str) -> str:
    """Describe an exception of kind `MEMORY` without advice."""
    return f"rank {rank} on {host} ran out of {_which_memory(error)}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; further lines are mostly advice of a library."""
    lines = [line.strip() for line in _PLACE.sub("", str(error)).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300].rstrip('.')}" if lines else type(error).__name__


def is_of_host_memory(error: BaseException) -> bool:
    """Whether an exception of kind `MEMORY` is about the host's memory and not a GPU's."""
    import torch

    return not isinstance(error, torch.OutOfMemoryError) and not is_of_a_gpu(error)


def is_in_update(error: BaseException) -> bool:
    """Whether the weights were being updated when the exception was raised."""
    return IN_UPDATE in getattr(error, "__notes__", ())


def is_of_a_gpu(error: BaseException) -> bool:
    """Whether CUDA or one of its libraries raised the exception."""
    return bool(_OF_CUDA.search(str(error)))


def _which_memory(error: BaseException) -> str:
    """Describe the memory: `GPU memory: 2.0 GiB more were asked for, and 1.5 GiB of 79.1 GiB were free`."""
    if is_of_host_memory(error):
        return f"host memory ({first_line(error)})"
    found = _GPU_MEMORY.search(str(error))
    if found is None:
        return "GPU memory"
    return f"GPU memory: {found['asked']} more were asked for, and {found['free']} of {found['total']} were free"
