"""This machine as a node, for the local backend."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from cluster.capacity.inventory import Node
from cluster.errors import MachinesFailed
from cluster.local.memory import Memory, groups, memory_here
from cluster.settings import visible_gpus

_LIST_GPUS = ["nvidia-smi", "-L"]
_GPU_MEMORY = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]  # MiB, a line for each
_GPU_LINE = re.compile(r"^GPU \d+: (.+?) \(UUID", re.MULTILINE)
_UUID = re.compile(r"\(UUID: ([^)\s]+)\)")  # of GPUs, and of the MIG instances that follow each GPU
_GPU_MODEL = re.compile(r"\w+\s+((?:[A-Z]+\s+)*[A-Z0-9]*\d[A-Z0-9]*)")  # of Ray: "NVIDIA H100 80GB" is "H100"
_ASK_GPUS_S = 20.0
_NO_GPUS = frozenset({6, 9, 12})  # exit codes of nvidia-smi: no device, driver not loaded, no NVML library


def this_machine() -> Node:
    """Return the CPUs and GPUs that this process may use, for which nvidia-smi and CUDA_VISIBLE_DEVICES count.

    Raises:
        MachinesFailed: nvidia-smi is installed and fails, so the number of GPUs is not known.
    """
    visible = visible_gpus()
    listed = "" if visible == () else _asked(_LIST_GPUS)
    models = _GPU_LINE.findall(listed)
    count = len(models) if visible is None else _count(visible, len(models), _UUID.findall(listed))
    return Node(os.uname().nodename, cpus_here(), count, _model(models[0]) if count else None)


def cpus_here(root: Path = Path("/")) -> int:
    """Count the CPUs that this process may use: its affinity, and the limit of its control groups.

    Args:
        root: root of the file system; tests give another directory.
    """
    allowed = len(os.sched_getaffinity(0))
    limits = [limit for folder in groups(root, "cpu") if (limit := _cpu_limit(folder)) is not None]
    return max(1, min(allowed, *map(int, limits))) if limits else allowed


def _cpu_limit(folder: Path) -> float | None:
    """Return the CPUs that a control group may use, of version 2 or 1; None: it sets no limit."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):
        quota_us = int((folder / "cpu.cfs_quota_us").read_text())
        return quota_us / int((folder / "cpu.cfs_period_us").read_text()) if quota_us > 0 else None
    return None


def _count(visible: Sequence[str], gpus: int, uuids: Sequence[str]) -> int:
    """Count the visible GPUs as CUDA does: up to the first name of no GPU. A UUID may be shortened."""
    known = (int(name) < gpus if name.isdecimal() else any(uuid.startswith(name) for uuid in uuids) for name in visible)
    return sum(takewhile(bool, known))


@dataclass(frozen=True)
class Hardware:
    """The memory and GPUs of a machine.

    Attributes:
        gpu: model of its GPUs as Ray names it, such as H100; None: it has none.
        gpu_bytes: memory of its smallest GPU; 0: not known.
    """

    memory: Memory
    gpu: str | None = None
    gpu_bytes: int = 0


def hardware_here() -> Hardware:
    """Return the hardware of this machine, whichever GPUs are visible. With GPUs it takes a second."""
    gpu, sizes = None, list[int]()
    with contextlib.suppress(MachinesFailed):
        models = _GPU_LINE.findall(_asked(_LIST_GPUS))
        gpu = _model(models[0]) if models else None
        sizes = [int(line) for line in _asked(_GPU_MEMORY).split() if line.isdigit()] if gpu else []
    return Hardware(memory_here(), gpu, min(sizes, default=0) << 20)


def has_gpus() -> bool:
    """Whether this machine seems to have a GPU. It is fast, because it starts no program."""
    devices = Path("/dev")
    signs = [*devices.glob("nvidia[0-9]*"), *devices.glob("kfd"), *devices.glob("dxg")]  # NVIDIA, AMD, WSL
    return bool(signs) or shutil.which("nvidia-smi") is not None


def machine_name() -> str:
    """Return a name that is equal for all processes of this machine until it boots again, and differs elsewhere."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{os.uname().nodename} {boot.read_text()[:13]}" if boot.exists() else os.uname().nodename


def _asked(command: Sequence[str]) -> str:
    """Return the output of nvidia-smi; empty if it is not installed or finds no GPU. Raises MachinesFailed."""
    if not shutil.which(command[0]):
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ASK_GPUS_S, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        raise _failed(command, str(error)) from error
    if done.returncode in _NO_GPUS:
        return ""
    if done.returncode:
        raise _failed(command, f"exit code {done.returncode}: {(done.stderr or done.stdout).strip()[:500]}")
    return done.stdout


def _failed(command: Sequence[str], why: str) -> MachinesFailed:
    return MachinesFailed(
        f"the GPUs of this machine cannot be counted, because `{' '.join(command)}` fails ({why}). Repair the NVIDIA "
        "driver, or set CUDA_VISIBLE_DEVICES to an empty value to use no GPU"
    )


def _model(name: str) -> str | None:
    """Return the model as Ray does, which is the whole name without the vendor if the model is not in capitals."""
    model = _GPU_MODEL.match(name)
    found = model.group(1) if model and len(model.group(1)) > 1 else name.removeprefix("NVIDIA ").strip()
    return found.replace(" ", "-") or None
