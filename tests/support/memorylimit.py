"""Memory taken away from one process, so that the kernel kills it as it does on a machine that has run out.

A driver learns from the kernel's count of such kills whether a worker was killed for memory. The count is that of the
whole machine, so only one test at a time kills workers.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cluster.local.memory import memory_here
from jobs.training.pulse import local_file
from jobs.training.vitals import EVERY_S
from tests.support.processes import process_lives, wait_for

LEAST_BYTES = 64 << 10
_ENDS_WITHIN_S, _COUNTS_WITHIN_S = 60.0, 60.0 + EVERY_S
_KILLS = Path(tempfile.gettempdir(), "fleetune-tests-kill")
_ROOTS = {  # where groups are made, and what the limit is called there
    Path("/sys/fs/cgroup/memory"): "memory.limit_in_bytes",
    Path("/sys/fs/cgroup"): "memory.max",
}


def kill_for_memory(pid: int, limited: Callable[[], None] = lambda: None) -> bool:
    """Whether the kernel did it; where a test may make no control groups, a SIGKILL stands in for it.

    `limited`: called once the process may take no more memory. One that waits is to go on then: it takes none before.
    """
    with _alone(), contextlib.suppress(OSError), _group() as group:
        (group / "cgroup.procs").write_text(str(pid))
        limited()
        deadline = time.monotonic() + _ENDS_WITHIN_S
        while process_lives(pid) and time.monotonic() < deadline:
            time.sleep(0.05)
    killed = not process_lives(pid)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return killed


def kill_by_signal(pid: int, wait_until_noticed: Callable[[], object]) -> None:
    """Kill a worker whose driver is to see that it was not killed for memory.

    The worker has counted the kills of earlier tests by then, which would be taken for its own.
    """
    with _alone():
        wait_for(
            lambda: _counted_kills(pid) == memory_here().kills[-1], "its record counts all kills", _COUNTS_WITHIN_S
        )
        os.kill(pid, signal.SIGKILL)
        wait_until_noticed()


def _counted_kills(pid: int) -> int | None:
    """How often the kernel has killed for memory by the newest record of a worker; None: it has none.

    Its /tmp may be that of another host.
    """
    pattern = local_file("vitals", "*", "*")
    for file in Path(f"/proc/{pid}/root", *pattern.parts[1:-1]).glob(pattern.name):
        with contextlib.suppress(OSError):
            record = json.loads(file.read_bytes())
            if record["pid"] == pid:
                return int(record["kills"][-1])
    return None


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    with open(_KILLS, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _group() -> Iterator[Path]:
    """A control group with next to no memory. Raises OSError."""
    root, name = next((root, name) for root, name in _ROOTS.items() if (root / "cgroup.procs").exists())
    group = root / f"fleetune-test-{secrets.token_hex(4)}"
    group.mkdir()
    try:
        (group / name).write_text(str(LEAST_BYTES))
        yield group
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                (root / "cgroup.procs").write_text(pid)
        wait_for(lambda: _is_removed(group), "the kernel has done with the group", _ENDS_WITHIN_S)


def _is_removed(group: Path) -> bool:
    """It stays for as long as a process that was killed there is taken apart."""
    with contextlib.suppress(OSError):
        group.rmdir()
    return not group.exists()
