"""How a program is started, watched and stopped on the machines: the contract of every backend.

A backend knows submissions by name, and takes each name once, for ever: to start one that it knows does nothing. So
whoever was killed in the middle of a start may start again, and nothing runs twice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from cluster.capacity.inventory import Inventory
from cluster.errors import LaunchRefused

MAX_OUTPUT_BYTES = 1 << 20  # of one call of `output`
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")


class Phase(StrEnum):
    PENDING = "pending"  # taken, and not started yet
    RUNNING = "running"
    SUCCEEDED = "succeeded"  # exit code 0
    FAILED = "failed"
    STOPPED = "stopped"  # after it was told to, whatever its exit code
    LOST = "lost"  # nobody can say any more; it does not run


ENDED_PHASES = frozenset({Phase.SUCCEEDED, Phase.FAILED, Phase.STOPPED, Phase.LOST})


@dataclass(frozen=True)
class Launch:
    """A program to be started.

    Attributes:
        submission: its name; letters, digits, '.', '_' and '-', at most 200, and no '.' or '-' at the start.
        command: the program and its arguments; no shell.
        environment: added to what the backend's programs have anyway.
        working_dir: None: a folder of the backend's own.
        metadata: for people who look at the backend itself.
        like: a program that somebody else has started there. This one runs in that one's environment (packages,
            variables, working directory), where the backend still knows it.
        like_digest: its `runtime_env.digest_of_environment`: another program of the same name is not meant.
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
    """A program that was started here.

    Attributes:
        exit_code: of one that has ended, where the backend knows it; -N: ended by signal N.
        message: why, where the backend knows more.
        node_id: the node that it was started on, where the backend knows it.
    """

    submission: str
    phase: Phase
    exit_code: int | None = None
    message: str = ""
    node_id: str | None = None

    @property
    def ended(self) -> bool:
        return self.phase in ENDED_PHASES


@dataclass(frozen=True)
class Other:
    """A program that somebody else runs: its name there, and what it is."""

    name: str
    what: str


class Backend(Protocol):
    """All calls may raise BackendUnreachable: the machines do not answer, and nothing is known of what was asked."""

    def inventory(self) -> Inventory:
        """All living machines, with what others than Fleetune hold on them."""

    def fence(self, fence: int) -> None:
        """From now on callers with a lower number are refused (`start`). Raises Fenced if this one is lower."""

    def start(self, launch: Launch, fence: int) -> None:
        """Start a program, unless its name is known. Returns once it is taken.

        Args:
            fence: a number that grows with each new caller. A lower one than was seen before is refused.

        Raises:
            Fenced: a newer caller has been here.
            LaunchRefused: this program can never start here (no such program, no such folder). Its name is not taken.
                A backend that cannot see that at once takes it, and it ends as FAILED with exit code 126 or 127.
        """

    def submissions(self) -> Sequence[Submission]:
        """All that are known, ended ones included until they are forgotten."""

    def stop(self, submission: str, *, hard: bool = False) -> None:
        """Ask it to end; hard: end it. Returns at once; one that is not known or has ended is left alone.

        What it started itself ends with it, at the latest when it is ended hard.
        """

    def forget(self, submissions: Sequence[str]) -> None:
        """These have ended and need not be listed any more. Their names stay taken."""

    def discard(self, submissions: Sequence[str]) -> None:
        """Remove all that is kept of programs that have ended: entry, output, folder of their own.

        Their names are free then: only for programs that nobody will start again. Unknown ones are passed over.
        """

    def output(self, submission: str, after: int = 0) -> bytes:
        """What it has written to stdout and stderr, from a byte on, up to 1 MiB; empty where nothing is known."""

    def ended_elsewhere(self, programs: Sequence[str]) -> frozenset[str]:
        """Which of these programs, that others have started there, are known to have ended."""

    def others(self) -> Sequence[Other]:
        """Programs that others than Fleetune run there, as far as the backend knows of them."""

    def close(self) -> None:
        """Let go of the backend; what runs goes on."""


def check_launch(launch: Launch) -> None:
    """What holds for every backend.

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
