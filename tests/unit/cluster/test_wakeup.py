"""A wait that another thread or a signal handler ends."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cluster.wakeup import Wakeup


@pytest.fixture
def handled() -> Iterator[Callable[[Callable[..., Any]], None]]:
    """Call the function from the handler of a signal that arrives in 0.05 s."""
    kept = signal.getsignal(signal.SIGUSR1)
    sends = threading.Timer(0.05, signal.pthread_kill, (threading.main_thread().ident, signal.SIGUSR1))

    def handle(act: Callable[..., Any]) -> None:
        signal.signal(signal.SIGUSR1, act)
        sends.start()

    yield handle
    sends.join()  # without a handler, the signal would end this process
    signal.signal(signal.SIGUSR1, kept)


def took_s(wakeup: Wakeup, timeout_s: float) -> float:
    began = time.monotonic()
    wakeup.wait(timeout_s)
    return time.monotonic() - began


def test_what_is_set_before_the_wait_ends_it_at_once_and_counts_once() -> None:
    wakeup = Wakeup()
    wakeup.set()
    wakeup.set()
    assert took_s(wakeup, 60.0) < 30.0
    assert took_s(wakeup, 0.1) >= 0.1


def test_a_thread_ends_the_wait() -> None:
    wakeup = Wakeup()
    threading.Timer(0.05, wakeup.set).start()
    assert took_s(wakeup, 60.0) < 30.0


def test_a_handler_that_interrupts_the_wait_ends_it(handled: Callable[..., None]) -> None:
    wakeup = Wakeup()
    handled(lambda *_: wakeup.set())
    assert took_s(wakeup, 60.0) < 30.0


@pytest.mark.timeout(60)
def test_a_handler_that_outlasts_the_timeout_does_not_prolong_the_wait(handled: Callable[..., None]) -> None:
    handled(lambda *_: time.sleep(0.5))
    assert took_s(Wakeup(), 0.2) < 30.0
