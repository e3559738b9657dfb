"""Raylets on this machine, found in the kernel's list of processes without importing ray."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster.local.supervisor import stat_fields

_PROGRAM = "/raylet"


@dataclass(frozen=True)
class Raylet:
    """A raylet, which is one node of a Ray cluster, with values from its command line.

    Attributes:
        session: session directory.
        gcs: host:port of the cluster's global control store.
        is_head: the node is the head of its cluster.
    """

    session: Path
    gcs: str
    is_head: bool


def raylet_above(pid: int) -> Raylet | None:
    """Return the raylet among the ancestors of a process; None: there is none. Drivers of submitted jobs have one."""
    while pid > 1:
        arguments = _arguments(pid)
        found = raylet_of(arguments) if arguments and arguments[0].endswith(_PROGRAM) else None
        if found is not None:
            return found
        pid = _parent(pid)
    return None


def raylet_of_session(name: str, trusted: bool = False) -> Raylet | None:
    """Return a raylet of this session on this machine, the head's if there are several; None: there is none.

    Args:
        trusted: consider only processes of root and of this user.
    """
    found = []
    for process in command_lines():
        one = raylet_of(process.arguments) if process.arguments[0].endswith(_PROGRAM) else None
        if one is not None and one.session.name == name:
            found.append((one, process.user))
    # Any user can start a program that looks like a raylet, so those of root and of this user come first.
    own = [one for one, user in found if user in (0, os.getuid())]
    return max(own or [one for one, _ in found if not trusted], key=lambda one: one.is_head, default=None)


@dataclass(frozen=True)
class Process:
    """A process of this machine: its user, its command line, and the folder that its relative paths begin in."""

    user: int
    arguments: list[str]
    folder: Path


def command_lines() -> Iterator[Process]:
    """Yield all processes that have a command line."""
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal() and (arguments := _arguments(int(entry.name))):
            with contextlib.suppress(OSError):  # it has ended
                yield Process(entry.stat().st_uid, arguments, Path(entry.path) / "cwd")


def _arguments(pid: int) -> list[str]:
    try:
        text = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return text.decode("utf-8", "replace").removesuffix("\0").split("\0") if text else []


def raylet_of(arguments: list[str]) -> Raylet | None:
    """Read a raylet from the arguments of its command line."""
    given = dict(one.removeprefix("--").partition("=")[::2] for one in arguments[1:] if one.startswith("--"))
    session, gcs = given.get("session_dir"), given.get("gcs-address")
    return Raylet(Path(session), gcs, "head" in given) if session and gcs else None


def _parent(pid: int) -> int:
    fields = None
    with contextlib.suppress(PermissionError):  # /proc may hide the processes of other users
        fields = stat_fields(pid)
    return int(fields[1]) if fields else 0
