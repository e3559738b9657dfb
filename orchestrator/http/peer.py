"""Whose program is at the other end of a connection within this machine: the kernel knows.

/proc/net/tcp lists every connection from both its ends, each with the user whose socket it is (proc_pid_net(5)). An end
that is being closed belongs to nobody any more, and is listed with user 0: so only an open one counts.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any

from cluster.errors import FleetuneError

_FILES = ("/proc/net/tcp", "/proc/net/tcp6")
_OPEN = "01"
_FRESH_S = 1.0
_MOST_KNOWN = 10_000

End = tuple[str, int]  # address, port


class NotYours(FleetuneError):
    status = 403


class Neighbours:
    """Lets in programs of the server's own user, and of root. One lookup a second for each connection."""

    def __init__(self) -> None:
        self._allowed = {0, os.getuid()}
        self._known: dict[End, tuple[int | None, float]] = {}

    def check(self, scope: Mapping[str, Any]) -> None:
        """Raises NotYours."""
        if self._user(scope) not in self._allowed:
            raise NotYours(
                "without tokens this server answers programs of the user that has started it, and no others: ask that "
                "user for a token (fleetune tokens add NAME), and set FLEETUNE_TOKEN to it"
            )

    def _user(self, scope: Mapping[str, Any]) -> int | None:
        client, server = scope.get("client"), scope.get("server")
        if client is None or server is None:
            return None
        now_s = time.monotonic()
        user, until_s = self._known.get(client, (None, 0.0))
        if now_s >= until_s:
            user = user_of((client[0], client[1]), (server[0], server[1]))
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[client] = user, now_s + _FRESH_S
        return user


def user_of(client: End, server: End) -> int | None:
    """The id of the user whose socket the client's end is; None: there is no such connection that is open."""
    wanted = {(mine, others) for mine in _written(*client) for others in _written(*server)}
    for path in _FILES:
        try:
            with open(path) as file:
                next(file, None)
                for line in file:
                    parts = line.split(maxsplit=8)
                    if (parts[1], parts[2]) in wanted and parts[3] == _OPEN:
                        return int(parts[7])
        except OSError:  # no such file where the machine has no IPv6
            continue
    return None


def _written(address: str, port: int) -> list[str]:
    """As the kernel writes it: words of four bytes, each in the machine's own order. IPv4 may stand in IPv6."""
    if ":" in address:
        forms = [socket.inet_pton(socket.AF_INET6, address.partition("%")[0])]
    else:
        four = socket.inet_pton(socket.AF_INET, address)
        forms = [four, b"\0" * 10 + b"\xff\xff" + four]
    return [f"{''.join(_word(form[at : at + 4]) for at in range(0, len(form), 4))}:{port:04X}" for form in forms]


def _word(four: bytes) -> str:
    return f"{int.from_bytes(four, sys.byteorder):08X}"
