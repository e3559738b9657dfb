"""This machine as a node, for the local backend."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from pathlib import Path

from cluster.capacity.inventory import Node

_GPU_LINE = re.compile(r"GPU \d+: (.+?) \(UUID")
_GPU_MODEL = re.compile(r"\w+\s+((?:[A-Z]+\s+)*[A-Z0-9]*\d[A-Z0-9]*)")  # as Ray reads it: "NVIDIA H100 80GB" is "H100"
_ASK_GPUS_S = 20.0


def this_machine() -> Node:
    """Return the CPUs and GPUs that this process may use. GPUs are read from nvidia-smi, if it is installed."""
    gpus = _gpu_names()
    return Node(os.uname().nodename, len(os.sched_getaffinity(0)), len(gpus), _model(gpus[0]) if gpus else None)


def has_gpus() -> bool:
    """Whether this machine seems to have a GPU. Fast: nothing is counted."""
    devices = Path("/dev")
    signs = [*devices.glob("nvidia[0-9]*"), *devices.glob("kfd"), *devices.glob("dxg")]  # NVIDIA, AMD, WSL
    return bool(signs) or shutil.which("nvidia-smi") is not None


def machine_name() -> str:
    """Return a name that is equal for all processes of this machine until it boots again, and differs elsewhere."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{os.uname().nodename} {boot.read_text()[:13]}" if boot.exists() else os.uname().nodename


def _gpu_names() -> list[str]:
    if shutil.which("nvidia-smi"):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            command = ["nvidia-smi", "-L"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=_ASK_GPUS_S, check=True)
            return _GPU_LINE.findall(done.stdout)
    return []


def _model(name: str) -> str | None:
    model = _GPU_MODEL.match(name)
    return model.group(1).replace(" ", "-") if model else None
