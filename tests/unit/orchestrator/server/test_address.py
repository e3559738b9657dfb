"""The URLs at which drivers reach a server."""

from __future__ import annotations

import socket

import pytest

from cluster.errors import InputError
from orchestrator.server.address import urls_for_drivers


@pytest.mark.parametrize("url", ["head:8400", "ftp://head", "http://", "http://[::1:8400", "http://head:x"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with socket.socket() as sock, pytest.raises(InputError, match="is no URL, as http://head:8400 is"):
        urls_for_drivers(sock, ["http://[::1]:8400", url], "http")
