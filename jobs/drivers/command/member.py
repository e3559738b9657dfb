"""Runs one process of a gang under a guard, with its output in bounded memory; or a whole gang on this machine."""

from __future__ import annotations

import contextlib
import os
import secrets
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from cluster.errors import SpecError
from cluster.local import guard
from cluster.local.supervisor import kill_all, pids_with_token
from cluster.settings import with_environment
from jobs.drivers.command.places import Place, environment_of_program, variables_of
from jobs.spec.command import CommandSpec

MOST_HELD_BYTES: Final = 1 << 20  # unread output at which the program has to wait
_CHUNK_BYTES = 1 << 16
_TOKEN_VARIABLE = "FLEETUNE_MEMBER"  # all processes of a member inherit its value


class Member:
    """One program. One thread reads from it, another may stop it. It ends at the latest with this process."""

    def __init__(self) -> None:
        self._output = bytearray()
        self._changed = threading.Condition()
        self._closed = False
        self._exit_code: int | None = None
        self._control: int | None = None
        self._reader: threading.Thread | None = None
        self._token = secrets.token_hex(8)

    def start(self, command: Sequence[str], environment: Mapping[str, str], working_dir: str | None) -> str | None:
        """Start the program. Returns None, or why it cannot be started here."""
        if problem := cannot_start(command, environment, working_dir):
            return problem
        (output, for_output), (status, for_status), (for_control, control) = os.pipe(), os.pipe(), os.pipe()
        ours, theirs = (output, status, control), (for_output, for_status, for_control)
        words = [sys.executable, "-I", "-S", guard.__file__, str(for_status), str(for_control), *command]
        try:
            subprocess.run(
                words,
                cwd=working_dir,
                env={**environment, _TOKEN_VARIABLE: self._token},
                stdin=subprocess.DEVNULL,
                stdout=for_output,
                stderr=for_output,
                pass_fds=(for_status, for_control),
                start_new_session=True,  # a signal to this process's group must not reach the program twice
                check=False,
            )
            said = ""
        except OSError as error:  # for example, the arguments are larger than the system allows
            said = error.strerror or str(error)
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        heard = b"" if said else os.read(status, 1)
        if heard != guard.STARTED:
            said = said or os.read(status, _CHUNK_BYTES).decode(errors="replace") or "its guard was killed"
            for descriptor in ours:
                os.close(descriptor)
            return f"{command[0]} cannot be started on {os.uname().nodename}: {said}"
        self._control = control
        self._reader = threading.Thread(target=self._read, args=(output, status), name="output", daemon=True)
        self._reader.start()
        return None

    def start_at(
        self,
        place: Place,
        spec: CommandSpec,
        master: tuple[str, int],
        variables: Mapping[str, str],
        gpus: Sequence[str],
    ) -> str | None:
        """Start a command's program, with the variables of the job and of its place. Returns what `start` does."""
        environment = environment_of_program(with_environment({}), {**variables, **variables_of(place, master, gpus)})
        return self.start(spec.command, environment, spec.working_dir or os.getcwd())

    def read(self, wait_s: float) -> tuple[bytes, int | None]:
        """Return the output since the last call and, once it has ended and all is read, the exit code; -N for signal N.

        Waits for up to `wait_s` until there is output or an exit code.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._output or self._exit_code is not None, wait_s)
            output = bytes(self._output)
            self._output.clear()
            self._changed.notify_all()
            return output, None if output else self._exit_code

    def stop(self, *, hard: bool = False) -> None:
        """Ask the program to end; with `hard`, kill it and all processes that it has started."""
        with self._changed:
            if self._control is not None:
                with contextlib.suppress(BrokenPipeError):  # the program has ended
                    os.write(self._control, guard.KILL if hard else guard.TERM)

    def close(self) -> None:
        """End the program, and wait until nothing of it runs."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            control, self._control = self._control, None
        if control is not None:
            os.close(control)
        if self._reader is not None:
            self._reader.join()

    def _read(self, output: int, status: int) -> None:
        code: bytes | None = None
        with (
            open(output, "rb", buffering=0) as written,
            open(status, "rb") as said,
            selectors.DefaultSelector() as listening,
        ):
            for file in (written, said):
                listening.register(file, selectors.EVENT_READ)
            while listening.get_map():
                ready = [key.fileobj for key, _ in listening.select()]
                if said in ready:
                    listening.unregister(said)
                    code = said.read()
                    if not code:  # the guard was killed. That kills the program, but not what this has started
                        kill_all(lambda: pids_with_token(self._token, _TOKEN_VARIABLE))
                if written in ready:
                    if not (chunk := written.read(_CHUNK_BYTES)):
                        listening.unregister(written)
                    with self._changed:
                        self._changed.wait_for(lambda: self._closed or len(self._output) < MOST_HELD_BYTES)
                        self._output += b"" if self._closed else chunk
                        self._changed.notify_all()
        with self._changed:
            self._exit_code = int(code) if code else -signal.SIGKILL
            self._changed.notify_all()


def cannot_start(command: Sequence[str], environment: Mapping[str, str], working_dir: str | None) -> str | None:
    """Return why a program cannot be started on this machine, as far as can be checked beforehand."""
    host, program = os.uname().nodename, command[0]
    if working_dir is not None and not os.path.isdir(working_dir):
        return f"working_dir {working_dir} is not a directory on {host}: every node must see it"
    path = os.path.join(working_dir or os.getcwd(), program) if "/" in program else program
    if shutil.which(path, path=environment.get("PATH")) is not None:
        return None
    if "/" not in program:
        return f"there is no program {program} on the PATH of {host}"
    what = "may not be executed" if os.path.isfile(path) else "is not a file"
    return f"{path} {what} on {host}"


@contextlib.contextmanager
def local_gang(
    spec: CommandSpec, places: Sequence[Place], variables: Mapping[str, str], gpus: Sequence[str]
) -> Iterator[list[Member]]:
    """Start all processes. When the context ends, none of them runs any more.

    Args:
        gpus: GPUs of all processes together.

    Raises:
        SpecError: the program cannot be started.
    """
    members = [Member() for _ in places]
    each, master = spec.resources.gpus_per_worker, ("127.0.0.1", free_port("127.0.0.1"))
    try:
        for member, place in zip(members, places, strict=True):
            own = gpus[place.rank * each : (place.rank + 1) * each]
            if problem := member.start_at(place, spec, master, variables, own):
                raise SpecError(problem)
        yield members
    finally:
        for member in members:
            member.close()


def free_port(host: str) -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
