"""Addresses of servers: what the URL of one is, and which hosts mean this machine only."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit


def is_server_url(text: str) -> bool:
    """Whether a text is a URL of http or https with a host, to which paths can be appended."""
    try:
        parts = urlsplit(text)
        has_port = parts.port is None or parts.port > 0
        (parts.hostname or "").encode("idna")
    except ValueError:  # no number as port, no bracket of an IPv6 address, or a part of the name too long or empty
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and has_port and not parts.query + parts.fragment


def is_loopback(host: str | None) -> bool:
    """Whether a name or address is this machine's loopback. `host`: from an option, a header or a URL."""
    name = (host or "").strip("[]").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
