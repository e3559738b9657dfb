"""Compiles DeepSpeed's CPU optimizer, which updates offloaded weights: once on each machine for each PyTorch."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, Final

import torch

from cluster.errors import FleetuneError, LaunchRefused, OutOfMemory, RunFailed
from cluster.local.locks import remove_if_left
from cluster.settings import add_to_path
from cluster.text import many, one_line
from jobs.training.collectives import of_all_ranks
from jobs.training.model.engine import import_deepspeed
from jobs.training.worker_context import WorkerContext

_OF_A_COMPILER: Final = re.compile(
    r"^(?:/bin/sh: \d+: )?(.*(?:\berror: (?!ld returned).*|\bnot found|\bcannot find -l.*|\bout of memory.*))$",
    re.MULTILINE,
)
_MISSING: Final = re.compile(r"not found$|No such file or directory|cannot find -l")
_MEMORY: Final = re.compile(r"out of memory|Killed signal")
_LOOK_S: Final = 10.0  # between two checks of the lock
_LEFT_AFTER_S: Final = (
    300.0  # a compilation takes less; younger locks may be of a container whose processes are not visible
)


def load_cpu_optimizer(worker: WorkerContext, announce: Callable[[], None]) -> None:
    """Compile the optimizer on machines that do not have it. Every rank must call it, and none may have begun before.

    Args:
        announce: called if any machine compiles it, because that takes a minute or two.

    Raises:
        LaunchRefused: on every rank, if a machine lacks what the compilation needs.
        OutOfMemory: on every rank, if the compiler ran out of memory.
        RunFailed: on every rank, if a machine cannot compile it for another reason.
    """
    if shutil.which("ninja") is None:  # the virtual environment is not activated
        import ninja

        add_to_path(ninja.BIN_DIR)
    with contextlib.suppress(OSError):  # `_why_not_loaded` fails with it too, and reports it
        remove_left_lock(worker.device)
    found = of_all_ranks((worker.node, must_compile(worker.device)))
    if any(compiles for _, compiles in found):
        announce()
    is_first = [node for node, _ in found].index(worker.node) == worker.rank  # of its machine
    failed = [why for why in of_all_ranks(_why_not_loaded(worker.device) if is_first else None) if why is not None]
    if failed:
        raise failure_of(failed)


def failure_of(failed: list[tuple[str, str]]) -> FleetuneError:
    """Make one error from the failures of machines, each a host and the text of its error.

    It shows the first failure with a line of the compiler, because other machines may only have waited for that one.
    """
    host, text = next((one for one in failed if _OF_A_COMPILER.search(one[1])), failed[0])
    others = f", and on {many(len(failed) - 1, 'other machine')}" if failed[1:] else ""
    cause = cause_in(text)
    said = (
        "train.zero.offload_optimizer: cpu needs DeepSpeed's CPU optimizer, which cannot be compiled on "
        f"{host}{others}: {cause}."
    )
    if _MEMORY.search(text):
        return OutOfMemory(f"{said} Start again when more of that host's memory is free, or train without this offload")
    if _MISSING.search(cause):
        return LaunchRefused(
            f"{said} Install a C++ compiler and Python's headers on each machine (on Debian the packages g++ and "
            "python3-dev), or train without this offload"
        )
    return RunFailed(f"{said} The log of the first rank there has the whole error")


def cause_in(error: str) -> str:
    """Return the compiler's line in the text of an error; the first line if there is none."""
    found = _OF_A_COMPILER.search(error)
    return found[1].strip() if found else one_line(error)


def must_compile(device: torch.device) -> bool:
    """Whether DeepSpeed would compile the optimizer on this machine. True also if that cannot be checked."""
    try:
        folder = _folder(device)
        return folder is not None and not _is_up_to_date(folder)
    except OSError:
        return True


def remove_left_lock(device: torch.device, older_than_s: float = 0.0) -> None:
    """Remove the lock of a process that was killed while it compiled the optimizer.

    DeepSpeed would wait for it forever. With `older_than_s` at 0, no rank of the gang may have begun to compile.
    """
    if (folder := _folder(device)) is not None:
        lock = folder / "lock"
        with contextlib.suppress(FileNotFoundError):
            if time.time() - lock.stat().st_mtime >= older_than_s:
                remove_if_left(str(lock))


def _why_not_loaded(device: torch.device) -> tuple[str, str] | None:
    """Compile the optimizer, if needed, and load it. Returns the host and the text of the error if that fails."""
    from torch.utils.cpp_extension import JIT_EXTENSION_VERSIONER

    builder = _builder()
    try:
        with _looking_for_left_locks(device):
            _remove_stale(device)
            try:
                builder.load()
            except ImportError:  # another process was stopped while it compiled; to PyTorch, the optimizer is compiled
                JIT_EXTENSION_VERSIONER.entries.pop(builder.NAME, None)
                builder.load()
        return None
    except Exception as error:
        traceback.print_exc()
        return os.uname().nodename, str(error)


@contextlib.contextmanager
def _looking_for_left_locks(device: torch.device) -> Iterator[None]:
    """Remove the lock of another gang whose compilation is killed during the block, which may wait for it."""
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(_LOOK_S):
            with contextlib.suppress(OSError):
                remove_left_lock(device, _LEFT_AFTER_S)

    threading.Thread(target=look, name="left-locks", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _remove_stale(device: torch.device) -> None:
    """Remove objects that must be compiled anew: ninja does not notice that PyTorch's headers changed."""
    folder = _folder(device)
    if folder is not None and must_compile(device) and not (folder / "lock").exists():
        for compiled in folder.glob("*.o"):
            compiled.unlink(missing_ok=True)


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
    """Whether the optimizer in `folder` was compiled for the installed PyTorch, from the present sources."""
    from torch.utils.cpp_extension import include_paths

    build, built = folder / "build.ninja", folder / f"{folder.name}.so"
    rules = build.read_text() if build.exists() else ""
    if f"-isystem {shlex.quote(include_paths()[0])} " not in rules:
        return False
    if not built.exists() or built.stat().st_mtime < os.stat(torch.__file__).st_mtime:
        return False
    dry_run = subprocess.run(["ninja", "-n"], cwd=folder, capture_output=True, text=True, check=False)
    return "no work to do" in dry_run.stdout
