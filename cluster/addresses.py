"""Tells URLs of servers and names of this machine from other texts. Pure."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit


def is_server_url(text: str) -> bool:
    """Whether a text is an http or https URL that has a host, and neither a query nor a fragment."""
    try:
        parts = urlsplit(text)
        has_port = parts.port is None or parts.port > 0
        (parts.hostname or "").encode("idna")
    except ValueError:  # no number as port, no bracket of an IPv6 address, or a part of the name too long or empty
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and has_port and not parts.query + parts.fragment


def is_loopback(host: str | None) -> bool:
    """Whether a host name or address always means this machine, as `localhost` and `127.0.0.1` do."""
    name = (host or "").strip("[]").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
