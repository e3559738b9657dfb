"""Lets drivers take GPUs of this machine without a cluster that assigns them. The locks end with the process."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cluster.errors import MachinesFailed
from cluster.local.locks import try_lock

_WAIT_S, _POLL_S = 60.0, 0.2


@contextlib.contextmanager
def held_gpus(
    count: int,
    gpus: Sequence[str],
    folder: Path | None = None,
    wait_s: float = _WAIT_S,
    say: Callable[[str], None] = print,
) -> Iterator[tuple[str, ...]]:
    """Hold `count` GPUs that no other driver holds, in the given order, until the context ends.

    Waits for up to `wait_s`, because an earlier holder may take a moment to end.

    Args:
        gpus: names as in CUDA_VISIBLE_DEVICES: numbers or UUIDs.

    Raises:
        MachinesFailed: not enough GPUs became free in time.
    """
    if count == 0:
        yield ()
        return
    folder = folder or Path(tempfile.gettempdir()) / "fleetune-gpus"  # all users of the machine share it
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
        folder.chmod(0o1777)
    deadline, said = time.monotonic() + wait_s, False
    while True:
        with contextlib.ExitStack() as held:
            taken = _take(count, gpus, folder, held)
            if len(taken) == count:
                yield taken
                return
        if time.monotonic() > deadline:
            raise MachinesFailed(
                f"{count} GPUs are wanted, and other jobs hold all but {len(taken)} of the {len(gpus)} of this machine "
                f"(their locks are in {folder})"
            )
        if not said:
            said = True
            say(f"waiting for {count} GPUs: {len(taken)} of {len(gpus)} are free")
        time.sleep(_POLL_S)


def _take(count: int, gpus: Sequence[str], folder: Path, held: contextlib.ExitStack) -> tuple[str, ...]:
    """Lock up to `count` free GPUs without waiting, so that two drivers cannot wait for each other's GPUs."""
    taken: list[str] = []
    for gpu in gpus:
        if len(taken) == count:
            break
        lock = _open(folder / f"{gpu}.lock")
        if try_lock(lock):
            held.callback(os.close, lock)
            taken.append(gpu)
        else:
            os.close(lock)
    return tuple(taken)


def _open(path: Path) -> int:
    """Open a lock file. Another user may have made it; to lock it, permission to read is enough."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_RDONLY, 0o644))
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
