"""The network interface of a worker's host."""

from __future__ import annotations

from jobs.training.on_ray.process_group import interface_of


def test_an_interface_is_found_by_its_address() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.1") is None, "an address for documentation"
