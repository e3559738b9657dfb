"""Stands around one program: whatever the program has started ends with it, and all of it ends with whoever asked.

`python -I -S guard.py STATUS PROGRAM ARGUMENT...`: nothing but the standard library, so that it is up at once. STATUS
is the number of a descriptor that is told how the start went: nothing, or why there is no program. SIGTERM is passed on
to the program and its group; SIGUSR1 ends everything. The exit code, or the signal, is the program's own.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys

TERM, KILL = signal.SIGTERM, signal.SIGUSR1
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_HEARD = {TERM, KILL, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}
_NOT_STARTED = 127
_KILL_AGAIN_S = 0.02


def main(status: int, command: list[str]) -> None:
    asked_by = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, _HEARD)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans of the program become children of this process
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGHUP, 0, 0, 0)
    if os.getppid() != asked_by:
        os._exit(_NOT_STARTED)
    try:
        program = subprocess.Popen(command, start_new_session=True, preexec_fn=_unblock)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        os.write(status, (getattr(error, "strerror", None) or str(error)).encode()[:1000])
        os._exit(_NOT_STARTED)
    os.close(status)
    _end_as(_wait(program.pid))


def _unblock() -> None:
    for number in _HEARD:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEARD)


def _wait(program: int) -> int:
    """Its status, as waitpid gives it; when it is there, nothing that the program has started is left."""
    while True:
        heard = signal.sigwait(_HEARD)
        if heard == signal.SIGCHLD:
            ended = _reap()
            if program in ended:
                _kill_the_rest()
                return ended[program]
        elif heard == TERM:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(program, signal.SIGTERM)
        else:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(program, signal.SIGKILL)


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
        signal.sigtimedwait({signal.SIGCHLD}, _KILL_AGAIN_S)
        _reap()


def _children() -> list[int]:
    """Whoever has lost its parent is one of these, so there is no need to look deeper."""
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return [int(pid) for pid in file.read().split()]


def _end_as(status: int) -> None:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
