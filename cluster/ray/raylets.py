"""Which Ray a process of this machine belongs to, read from the kernel's list of processes; ray is not imported."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PROGRAM = "/raylet"


@dataclass(frozen=True)
class Raylet:
    """One node of a Ray cluster, as its raylet was started.

    Attributes:
        session: its session directory.
        gcs: host:port of the cluster's head service.
        is_head: whether this is the cluster's head node.
    """

    session: Path
    gcs: str
    is_head: bool


def raylet_above(pid: int) -> Raylet | None:
    """The raylet that a process descends from; that of the driver of a submitted job, as Ray starts it."""
    while pid > 1:
        if (found := _raylet(pid)) is not None:
            return found
        pid = _parent(pid)
    return None


def raylet_of_session(name: str, trusted: bool = False) -> Raylet | None:
    """The one of a session, of those that run on this machine; the head's where there are several.

    Args:
        trusted: only one of root or of this user.
    """
    found = []
    for process in words_of_processes():
        one = raylet_of(process.words) if process.words[0].endswith(_PROGRAM) else None
        if one is not None and one.session.name == name:
            found.append((one, process.user))
    # Anybody may start a program that looks like one: those of root and of this user go before.
    own = [one for one, user in found if user in (0, os.getuid())]
    return max(own or [one for one, _ in found if not trusted], key=lambda one: one.is_head, default=None)


@dataclass(frozen=True)
class Process:
    """One of this machine: its user, the words of its command line, and where its paths begin."""

    user: int
    words: list[str]
    folder: Path


def words_of_processes() -> Iterator[Process]:
    """Those that have a command line."""
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal() and (words := _words(int(entry.name))):
            with contextlib.suppress(OSError):  # it has ended
                yield Process(entry.stat().st_uid, words, Path(entry.path) / "cwd")


def _words(pid: int) -> list[str]:
    try:
        text = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return text.decode("utf-8", "replace").removesuffix("\0").split("\0") if text else []


def _raylet(pid: int) -> Raylet | None:
    words = _words(pid)
    return raylet_of(words) if words and words[0].endswith(_PROGRAM) else None


def raylet_of(words: list[str]) -> Raylet | None:
    """From the words of its command line."""
    given = dict(word.removeprefix("--").partition("=")[::2] for word in words[1:] if word.startswith("--"))
    session, gcs = given.get("session_dir"), given.get("gcs-address")
    return Raylet(Path(session), gcs, "head" in given) if session and gcs else None


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return 0
