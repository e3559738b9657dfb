"""A guard around one program: all processes that the program starts end with it, and with the guard's caller.

    python -I -S guard.py STATUS CONTROL PROGRAM ARGUMENT...

It uses the standard library only, so that it starts at once. STATUS and CONTROL are file descriptors. The guard writes
b"+" to STATUS when the program runs, or b"-" and the reason why it cannot; at the end it writes the exit code, -N for
signal N. CONTROL takes orders of one byte, TERM and KILL. When CONTROL is closed, its holder is gone, and the guard
kills the program. The guard detaches from its parent, because Ray kills the children of a worker that ends and would
leave the children of the guard.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time

TERM, KILL = b"T", b"K"
STARTED, NOT_STARTED = b"+", b"-"
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_KILL_AGAIN_S = 0.02


def main(status: int, control: int, command: list[str]) -> None:
    if os.fork():
        os._exit(0)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans of the program become children of this process
    woken = _woken_by_children()

    def in_the_program() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # in case the guard itself is killed
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    try:
        program = subprocess.Popen(command, start_new_session=True, preexec_fn=in_the_program)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        os.write(status, NOT_STARTED + (getattr(error, "strerror", None) or str(error)).encode()[:1000])
        os._exit(1)
    os.write(status, STARTED)
    ended = _wait(program.pid, control, woken)
    _kill_the_rest()
    with contextlib.suppress(BrokenPipeError):
        os.write(status, str(os.waitstatus_to_exitcode(ended)).encode())
    os._exit(0)


def _woken_by_children() -> int:
    """Return a file descriptor that becomes readable when a child has ended."""
    reads, writes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    return reads


def _wait(program: int, control: int, woken: int) -> int:
    """Wait for the end of the program, and return its status as waitpid gives it."""
    listening = [control, woken]
    while True:
        ready, _, _ = select.select(listening, [], [])
        if woken in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(woken, 4096)
            ended = _reap()
            if program in ended:
                return ended[program]
        if control in ready:
            order = os.read(control, 1)
            if not order:
                listening = [woken]
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(program, signal.SIGTERM if order == TERM else signal.SIGKILL)


def _reap() -> dict[int, int]:
    ended = {}
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            ended[found[0]] = found[1]
    return ended


def _kill_the_rest() -> None:
    while children := _children():
        for pid in children:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_KILL_AGAIN_S)
        _reap()


def _children() -> list[int]:
    """Return the direct children. Orphans become children of the guard, so this is enough."""
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return [int(pid) for pid in file.read().split()]


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
