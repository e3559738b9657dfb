"""The user of the program at the other end of a local connection, as known by the kernel.

/proc/net/tcp lists each local connection twice, once from each end, with the user of the socket (proc_pid_net(5)). An
end that is being closed is listed with user 0, so only open ends count.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any

from cluster.errors import FleetuneError

_FILES = ("/proc/net/tcp", "/proc/net/tcp6")
_OPEN = "01"
_FRESH_S = 1.0
_MOST_KNOWN = 10_000

End = tuple[str, int]  # (address, port)


class NotYours(FleetuneError):
    status = 403


class LocalPeers:
    """Accepts programs of the server's user and of root. Looks up each connection at most once a second."""

    def __init__(self) -> None:
        self._allowed = {0, os.getuid()}
        self._known: dict[End, tuple[int | None, float]] = {}

    def check(self, scope: Mapping[str, Any]) -> None:
        """Check the peer of a request. Raises NotYours."""
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
    """Return the user id of the client's socket; None: there is no such open connection."""
    wanted = {(mine, others) for mine in _written(*client) for others in _written(*server)}
    for path in _FILES:
        try:
            with open(path) as file:
                next(file, None)
                for line in file:
                    parts = line.split(maxsplit=8)
                    if (parts[1], parts[2]) in wanted and parts[3] == _OPEN:
                        return int(parts[7])
        except OSError:  # the file is missing if the machine has no IPv6
            continue
    return None


def _written(address: str, port: int) -> list[str]:
    """Format an address like the kernel: hexadecimal words of four bytes, each in the machine's byte order.

    An IPv4 address may also appear as an IPv6 one.
    """
    if ":" in address:
        forms = [socket.inet_pton(socket.AF_INET6, address.partition("%")[0])]
    else:
        four = socket.inet_pton(socket.AF_INET, address)
        forms = [four, b"\0" * 10 + b"\xff\xff" + four]
    words = (struct.unpack(f"={len(form) // 4}I", form) for form in forms)
    return [f"{''.join(f'{word:08X}' for word in each)}:{port:04X}" for each in words]
