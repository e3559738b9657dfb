"""Runs programs on this machine, without Ray. Each submission is a folder, so any later process can manage it.

This process keeps no state and may be killed at any moment. A start first claims the name by renaming a complete folder
to it, and then starts a supervisor (`cluster.local.supervisor`). The starter, and then the supervisor, hold a lock in
that folder from before the name is claimed. The kernel releases the lock when both are gone. So a submission that has
not ended and whose lock is free does not run, and is LOST. This needs neither process ids nor times.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from cluster.backend import MAX_OUTPUT_BYTES, Launch, Phase, Submission, check_fence, check_launch
from cluster.capacity.inventory import Inventory, Node
from cluster.errors import BackendUnreachable, LaunchRefused, MachinesFailed
from cluster.local import supervisor as files
from cluster.local.locks import try_lock
from cluster.local.machine import this_machine
from cluster.settings import with_environment
from cluster.text import TAIL_BYTES, error_line

_DIES_WITHIN_S = 2.0  # longest wait for the end of killed processes
_LOCKED_FOR_S, _LOCK_AGAIN_S = 10.0, 0.01  # a start holds the lock for milliseconds


class LocalBackend:
    """See `cluster.backend.Backend`. Any number of processes may use one folder at once.

    The folder must be on a disk of this machine, and is readable by its owner alone.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        inventory: Inventory | None = None,
        most_output_bytes: int = files.MOST_OUTPUT_BYTES,
    ) -> None:
        """Open the folder.

        Args:
            inventory: None uses the CPUs and GPUs of this machine.
            most_output_bytes: most bytes that are kept of a program's output, in addition to its last 1 MiB.
        """
        self._folder = Path(folder).absolute()
        self._known, self._forgotten = self._folder / "submissions", self._folder / "forgotten"
        self._inventory = inventory
        self._most_output_bytes = most_output_bytes
        with self._answering():
            for path in (self._folder, self._known, self._forgotten):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder.chmod(0o700)

    def inventory(self) -> Inventory:
        with self._answering():
            os.stat(self._known)
            if self._inventory is not None:
                return self._inventory
            here = self._here()
            if here.gpus:  # without GPUs ask again: their driver may not be loaded yet
                self._inventory = Inventory((here,))
            return Inventory((here,))

    def _here(self) -> Node:
        try:
            return this_machine()
        except MachinesFailed as error:
            raise BackendUnreachable(str(error)) from error

    def fence(self, fence: int) -> None:
        with self._answering(), self._locked():
            self._check_fence(fence)

    def start(self, launch: Launch, fence: int) -> None:
        with self._answering():
            environment = with_environment(launch.environment)
            with self._locked():
                self._check_fence(fence)
                if self._find(launch.submission) is not None:
                    return
                check_launch(launch)
                _check_startable(launch, environment)
                lock, environment[files.TOKEN_VARIABLE] = self._take(launch)
            try:
                _supervise(self._known / launch.submission, lock, environment)
            finally:
                os.close(lock)

    def submissions(self) -> Sequence[Submission]:
        with self._answering():
            return [state for folder in sorted(self._known.iterdir()) if (state := self._state(folder)) is not None]

    def stop(self, submission: str, *, hard: bool = False) -> None:
        with self._answering():
            state, folder = self._state(self._known / submission), self._known / submission
            if state is None or state.ended:
                return
            stop = folder / files.STOP
            if hard or not stop.exists():
                files.write_whole(stop, files.HARD if hard else files.SOFT)
            _signal(_read(folder / files.SUPERVISOR))

    def forget(self, submissions: Sequence[str]) -> None:
        with self._answering():
            for name in submissions:
                state = self._state(self._known / name)
                if state is not None and state.ended:
                    with contextlib.suppress(FileNotFoundError):  # another process was faster
                        (self._known / name).rename(self._forgotten / name)

    def discard(self, submissions: Sequence[str]) -> None:
        with self._answering():
            for name in submissions:
                for folder in (self._known / name, self._forgotten / name):
                    with contextlib.suppress(FileNotFoundError):
                        if _state(folder).ended:
                            shutil.rmtree(folder)

    def output(self, submission: str, after: int = 0) -> bytes:
        with self._answering():
            os.stat(self._known)
            folder = self._find(submission)
            if folder is None or not (folder / files.OUTPUT).exists():
                return b""
            with open(folder / files.OUTPUT, "rb") as file:
                if after >= os.fstat(file.fileno()).st_size:  # the kernel refuses offsets near 2**63
                    return b""
                file.seek(after)
                return file.read(MAX_OUTPUT_BYTES)

    def output_end(self, submission: str, most: int) -> tuple[int, bytes]:
        with self._answering():
            folder = self._find(submission)
            size = (folder / files.OUTPUT).stat().st_size if folder and (folder / files.OUTPUT).exists() else 0
        begin = max(size - most, 0)
        return begin, self.output(submission, begin)

    def ended_elsewhere(self, programs: Sequence[str]) -> frozenset[str]:
        return frozenset()

    def others(self) -> Sequence[str]:
        return ()

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise BackendUnreachable(
                f"the folder of the local backend, {self._folder}, cannot be used: {error}. Check that it exists, "
                "belongs to this user and has free space"
            ) from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock that allows one start at a time. The kernel releases the lock of a killed process."""
        lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        deadline_s = time.monotonic() + _LOCKED_FOR_S
        try:
            while not try_lock(lock):
                if time.monotonic() > deadline_s:
                    raise TimeoutError(f"another server has held its lock for {_LOCKED_FOR_S:.0f} s, and may be frozen")
                time.sleep(_LOCK_AGAIN_S)
            yield
        finally:
            os.close(lock)

    def _check_fence(self, fence: int) -> None:
        path = self._folder / "fence"
        highest = int(path.read_text()) if path.exists() else fence
        check_fence(fence, highest)
        if fence > highest or not path.exists():
            files.write_whole(path, str(fence))

    def _find(self, name: str) -> Path | None:
        places = [parent / name for parent in (self._known, self._forgotten)]
        return next((folder for folder in places if (folder / files.LAUNCH).exists()), None)

    def _take(self, launch: Launch) -> tuple[int, str]:
        """Claim the submission's name with a complete folder. Returns the descriptor of its lock, and its token."""
        token, new = uuid.uuid4().hex, self._folder / "new"
        shutil.rmtree(new, ignore_errors=True)  # left by a starter that was killed
        (new / "work").mkdir(mode=0o700, parents=True)
        folder = self._known / launch.submission
        content = {
            "command": launch.command,
            "working_dir": launch.working_dir or str(folder / "work"),
            "metadata": dict(launch.metadata),
            "token": token,
            "most_output_bytes": self._most_output_bytes,
            "taken_at_s": time.time(),
        }
        files.write_whole(new / files.LAUNCH, json.dumps(content))  # without the environment: it may hold secrets
        lock = os.open(new / files.LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        new.rename(folder)
        return lock, token

    def _state(self, folder: Path) -> Submission | None:
        """Return the state of a submission; None: it is not known, or this or another process has forgotten it."""
        os.stat(self._known)
        try:
            return _state(folder)
        except FileNotFoundError:
            return None


def _state(folder: Path) -> Submission:
    name, end = folder.name, _read(folder / files.END)
    if end is None and _is_held(folder / files.LOCK):
        return Submission(name, Phase.RUNNING if (folder / files.PROGRAM).exists() else Phase.PENDING)
    # Read again, because it may have ended between the two checks.
    end = end or _read(folder / files.END) or _record_loss(folder)
    if end is None:
        return Submission(name, Phase.RUNNING, message="its supervisor is gone, and its processes do not end")
    phase, message = _ended(end), end["message"]
    if phase is Phase.FAILED and not message:
        message = _error_line(folder / files.OUTPUT)
    return Submission(name, phase, end["exit_code"], message)


def _error_line(output: Path) -> str:
    with contextlib.suppress(OSError), open(output, "rb") as file:
        file.seek(max(os.fstat(file.fileno()).st_size - TAIL_BYTES, 0))
        return error_line(file.read(TAIL_BYTES).decode("utf-8", "replace"))
    return ""


def _check_startable(launch: Launch, environment: dict[str, str]) -> None:
    where, program = launch.working_dir, launch.command[0]
    if where is not None and not os.path.isdir(where):
        raise LaunchRefused(f"{launch.submission} cannot start: its working_dir {where} is no folder of this machine")
    # Without a working_dir it starts in an empty folder, in which no relative path exists.
    path = os.path.join(where or "/nowhere", program) if "/" in program else program
    if shutil.which(path, path=environment.get("PATH")) is None:
        raise LaunchRefused(f"{launch.submission} cannot start: there is no program {program} on this machine's PATH")


def _supervise(folder: Path, lock: int, environment: dict[str, str]) -> None:
    command = [sys.executable, "-I", "-S", files.__file__, str(folder)]
    with open(folder / "supervisor.log", "ab") as log:
        subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(lock,),
            start_new_session=True,
            check=False,  # if the supervisor does not start, the lock is free, and the submission is LOST
        )


