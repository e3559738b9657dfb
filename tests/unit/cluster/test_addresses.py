"""Addresses of servers."""

from __future__ import annotations

import pytest

from cluster.addresses import is_loopback, is_server_url


@pytest.mark.parametrize("url", ["http://head", "https://queue.example.org/fleetune/", "http://[::1]:8400"])
def test_what_is_the_url_of_a_server(url: str) -> None:
    assert is_server_url(url)


@pytest.mark.parametrize(
    "url",
    [
        *("", "head:8400", "ftp://head", "http://", "http://[::1:8400", f"http://{'a' * 64}"),
        *("http://head:x", "http://head:0", "http://head:99999", "http://head?x=1", "http://head#x"),
    ],
)
def test_what_is_no_url_of_a_server(url: str) -> None:
    assert not is_server_url(url)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]", "a.localhost"])
def test_loopback_by_any_name(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "10.0.0.1", "example.org", "localhost.example.org", "", "::", "127.1.evil", None]
)
def test_what_is_not_loopback(host: str | None) -> None:
    assert not is_loopback(host)
