"""Finds in a rank's log how its process ended. Ray does not know whether a worker was killed or crashed.

Ray's workers write the signal that ends them, and their stacks, to their log. SIGKILL leaves no time for that.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from cluster.errors import StorageError
from jobs.run.paths import JobPaths, rank_name
from jobs.storage import files as storage

if TYPE_CHECKING:
    from jobs.training.on_ray.crash import Crash

CRASHES: Final = ("SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE", "SIGABRT", "SIGSYS", "SIGTRAP")
_READ_BYTES = 256 << 10  # of the log's end; the stacks of a process with many threads are long
_SIGNAL = re.compile(r"\bE (?P<pid>\d+) \d+\] \S+ \*\*\* (?P<name>SIG\w+) received at time=")
_FATAL = "Fatal Python error: "
_FRAME = re.compile(r'most recent call first\):\n  File "(?P<file>.*)", line (?P<line>\d+) in (?P<name>.*)')


def with_signal(crash: Crash, paths: JobPaths) -> Crash:
    """Add to a crash the signal that its log names. A log at a URL lacks the last lines of a process that died."""
    if crash.rank is None or crash.pid is None or not storage.is_local(paths.root):
        return crash
    try:
        what = how_it_died(_tail(paths.log(rank_name(crash.rank))), crash.pid)
    except StorageError:
        return crash
    return crash if what is None else replace(crash, what=what)


def how_it_died(log: str, pid: int) -> str | None:
    """Describe the end of a process as a verb phrase; None if it has written no signal. `log`: the end of its log."""
    found = [match for match in _SIGNAL.finditer(log) if int(match["pid"]) == pid]
    if not found:
        return None
    name, rest = found[0]["name"], log[found[0].end() :]
    if name not in CRASHES:
        return f"was ended by {name}"
    frame = _FRAME.search(rest.partition(_FATAL)[2])
    where = f" in {frame['name']} ({frame['file']}:{frame['line']})" if frame else ""
    return f"crashed in native code{where} ({name}; its log has the stacks)"


def _tail(log: str) -> str:
    with storage.open_read(log) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - _READ_BYTES, 0))
        return file.read().decode(errors="replace")
