"""Addresses of a server: the socket, bound before anything else is started, and the URLs at which it is reached."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Sequence

from cluster.addresses import is_server_url
from cluster.errors import InputError

_WAITING = 2048
_WILDCARDS = ("0.0.0.0", "::", "")


def listen(host: str, port: int) -> socket.socket:
    """Bind a socket.

    Args:
        port: 0: any free port.

    Raises:
        InputError: the port is in use, or the host is no address of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:  # of the codec of host names
        why = getattr(error, "strerror", None) or "no host has such a name"
        raise InputError(f"--host {host} is no address: {why}") from error
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(_WAITING)
    except OSError as error:
        sock.close()
        raise InputError(_why(error, host, port)) from error
    sock.set_inheritable(False)
    return sock


def _why(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is in use, perhaps by another server: give another one with --port (0: any)"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"--host {host} is no address of this machine: give one that is, or 0.0.0.0 for all of them"
    if error.errno == errno.EACCES:
        return f"port {port} needs more rights than this user has: give one above 1023 with --port"
    return f"port {port} of {host} cannot be used: {error.strerror}"


def url_here(sock: socket.socket, scheme: str) -> str:
    """Return the URL for programs on this machine."""
    host, port = sock.getsockname()[:2]
    return _url("127.0.0.1" if host in _WILDCARDS else host, port, scheme)


def urls_for_drivers(sock: socket.socket, given: Sequence[str], scheme: str) -> tuple[str, ...]:
    """Return the given URLs, or else the one at which other machines may reach this one.

    Raises InputError if one of them is not a URL.
    """
    for url in given:
        if not is_server_url(url):
            raise InputError(f"--url {url} is no URL, as http://head:8400 is")
    if given:
        return tuple(url.rstrip("/") for url in given)
    host, port = sock.getsockname()[:2]
    return (_url(_outward(socket.AddressFamily(sock.family)) if host in _WILDCARDS else host, port, scheme),)


def _url(host: str, port: int, scheme: str) -> str:
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _outward(listening: socket.AddressFamily) -> str:
    """Return the address that this machine uses to reach others. Nothing is sent. `listening`: family of the socket."""
    # Addresses that are reserved for documentation (RFC 5737 and 3849).
    of_families = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
    for family in (socket.AF_INET, listening):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((of_families[family], 9))
            return str(probe.getsockname()[0])
    return "127.0.0.1"
