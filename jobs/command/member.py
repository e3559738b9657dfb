"""One process of a gang: the program under a guard, its output in bounded memory, its end."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Final

from cluster import guard

MOST_HELD_BYTES: Final = 1 << 20  # the program waits, when so much of what it wrote has not been read yet
_CHUNK_BYTES = 1 << 16
_LAST_OUTPUT_S = 10.0


class Member:
    """Used by two threads: one reads, one may stop it. Started by a thread that lives as long as the program may."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._output = bytearray()
        self._changed = threading.Condition()
        self._drained = self._closed = False
        self._reader = threading.Thread(target=self._read, name="output", daemon=True)

    def start(self, command: Sequence[str], environment: Mapping[str, str], working_dir: str | None) -> str | None:
        """Start the program; None, or why it cannot be started here."""
        if problem := cannot_start(command, environment, working_dir):
            return problem
        reads, writes = os.pipe()
        started = [sys.executable, "-I", "-S", guard.__file__, str(writes), *command]
        try:
            self._process = subprocess.Popen(
                started,
                cwd=working_dir,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(writes,),
                bufsize=0,
                start_new_session=True,  # whoever signals this process's group shall not reach the program twice
            )
        except OSError as error:  # arguments of more bytes than a system takes
            os.close(reads)
            return f"{command[0]} cannot be started on {os.uname().nodename}: {error.strerror}"
        finally:
            os.close(writes)
        with open(reads, "rb") as status:
            said = status.read()
        if said:
            self.close()
            return f"{command[0]} cannot be started on {os.uname().nodename}: {said.decode(errors='replace')}"
        self._reader.start()
        return None

    def read(self, wait_s: float) -> tuple[bytes, int | None]:
        """What it has written since the last call, and its exit code once it has ended and all was read; -N: signal N.

        Waits for up to `wait_s` for one of the two.
        """
        assert self._process is not None
        with self._changed:
            self._changed.wait_for(lambda: self._output or self._drained, wait_s)
            output = bytes(self._output)
            self._output.clear()
            self._changed.notify_all()
            drained = self._drained
        return output, self._process.wait() if drained and not output else None

    def stop(self, *, hard: bool = False) -> None:
        """Ask it to end; hard: end it, with whatever it has started."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(guard.KILL if hard else guard.TERM)

    def close(self) -> None:
        """Nothing of it runs afterwards."""
        if self._process is None:
            return
        self.stop(hard=True)
        self._process.wait()
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._reader.ident is not None:
            self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        while chunk := os.read(descriptor, _CHUNK_BYTES):
            with self._changed:
                self._changed.wait_for(lambda: self._closed or len(self._output) < MOST_HELD_BYTES)
                self._output += b"" if self._closed else chunk
                self._changed.notify_all()
        self._process.wait()
        with self._changed:
            self._drained = True
            self._changed.notify_all()


def cannot_start(command: Sequence[str], environment: Mapping[str, str], working_dir: str | None) -> str | None:
    """Why a program cannot be started on this machine, as far as that shows beforehand."""
    host, program = os.uname().nodename, command[0]
    if working_dir is not None and not os.path.isdir(working_dir):
        return f"working_dir {working_dir} is no directory on {host}: every node must see it"
    path = os.path.join(working_dir or os.getcwd(), program) if "/" in program else program
    if shutil.which(path, path=environment.get("PATH")) is not None:
        return None
    if "/" not in program:
        return f"there is no program {program} on the PATH of {host}"
    what = "may not be executed" if os.path.isfile(path) else "is no file"
    return f"{path} {what} on {host}"
