"""Each worker writes its memory use to a local file, which can be read after the process has died.

Neither Ray nor the kernel tells a driver why a process was killed. Each process records how much memory it holds and
how many processes the kernel has killed for memory. After its death, the driver asks the node for both again.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from dataclasses import asdict, dataclass

from cluster.local.memory import Memory, killed_since, memory_here, resident_bytes
from jobs.training.pulse import PULSE, STACKS, local_file, local_files

# Seconds between two records. If the kernel kills another process in this time, this one may seem killed for memory.
EVERY_S = 5.0
_VITALS = "vitals"


@dataclass(frozen=True)
class Vital:
    """The newest record of one process. For `kills`, see `Memory`."""

    rank: int
    pid: int
    resident_bytes: int
    kills: tuple[int, ...]


class Vitals:
    """Maintains the file of this process inside of a `with` block. Errors of the disk are ignored."""

    def __init__(self, key: str, rank: int) -> None:
        """`key` identifies the driver and cannot be guessed."""
        self._file, self._rank = local_file(_VITALS, key, rank), rank
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vitals", daemon=True)

    def __enter__(self) -> Vitals:
        self._write()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            self._file.unlink()

    def _run(self) -> None:
        while not self._closed.wait(EVERY_S):
            self._write()

    def _write(self) -> None:
        vital = Vital(self._rank, os.getpid(), resident_bytes(), memory_here().kills)
        beside = self._file.with_suffix(".new")
        with contextlib.suppress(OSError):
            handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(handle, "w") as file:
                json.dump(asdict(vital), file)
            os.replace(beside, self._file)


@dataclass(frozen=True)
class DeadRanks:
    """The records of a driver's processes that have died on this node, and the node's memory."""

    vitals: tuple[Vital, ...]
    memory: Memory

    def of(self, rank: int | None, pid: int | None) -> Vital | None:
        return next((vital for vital in self.vitals if rank == vital.rank or pid == vital.pid), None)

    def killed_for_memory(self, vital: Vital) -> bool:
        return killed_since(vital.kills, self.memory.kills)


def dead_ranks(key: str) -> DeadRanks:
    """Read the records that processes with this key have left on this machine, and remove all of their files."""
    found = []
    for file in local_files(_VITALS, key):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            said = json.loads(file.read_text())
            found.append(Vital(said["rank"], said["pid"], said["resident_bytes"], tuple(said["kills"])))
            file.unlink()
    for file in (*local_files(PULSE, key), *local_files(STACKS, key)):
        file.unlink(missing_ok=True)
    return DeadRanks(tuple(found), memory_here())
