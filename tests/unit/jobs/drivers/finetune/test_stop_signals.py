"""What a request to stop does to a driver: signals, and what other threads ask."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from pathlib import Path

import pytest

from cluster.errors import Interrupted
from jobs.drivers.stop_request import StopKind, Stopped, StopRelay, StopRequest
from jobs.run.paths import JobPaths


def nobody(*_: object, **__: object) -> None:
    pass


def relay_of(stop: StopRequest, folder: Path) -> StopRelay:
    return StopRelay(stop, JobPaths(str(folder)), nobody)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_before_training_it_passes_what_catches_every_error(number: signal.Signals) -> None:
    """As functions of users, chat templates and storage are called."""

    def prepare() -> None:
        with StopRequest():
            with contextlib.suppress(Exception):
                signal.raise_signal(number)
            pytest.fail("it went on")

    kept = signal.getsignal(number)
    with pytest.raises(Stopped, match="while no workers were training"):
        prepare()
    assert signal.getsignal(number) is kept


def test_before_training_what_another_thread_asks_interrupts_a_wait_once() -> None:
    """As a heartbeat asks. Later requests do not disturb the end."""
    stop = StopRequest(patient=True)
    asks = threading.Timer(0.3, stop.ask, ("heartbeat", "paused"))

    def wait() -> None:
        asks.start()
        time.sleep(300)
        pytest.fail("nothing has interrupted it")

    with stop:
        with pytest.raises(Stopped):
            wait()
        signal.raise_signal(signal.SIGTERM)
    asks.join()
    assert (stop.source, stop.reason) == ("heartbeat", "paused")


def test_a_request_whose_exception_was_swallowed_is_seen_when_training_begins() -> None:
    with StopRequest(patient=True) as stop:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped):
            stop.defer()


def test_during_training_the_first_asks_for_an_end_and_the_second_ends(tmp_path: Path) -> None:
    with StopRequest() as stop:
        relay = relay_of(stop, tmp_path)
        stop.defer()
        relay.check()
        assert not (tmp_path / "stop").exists()
        signal.raise_signal(signal.SIGTERM)
        relay.check()
        assert (tmp_path / "stop").read_text() == "signal" and stop.kind is StopKind.AFTER_CHECKPOINT
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted, match="twice"):
            relay.check()


def test_a_patient_one_asks_once_however_many_come(tmp_path: Path) -> None:
    with StopRequest(patient=True) as stop:
        stop.defer()
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
            relay_of(stop, tmp_path).check()
    assert (tmp_path / "stop").exists()


def test_a_signal_after_the_file_is_the_first_one(tmp_path: Path) -> None:
    with StopRequest() as stop:
        stop.defer()
        stop.ask("file", "fleetune stop")
        signal.raise_signal(signal.SIGINT)
        relay_of(stop, tmp_path).check()
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Interrupted, match="twice"):
            relay_of(stop, tmp_path).check()


def test_one_inside_another_gives_the_handlers_back_to_it() -> None:
    """As a run does that a queue's driver leads: signals count until the driver ends."""
    with StopRequest() as stop:
        with stop:
            stop.defer()
        signal.raise_signal(signal.SIGTERM)
        assert stop.asked
