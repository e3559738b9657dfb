"""Compiles DeepSpeed's CPU optimizer, which updates offloaded weights: once on each machine for each PyTorch."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from typing import Any, Final

import torch

from cluster.errors import LaunchRefused
from cluster.local.locks import remove_if_left
from cluster.settings import add_to_path
from cluster.text import many, one_line
from jobs.training.collectives import of_all_ranks
from jobs.training.model.engine import import_deepspeed
from jobs.training.worker_context import WorkerContext

_OF_A_COMPILER: Final = re.compile(r"^(?:/bin/sh: \d+: )?(.*(?:\berror: .*|\bnot found))$", re.MULTILINE)


def compile_cpu_optimizer(worker: WorkerContext, announce: Callable[[], None]) -> None:
    """Compile the optimizer on machines that do not have it. Every rank must call it, and none may have begun before.

    Args:
        announce: called if any machine compiles it, because that takes a minute or two.

    Raises:
        LaunchRefused: on every rank, if a machine cannot compile it.
    """
    if shutil.which("ninja") is None:  # started by the path of a virtual environment's program
        add_to_path(os.path.dirname(sys.executable))
    remove_left_lock(worker.device)
    found = of_all_ranks((worker.node, must_compile(worker.device)))
    if not any(compiles for _, compiles in found):
        return
    announce()
    is_first = [node for node, _ in found].index(worker.node) == worker.rank  # of its machine
    if failed := [reason for reason in of_all_ranks(_why_not_compiled() if is_first else "") if reason]:
        others = f", and on {many(len(failed) - 1, 'other machine')}" if failed[1:] else ""
        raise LaunchRefused(
            "train.zero.offload_optimizer: cpu needs DeepSpeed's CPU optimizer, which cannot be compiled on "
            f"{failed[0]}{others}. Install a C++ compiler and Python's headers on each machine (on Debian the packages "
            "g++ and python3-dev), or train without this offload"
        )


def must_compile(device: torch.device) -> bool:
    """Whether DeepSpeed would compile the optimizer here."""
    folder = _folder(device)
    return folder is not None and not _is_up_to_date(folder)


def remove_left_lock(device: torch.device) -> None:
    """Remove the lock of a process that was killed while it compiled the optimizer.

    DeepSpeed would wait for it forever. No rank of the gang may have begun to compile.
    """
    if (folder := _folder(device)) is not None:
        remove_if_left(str(folder / "lock"))


def cause_in(error: str) -> str:
    """Return the line of an error of a compilation that names the cause: the compiler's, or the first line."""
    found = _OF_A_COMPILER.search(error)
    return found[1].strip() if found else one_line(error)


def _why_not_compiled() -> str:
    """Compile the optimizer. Returns the host and the cause if it fails."""
    try:
        _builder().load()
        return ""
    except Exception as error:
        traceback.print_exc()
        return f"{os.uname().nodename}: {cause_in(str(error))}"


def _folder(device: torch.device) -> pathlib.Path | None:
    """Return the directory in which DeepSpeed compiles the optimizer; None: it was installed with DeepSpeed."""
    import_deepspeed(device)
    from deepspeed.git_version_info import installed_ops
    from torch.utils.cpp_extension import _get_build_directory

    name = _builder().NAME
    return None if installed_ops.get(name) else pathlib.Path(_get_build_directory(name, False))


def _builder() -> Any:
    from deepspeed.ops.op_builder import CPUAdamBuilder

    return CPUAdamBuilder()


def _is_up_to_date(folder: pathlib.Path) -> bool:
    """Whether `folder` holds an extension for the installed PyTorch, and no source or header changed since."""
    from torch.utils.cpp_extension import include_paths

    build = folder / "build.ninja"
    if not build.exists() or include_paths()[0] not in build.read_text():
        return False
    dry_run = subprocess.run(["ninja", "-n"], cwd=folder, capture_output=True, text=True, check=False)
    return "no work to do" in dry_run.stdout
