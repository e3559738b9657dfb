"""Leadership while a pass takes longer than its term."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.testing import FakeClock
from orchestrator.controller.leadership import LeaderElection, LeadershipRenewal
from orchestrator.queue.errors import NotLeader
from orchestrator.queue.store import Store
from orchestrator.store import open_store
from tests.support.processes import wait_for

TERM_S = 0.4
LOOKS = 6  # of another server, half a term apart


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with contextlib.closing(open_store(f"{tmp_path}/queue.db")) as opened:
        yield opened


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(1000.0)


def server(store: Store, clock: FakeClock, name: str) -> LeaderElection:
    return LeaderElection(store, clock, name, f"http://{name}", TERM_S)


def test_a_pass_that_takes_longer_than_the_term_keeps_the_leadership(store: Store, clock: FakeClock) -> None:
    first, second = server(store, clock, "first"), server(store, clock, "second")
    renewal = LeadershipRenewal(first)
    renewal.start()
    assert first.renew()
    epoch = first.epoch
    with renewal.working():
        for _ in range(LOOKS):
            clock.advance(TERM_S / 2)
            wait_for(lambda: getattr(store.leader(), "expires_s", 0.0) > clock() + TERM_S * 0.9, "it is renewed")
            assert not second.renew()
        first.go_on(epoch)
    assert first.epoch == epoch
    renewal.end()


def test_a_pass_that_hangs_does_not_keep_it_for_ever_and_an_idle_server_is_not_kept(
    store: Store, clock: FakeClock
) -> None:
    first, second = server(store, clock, "first"), server(store, clock, "second")
    renewal = LeadershipRenewal(first, most_s=0.0)
    renewal.start()
    assert first.renew()
    epoch = first.epoch
    with renewal.working():
        led = False
        for _ in range(LOOKS):
            clock.advance(TERM_S / 2)
            led = second.renew() or led
        assert led
    with pytest.raises(NotLeader):
        first.go_on(epoch)
    renewal.end()
