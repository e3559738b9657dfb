"""Runs one program of the local backend, ends what it leaves behind, and writes down its exit code.

Started as a script of its own (`python -I -S local_supervisor.py FOLDER`, the lock being inherited), so that it is up
in 25 ms and needs nothing but the standard library. Its folder is the submission's; whoever wants something of it
writes a file there and sends SIGTERM.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

LAUNCH = "launch.json"  # written by the starter: command, working_dir, token
LOCK = "lock"  # locked as long as the starter or the supervisor lives
SUPERVISOR = "supervisor.json"  # from here on it takes signals
PROGRAM = "program.json"  # from here on the program runs
STOP = "stop"  # SOFT or HARD, written by whoever wants it to end
END = "end.json"  # nothing of it runs any more
OUTPUT = "output"
SOFT, HARD = "soft", "hard"
TOKEN_VARIABLE = "FLEETUNE_PROGRAM"  # marks all processes of one submission, whoever their parent is

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_NOT_EXECUTABLE, _NOT_FOUND = 126, 127  # what a shell would say
_SIGNALS = {signal.SIGTERM, signal.SIGCHLD, signal.SIGINT, signal.SIGHUP}
_KILL_AGAIN_S = 0.02


def write_whole(path: Path, text: str) -> None:
    """The file appears whole or not at all, and is on disk afterwards."""
    beside = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    with open(beside, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def identity(pid: int) -> dict[str, Any] | None:
    """What tells a process from a later one with the same number, also across a reboot; None: there is none."""
    fields = _stat(pid)
    if fields is None or fields[0] in "ZX":
        return None
    with open("/proc/sys/kernel/random/boot_id") as file:
        return {"pid": pid, "started": int(fields[19]), "boot": file.read().strip()}


def marked(token: str) -> list[int]:
    """Processes of this user with the token in their environment."""
    wanted = f"{TOKEN_VARIABLE}={token}".encode()
    found = []
    for pid in _all_pids():
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                if wanted in file.read().split(b"\0"):
                    found.append(pid)
        except OSError:  # gone meanwhile, or of another user
            continue
    return found


def kill(pids: list[int]) -> list[int]:
    """End these at once; those that are still there, as far as they are ours to end."""
    ours = []
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
            ours.append(pid)
        except (ProcessLookupError, PermissionError):
            continue
    return ours


def descendants(pid: int) -> list[int]:
    """All processes that come from this one. Those of a subreaper: whatever session they have gone to."""
    children = defaultdict(list)
    for other in _all_pids():
        fields = _stat(other)
        if fields is not None:
            children[int(fields[1])].append(other)
    found, open_ = list[int](), [pid]
    while open_:
        below = children[open_.pop()]
        found += below
        open_ += below
    return found


def _all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the state on; the name before it may hold blanks and brackets."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].decode().split()
    except (FileNotFoundError, ProcessLookupError):
        return None


class Supervisor:
    """One program from its start to its end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._launch: dict[str, Any] = json.loads((folder / LAUNCH).read_text())
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._program: subprocess.Popen[bytes] | None = None
        self._pid = 0  # of the program
        self._exit_code: int | None = None
        self._gone = False
        self._asked = False

    def run(self) -> None:
        self._libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans become children of this process
        # A starter may ignore it and hands that on; then children would end without a signal and without an exit code.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        write_whole(self._folder / SUPERVISOR, json.dumps(identity(os.getpid())))
        # Looked at after that file is there: whoever asks before sees no file and sends no signal.
        if self._stop():
            self._end(None, "stopped before it was started")
            return
        try:
            self._start()
        except OSError as error:
            code = _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_EXECUTABLE
            self._end(code, f"{self._launch['command'][0]} cannot be started: {error}")
            return
        write_whole(self._folder / PROGRAM, json.dumps({"pid": self._pid}))
        self._wait()
        self._kill_all()
        self._end(self._exit_code)

    def _start(self) -> None:
        parent = os.getpid()

        def in_the_child() -> None:
            self._libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # no program without its supervisor
            if os.getppid() != parent:
                os._exit(1)
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())

        with open(self._folder / OUTPUT, "ab") as output:
            # Kept, because a Popen that is let go of waits for its process, and swallows its exit code.
            self._program = subprocess.Popen(
                self._launch["command"],
                cwd=self._launch["working_dir"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=in_the_child,
            )
            self._pid = self._program.pid

    def _wait(self) -> None:
        while not self._gone:
            if signal.sigwait(_SIGNALS) == signal.SIGCHLD:
                self._reap()
            elif self._stop() == HARD:
                self._kill_all()
            elif not self._asked:  # once: programs take a second SIGTERM for impatience
                self._asked = True
                with contextlib.suppress(PermissionError):
                    os.kill(self._pid, signal.SIGTERM)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:  # none is left
                self._gone = True
                return
            if pid == 0:
                return
            if pid == self._pid:
                self._exit_code, self._gone = os.waitstatus_to_exitcode(status), True

    def _kill_all(self) -> None:
        """Returns when nothing is left. One that the kernel cannot end keeps the submission running, as it does."""
        while kill(descendants(os.getpid())):
            signal.sigtimedwait({signal.SIGCHLD}, _KILL_AGAIN_S)
            self._reap()

    def _stop(self) -> str:
        try:
            return (self._folder / STOP).read_text()
        except FileNotFoundError:
            return ""

    def _end(self, exit_code: int | None, message: str = "") -> None:
        stopped = bool(self._stop())
        end = {"exit_code": exit_code, "stopped": stopped, "lost": False, "message": message}
        write_whole(self._folder / END, json.dumps(end))


if __name__ == "__main__":
    if os.fork():
        os._exit(0)  # the starter need not stay to reap it
    Supervisor(Path(sys.argv[1])).run()
