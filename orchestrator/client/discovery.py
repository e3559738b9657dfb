"""Finds the server: at the URL that is given, else the one that runs on this machine, else at the usual address."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from cluster.errors import InputError
from cluster.settings import fleetune_home, server_token, server_url
from orchestrator.client.connection import ANSWER_S, PATIENCE_S, Connection

USUAL_URL: Final = "http://127.0.0.1:8400"
RECORD: Final = "server.json"  # in FLEETUNE_HOME; `orchestrator.local_server` writes it


@dataclass(frozen=True)
class LocalServer:
    """The record that a server of this machine has written to RECORD.

    Attributes:
        embedded: a script has started it; False: somebody runs `fleetune serve`.
    """

    url: str
    pid: int
    embedded: bool = False

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


def recorded_url() -> str | None:
    """Return FLEETUNE_URL, or else the URL of this machine's server, even if it was killed: its store has its jobs."""
    if url := server_url():
        return url
    found = _recorded(fleetune_home())
    return None if found is None else found.url


def _recorded(home: Path) -> LocalServer | None:
    try:
        left = json.loads((home / RECORD).read_bytes())
        found = LocalServer(str(left["url"]), int(left["pid"]), bool(left.get("embedded", False)))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return found if found.pid > 0 else None


def answers(url: str, path: str = "/healthz", timeout_s: float = 5.0) -> bool:
    """Whether a server answers at a URL of this machine or cluster, without a proxy, and whatever its certificate."""
    try:
        return httpx.get(f"{url}{path}", timeout=timeout_s, trust_env=False, verify=False).status_code == 200
    except (httpx.HTTPError, httpx.InvalidURL):
        return False


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


def connected(
    url: str | None = None, patience_s: float = PATIENCE_S, answer_s: float = ANSWER_S
) -> contextlib.closing[Connection]:
    """Make a connection to the server, as a context that closes it. Nothing is sent yet.

    The server is the one at `url`, or else at FLEETUNE_URL, or else the server of this machine.

    Raises:
        InputError: the URL is not valid, or other users can read the file of the token.
    """
    token, token_from = token_here()
    where, note = url or server_url(), ""
    if where is None:
        found = _recorded(fleetune_home())
        where = found.url if found is not None and found.lives else USUAL_URL
        if found is not None and not found.lives:  # it was killed before it could remove its record
            note = f"the server at {found.url} (process {found.pid}) has ended without stopping"
    made = Connection(where, token, token_from=token_from, note=note, patience_s=patience_s, answer_s=answer_s)
    return contextlib.closing(made)
