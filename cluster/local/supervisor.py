"""Runs one program of the local backend, ends the processes that it leaves behind, and records its exit code.

The starter runs it as a script (`python -I -S supervisor.py FOLDER`), and it inherits the starter's lock. It uses only
the standard library, so it is up in 25 ms. FOLDER is the submission's folder. To stop the program, callers write SOFT
or HARD to the file STOP there and send SIGTERM to the supervisor. docs/glossary.md explains the terms ("Machines").
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

LAUNCH = "launch.json"  # written by the starter: command, working_dir, token, most_output_bytes
LOCK = "lock"  # locked as long as the starter or the supervisor lives
SUPERVISOR = "supervisor.json"  # written when the supervisor accepts signals
PROGRAM = "program.json"  # written when the program runs
STOP = "stop"  # SOFT or HARD, written by a caller that wants the program to end
END = "end.json"  # written when no process of the submission runs any more
OUTPUT = "output"
SOFT, HARD = "soft", "hard"
TOKEN_VARIABLE = "FLEETUNE_PROGRAM"  # holds the program token, which all processes of one submission inherit

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_NOT_EXECUTABLE, _NOT_FOUND = 126, 127  # the exit codes of a shell
_SIGNALS = {signal.SIGTERM, signal.SIGCHLD, signal.SIGINT, signal.SIGHUP}
_KILL_AGAIN_S = 0.02
_WRITE_AGAIN_S = 1.0  # after END could not be written

MOST_OUTPUT_BYTES = 1 << 30  # output of one program on disk: a job that prints forever must not fill the disk
_LAST_BYTES = 1 << 20  # of the output beyond that, the last bytes are kept in memory
_CHUNK_BYTES = 1 << 16  # the capacity of a pipe
_MOST_CHUNKS_HELD = 16  # chunks in a full pipe that the program has made larger: up to 1 MiB


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it appears whole or not at all. It is on disk afterwards."""
    beside = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    with open(beside, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def identity(pid: int) -> dict[str, Any] | None:
    """Return values that distinguish a process from later ones with its id, also after a reboot; None: no process."""
    fields = stat_fields(pid)
    if fields is None or fields[0] in "ZX":
        return None
    with open("/proc/sys/kernel/random/boot_id") as file:
        return {"pid": pid, "started": int(fields[19]), "boot": file.read().strip()}


def process_lives(pid: int) -> bool:
    """Whether a process runs. A process that has ended but is not reaped yet does not count."""
    fields = stat_fields(pid)
    return fields is not None and fields[0] not in "ZX"


def pids_with_token(token: str, variable: str = TOKEN_VARIABLE) -> list[int]:
    """Return the ids of this user's processes that have the token in their environment."""
    wanted = f"{variable}={token}".encode()
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
    """Send SIGKILL to processes. Returns those that existed and that this user may kill."""
    ours = []
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
            ours.append(pid)
        except (ProcessLookupError, PermissionError):
            continue
    return ours


def kill_all(list_pids: Callable[[], list[int]], within_s: float = math.inf) -> bool:
    """Kill the listed processes until all of them have ended. Returns False if one still runs after `within_s`.

    Processes of other users are ignored.
    """
    deadline_s = time.monotonic() + within_s
    while kill(list_pids()):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(_KILL_AGAIN_S)
    return True


def descendants(pid: int) -> list[int]:
    """Return all descendants of a process. For a subreaper, these include processes in other sessions."""
    children = defaultdict(list)
    for other in _all_pids():
        fields = stat_fields(other)
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


def stat_fields(pid: int | str) -> list[str] | None:
    """Return the fields of /proc/PID/stat from the state on; None: the process is gone.

    Args:
        pid: a process; or a thread, as PID/task/TID.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name before the state may contain blanks and brackets.
            return file.read().rpartition(b")")[2].decode().split()
    except (FileNotFoundError, ProcessLookupError):
        return None


class CappedOutput:
    """Copies a program's output from a pipe to a file, up to a limit. Of later output it keeps the last bytes.

    The pipe is read to the end, so the program neither waits nor gets SIGPIPE. The file only grows, so that a reader's
    offsets stay right.

    Attributes:
        writer: the end of the pipe for the program. Close it once the program has it.
    """

    def __init__(self, path: Path, most_bytes: int, last_bytes: int = _LAST_BYTES) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._most, self._last_bytes = most_bytes, last_bytes
        self._written, self._in_a_line = 0, False
        self._full = ""  # why nothing more is written
        self._beyond, self._last = 0, bytearray()
        self._pipe, self.writer = os.pipe()
        os.set_blocking(self._pipe, False)  # the program's end is not affected
        self._ended, self._end = os.pipe()
        self._thread = threading.Thread(target=self._copy)

    def start(self) -> None:
        """Call this after the fork: the kernel ties the program's life to the thread that has started it."""
        self._thread.start()

    def finish(self) -> None:
        """Write the last bytes. Call this when all processes have ended.

        Does not wait for a process that still holds the pipe, for example one of another user.
        """
        os.close(self._end)
        self._thread.join()
        if self._full:
            self._write_last()
        for descriptor in (self._pipe, self._ended, self._file):
            os.close(descriptor)

    def _copy(self) -> None:
        ended = False
        while not ended:
            ready, _, _ = select.select([self._pipe, self._ended], [], [])
            ended = self._ended in ready
            for _ in range(_MOST_CHUNKS_HELD if ended else 1):
                try:
                    chunk = os.read(self._pipe, _CHUNK_BYTES)
                except BlockingIOError:
                    break
                if not chunk:
                    return
                self._keep(chunk)

    def _keep(self, chunk: bytes) -> None:
        written = 0 if self._full else self._write(chunk[: self._most - self._written])
        self._written += written
        rest = chunk[written:]
        if rest and not self._full:
            self._full = f"output beyond {_size(self._most)}"
            self._say(f"{self._full} is not written: its last {_size(self._last_bytes)} follow when the program ends")
        self._beyond += len(rest)
        self._last += rest
        if len(self._last) > 2 * self._last_bytes:
            del self._last[: -self._last_bytes]

    def _write(self, content: bytes) -> int:
        """Write to the file. Returns the number of bytes that were written, which is smaller if the disk is full."""
        done = 0
        try:
            while done < len(content):
                done += os.write(self._file, content[done:])
                self._in_a_line = content[done - 1 : done] != b"\n"
        except OSError as error:  # for example, the disk is full; the program goes on
            self._full = f"output that could not be written ({error.strerror})"
        return done

    def _write_last(self) -> None:
        last = bytes(self._last[-self._last_bytes :])
        if len(last) < self._beyond:
            last = last[last.find(b"\n", 0, len(last) // 2) + 1 :]  # whole lines, unless the first one is very long
        if dropped := self._beyond - len(last):
            self._say(f"{self._full} was dropped: {dropped:,} bytes; the last ones follow")
        else:
            self._say(f"{self._full} follows")
        self._write(last)

    def _say(self, text: str) -> None:
        begin = "\n" if self._in_a_line else ""
        self._write(f"{begin}{time.strftime('%Y-%m-%d %H:%M:%SZ', time.gmtime())} {text}\n".encode())


def _size(count: int) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} bytes"


class Supervisor:
    """Runs one program from its start to its end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._launch: dict[str, Any] = json.loads((folder / LAUNCH).read_text())
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._program: subprocess.Popen[bytes] | None = None
        self._pid = 0  # of the program
        self._exit_code: int | None = None
        self._gone = False
        self._sigterm_sent = False

    def run(self) -> None:
        self._libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans become children of this process
        # A starter that ignores SIGCHLD passes this on. Then children would end without a signal and an exit code.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        write_whole(self._folder / SUPERVISOR, json.dumps(identity(os.getpid())))
        # Check after writing that file: an earlier caller sees no file and sends no signal.
        if self._stop():
            self._end(None, "stopped before it was started")
            return
        try:
            output = self._start()
        except OSError as error:
            code = _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_EXECUTABLE
            self._end(code, f"{self._launch['command'][0]} cannot be started: {error}")
            return
        # On a full disk the program goes on. It only seems not to have started yet.
        with contextlib.suppress(OSError):
            write_whole(self._folder / PROGRAM, json.dumps({"pid": self._pid}))
        self._wait()
        self._kill_all()
        output.finish()
        self._end(self._exit_code)

    def _start(self) -> CappedOutput:
        parent = os.getpid()

        def in_the_child() -> None:
            self._libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # no program without its supervisor
            if os.getppid() != parent:
                os._exit(1)
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())

        # A server of an older release, which still runs while the package is upgraded, gives no limit.
        output = CappedOutput(self._folder / OUTPUT, self._launch.get("most_output_bytes", MOST_OUTPUT_BYTES))
        # Kept in a field, because a Popen that is garbage-collected reaps its process, and its exit code is lost.
        self._program = subprocess.Popen(
            self._launch["command"],
            cwd=self._launch["working_dir"],
            stdin=subprocess.DEVNULL,
            stdout=output.writer,
            stderr=output.writer,
            start_new_session=True,
            preexec_fn=in_the_child,
        )
        self._pid = self._program.pid
        os.close(output.writer)
        output.start()
        return output

    def _wait(self) -> None:
        while not self._gone:
            if signal.sigwait(_SIGNALS) == signal.SIGCHLD:
                self._reap()
            elif self._stop() == HARD:
                self._kill_all()
            elif not self._sigterm_sent:  # once, because many programs end without cleaning up after a second SIGTERM
                self._sigterm_sent = True
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
        """Kill all descendants. While the kernel cannot end one of them, the submission counts as running."""
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
        while True:
            try:
                write_whole(self._folder / END, json.dumps(end))
                return
            except OSError:  # for example, the disk is full
                # Without this file the program would count as lost, although it may have succeeded. The lock is held
                # meanwhile, so it counts as running.
                if not self._folder.exists():
                    raise
                time.sleep(_WRITE_AGAIN_S)


if __name__ == "__main__":
    if os.fork():
        os._exit(0)  # the starter need not stay to reap it
    Supervisor(Path(sys.argv[1])).run()
