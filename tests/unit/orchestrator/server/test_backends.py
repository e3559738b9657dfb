"""The marks by which a store knows its machines again."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import InputError
from orchestrator.server.backends import machines, ray_machines
from orchestrator.store import open_store


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("http://head:8265", "http://HEAD:8265/", True),
        ("http://head", "http://head:80", True),
        ("http://127.0.0.1:8265", "http://localhost:8265", True),
        ("http://head:8265", "http://head:8266", False),
        ("http://head:8265", "http://other:8265", False),
        ("http://127.0.0.1:8265", "http://head.example:8265", False),
    ],
)
def test_a_ray_is_known_by_host_and_port(one: str, other: str, same: bool) -> None:
    assert bool(ray_machines(one).marks & ray_machines(other).marks) is same


def test_an_address_without_its_closing_bracket_is_refused() -> None:
    with pytest.raises(InputError, match="give the address of Ray's dashboard"):
        machines("http://[::1:8265", open_store("sqlite://"), Path("unused"))


def test_a_loopback_address_is_another_cluster_on_each_machine() -> None:
    assert "127.0.0.1" not in str(ray_machines("http://127.0.0.1:8265").marks)


def test_this_machine_is_known_by_the_folder_of_its_programs_wherever_that_is_moved(tmp_path: Path) -> None:
    store = open_store("sqlite://")
    first = machines(None, store, tmp_path / "a").machines
    assert machines(None, store, tmp_path / "a").machines == first
    assert not machines(None, store, tmp_path / "b").machines.marks & first.marks
    (tmp_path / "a").rename(tmp_path / "c")
    assert machines(None, store, tmp_path / "c").machines.marks == first.marks
    store.close()
