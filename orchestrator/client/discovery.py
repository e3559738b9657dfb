"""Finds the server: at the URL that is given, else the one that runs on this machine, else at the usual address."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from cluster.errors import InputError
from cluster.settings import fleetune_home, server_token, server_url
from orchestrator.client.connection import ANSWER_S, PATIENCE_S, Connection

USUAL_URL: Final = "http://127.0.0.1:8400"


@dataclass(frozen=True)
class LocalServer:
    """The record that a server of this machine has written to server.json."""

    url: str
    pid: int

    @property
    def lives(self) -> bool:
        """Whether the process exists. The id may have been reused, so callers should also ask the server."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except (PermissionError, OverflowError):
            return True
        return True


def local_server(home: Path) -> LocalServer | None:
    """Return the server of this machine; None: there is none, or its record cannot be read."""
    found = _recorded(home)
    return found if found is not None and found.lives else None


def ended_server(home: Path) -> LocalServer | None:
    """Return a server that was killed before it could remove its record; None: there is no such record."""
    found = _recorded(home)
    return None if found is None or found.lives else found


def recorded_url() -> str | None:
    """Return FLEETUNE_URL, or else the URL of this machine's server, even if it was killed: its store has its jobs."""
    if url := server_url():
        return url
    found = _recorded(fleetune_home())
    return None if found is None else found.url


def _recorded(home: Path) -> LocalServer | None:
    try:
        left = json.loads((home / "server.json").read_bytes())
        found = LocalServer(str(left["url"]), int(left["pid"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return found if found.pid > 0 else None


def answers(url: str, path: str = "/healthz", timeout_s: float = 5.0) -> bool:
    """Whether a server answers at a URL of this machine or cluster, without a proxy, and whatever its certificate."""
    try:
        return httpx.get(f"{url}{path}", timeout=timeout_s, trust_env=False, verify=False).status_code == 200
    except (httpx.HTTPError, httpx.InvalidURL):
        return False


def url_of(given: str | None) -> str:
    """Return the given URL, or else FLEETUNE_URL, or else the server of this machine."""
    if url := given or server_url():
        return url
    found = local_server(fleetune_home())
    return USUAL_URL if found is None else found.url


def token_here(given: str | None = None) -> tuple[str | None, str]:
    """Return the token to send, and a phrase for messages that says where it comes from. None: there is none.

    Raises:
        InputError: other users can read the file of the token.
    """
    if given is not None:
        return given, "that was given"
    token, home = server_token(), fleetune_home()
    try:
        in_file = server_token({"FLEETUNE_HOME": str(home)})
    except InputError:  # the variable takes precedence, so the file does not matter
        in_file = None
    return token, f"of the file {home / 'token'}" if token == in_file else "of FLEETUNE_TOKEN"


def connect(url: str | None = None, *, patience_s: float = PATIENCE_S, answer_s: float = ANSWER_S) -> Connection:
    """Make a connection to the server. Nothing is sent yet.

    Raises:
        InputError: the URL is not valid, or other users can read the file of the token.
    """
    token, token_from = token_here()
    ended = None if url or server_url() else ended_server(fleetune_home())
    note = f"the server at {ended.url} (process {ended.pid}) has ended without stopping" if ended is not None else ""
    return Connection(url_of(url), token, token_from=token_from, note=note, patience_s=patience_s, answer_s=answer_s)


@contextlib.contextmanager
def connected(url: str | None, patience_s: float = PATIENCE_S) -> Iterator[Connection]:
    """Make a connection with `connect`, and close it at the end."""
    with contextlib.closing(connect(url, patience_s=patience_s)) as connection:
        yield connection
