"""The contract of every backend: how programs are started, watched and stopped on the machines.

A backend knows programs by name and accepts each name once. Starting a known name does nothing, so a caller that was
killed in the middle of a start can repeat it, and nothing runs twice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from cluster.capacity.inventory import Inventory
from cluster.errors import Fenced, LaunchRefused

MAX_OUTPUT_BYTES = 1 << 20  # most bytes that one call of `output` returns
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")


class Phase(StrEnum):
    PENDING = "pending"  # accepted, and not started yet
    RUNNING = "running"
    SUCCEEDED = "succeeded"  # exit code 0
    FAILED = "failed"
    STOPPED = "stopped"  # on request, with any exit code
    LOST = "lost"  # it does not run, and how it ended is unknown


ENDED_PHASES = frozenset({Phase.SUCCEEDED, Phase.FAILED, Phase.STOPPED, Phase.LOST})


@dataclass(frozen=True)
class Launch:
    """A program to be started.

    Attributes:
        submission: the program's name: at most 200 letters, digits, '.', '_' and '-', with no '.' or '-' at the start.
        command: the program and its arguments. There is no shell.
        environment: variables, added to those that the backend gives to all its programs.
        working_dir: the current directory of the program; None: the backend makes one.
        metadata: shown to people who look at the backend itself.
        like: the name of a program that another user has started on these machines. This program runs in the same
            environment (packages, variables, working directory), if the backend still knows the other one.
        like_digest: the digest of that environment (`runtime_env.digest_of_environment`), which distinguishes programs
            with equal names.
    """

    submission: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    working_dir: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    like: str | None = None
    like_digest: str = ""


@dataclass(frozen=True)
class Submission:
    """A program that this backend has started.

    Attributes:
        exit_code: None while the program runs, or if the backend does not know it; -N: ended by signal N.
        message: the reason of the end, if the backend knows one.
        node_id: the node on which the program was started; None: unknown.
    """

    submission: str
    phase: Phase
    exit_code: int | None = None
    message: str = ""
    node_id: str | None = None

    @property
    def ended(self) -> bool:
        return self.phase in ENDED_PHASES


class Backend(Protocol):
    """A backend. Every call may raise BackendUnreachable: then it is unknown whether it has had its effect."""

    def inventory(self) -> Inventory:
        """Return all living machines, with the slots that other programs than Fleetune's hold on them."""

    def fence(self, fence: int) -> None:
        """Refuse callers of `start` with a lower number from now on. Raises Fenced if a higher number is known."""

    def start(self, launch: Launch, fence: int) -> None:
        """Start a program unless its name is known. Returns when the backend has accepted it.

        Args:
            fence: a number that grows with each new caller.

        Raises:
            Fenced: a caller with a higher fence has called before.
            LaunchRefused: this program can never start (no such program or folder). Its name stays unused. A backend
                that cannot see this at once accepts the program, which then ends as FAILED with exit code 126 or 127.
        """

    def submissions(self) -> Sequence[Submission]:
        """Return all known programs. Those that have ended are included until they are forgotten."""

    def stop(self, submission: str, *, hard: bool = False) -> None:
        """Ask a program to end, or kill it (`hard`). Returns at once; unknown names are ignored.

        Processes that the program has started end with it, at the latest when it is killed.
        """

    def forget(self, submissions: Sequence[str]) -> None:
        """Stop listing programs that have ended. Their names stay used."""

    def discard(self, submissions: Sequence[str]) -> None:
        """Remove the entries, outputs and folders of programs that have ended. Unknown names are ignored.

        Their names become free again, so call this only for programs that will not be started again.
        """

    def output(self, submission: str, after: int = 0) -> bytes:
        """Return up to 1 MiB of the program's stdout and stderr, from byte `after` on; empty if nothing is known.

        Raises:
            BackendUnreachable: the output exists, but cannot be read at the moment.
        """

    def output_end(self, submission: str, most: int) -> tuple[int, bytes]:
        """Return the last `most` bytes of the program's output, and the byte at which they begin; see `output`."""

    def ended_elsewhere(self, programs: Sequence[str]) -> frozenset[str]:
        """Return those of these programs, which others have started, that are known to have ended."""

    def others(self) -> Sequence[str]:
        """Return the names of programs that others run on these machines, as far as the backend knows them.

        Names only, because command lines may contain secrets.
        """


def check_fence(fence: int, highest: int | None) -> None:
    """Raise Fenced if a caller with a higher fence has called before; `highest`: None if nobody has."""
    if highest is not None and fence < highest:
        raise Fenced(f"caller {fence} may not start programs any more: caller {highest} has been here")


def check_launch(launch: Launch) -> None:
    """Check what every backend requires of a launch.

    Raises:
        LaunchRefused: the name or the command cannot be used.
    """
    if not _NAME.fullmatch(launch.submission):
        raise LaunchRefused(
            f"{launch.submission!r} cannot be the name of a submission: use letters, digits, '.', '_' and '-', at most "
            "200 of them, and start with a letter or a digit"
        )
    if not launch.command:
        raise LaunchRefused(f"{launch.submission} has no command to start")
    names, texts = launch.environment.keys(), (*launch.command, *launch.environment.values())
    if any(not name or "=" in name or "\0" in name for name in names) or any("\0" in text for text in texts):
        raise LaunchRefused(
            f"{launch.submission} cannot start: its environment has a variable without a name or with '=' in its name, "
            "or there is a zero byte in it or in the command"
        )
