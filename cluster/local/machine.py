"""This machine as a node, for the local backend."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cluster.capacity.inventory import Node
from cluster.local.memory import Memory, memory_here

_GPU_MEMORY = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]  # MiB, a line for each
_GPU_LINE = re.compile(r"GPU \d+: (.+?) \(UUID")
_GPU_MODEL = re.compile(r"\w+\s+((?:[A-Z]+\s+)*[A-Z0-9]*\d[A-Z0-9]*)")  # as Ray reads it: "NVIDIA H100 80GB" is "H100"
_ASK_GPUS_S = 20.0


def this_machine() -> Node:
    """Return the CPUs and GPUs that this process may use. GPUs are read from nvidia-smi, if it is installed."""
    gpus = _GPU_LINE.findall(_asked(["nvidia-smi", "-L"]))
    return Node(os.uname().nodename, len(os.sched_getaffinity(0)), len(gpus), _model(gpus[0]) if gpus else None)


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
    """Return the hardware of this machine. With GPUs it takes a second."""
    gpu = this_machine().accelerator_type
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


def _asked(command: list[str]) -> str:
    """Return the output of nvidia-smi; empty if it is not installed or fails."""
    if shutil.which(command[0]):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(command, capture_output=True, text=True, timeout=_ASK_GPUS_S, check=True)
            return done.stdout
    return ""


def _model(name: str) -> str | None:
    model = _GPU_MODEL.match(name)
    return model.group(1).replace(" ", "-") if model else None