def _is_held(lock: Path) -> bool:
    """Whether the starter or the supervisor lives. The lock is shared, so that readers do not block each other."""
    with open(lock, "rb") as file:
        return not try_lock(file.fileno(), shared=True)


def _record_loss(folder: Path) -> dict[str, Any] | None:
    """Kill the processes of a submission without a supervisor, and record that it is lost; None: some still run."""
    token = json.loads((folder / files.LAUNCH).read_text())["token"]
    if not files.kill_all(lambda: files.pids_with_token(token), _DIES_WITHIN_S):
        return None
    # PROGRAM does not show this: the supervisor may have been killed after the start and before it wrote the file.
    started = (folder / files.SUPERVISOR).exists()
    message = "its supervisor is gone: killed, or the machine was restarted" if started else "it was never started"
    end = {"exit_code": None, "stopped": False, "lost": True, "message": message}
    files.write_whole(folder / files.END, json.dumps(end))
    return end


def _ended(end: dict[str, Any]) -> Phase:
    if end["lost"]:
        return Phase.LOST
    if end["stopped"]:
        return Phase.STOPPED
    return Phase.SUCCEEDED if end["exit_code"] == 0 else Phase.FAILED


def _signal(process: dict[str, Any] | None) -> None:
    """Make a supervisor read the request, if it is still the recorded process."""
    if process is None:
        return  # it reads the request at its start
    try:
        handle = os.pidfd_open(process["pid"])
    except ProcessLookupError:
        return
    try:
        if files.identity(process["pid"]) == process:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGTERM)
    finally:
        os.close(handle)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return cast(dict[str, Any], json.loads(path.read_text()))
    except FileNotFoundError:
        return None
