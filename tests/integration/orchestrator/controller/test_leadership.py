"""Leadership while a pass takes longer than its term, on a real clock with a short term."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.controller.keeping import Keeper
from orchestrator.controller.leadership import Leading
from orchestrator.queue.clock import SystemClock
from orchestrator.queue.errors import NotLeader
from orchestrator.queue.store import Store
from orchestrator.store import open_store

TERM_S = 0.4


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with contextlib.closing(open_store(f"{tmp_path}/queue.db")) as opened:
        yield opened


def leading(store: Store, name: str) -> Leading:
    return Leading(store, SystemClock(), name, f"http://{name}", TERM_S)


def works(other: Leading, for_s: float = 3 * TERM_S) -> bool:
    """A pass takes long, while another server looks whether it may lead; whether it did."""
    until_s, led = time.monotonic() + for_s, False
    while time.monotonic() < until_s:
        led = other.renew() or led
        time.sleep(0.02)
    return led


def test_a_pass_that_takes_longer_than_the_term_keeps_the_leadership(store: Store) -> None:
    first, second = leading(store, "first"), leading(store, "second")
    keeper = Keeper(first)
    keeper.start()
    assert first.renew()
    epoch = first.epoch
    with keeper.working():
        assert not works(second)
        first.go_on(epoch)
    assert first.epoch == epoch
    keeper.end()


def test_a_pass_that_hangs_does_not_keep_it_for_ever_and_an_idle_server_is_not_kept(store: Store) -> None:
    first, second = leading(store, "first"), leading(store, "second")
    keeper = Keeper(first, most_s=0.0)
    keeper.start()
    assert first.renew()
    epoch = first.epoch
    with keeper.working():
        assert works(second)
    with pytest.raises(NotLeader):
        first.go_on(epoch)
    keeper.end()
