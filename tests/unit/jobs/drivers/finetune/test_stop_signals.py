"""What a request to stop does to a driver: signals, and what other threads ask."""

from __future__ import annotations

import contextlib
import importlib
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster.errors import Interrupted
from jobs.drivers import stop_request
from jobs.drivers.stop_request import StopKind, Stopped, StopRelay, StopRequest
from jobs.run.paths import JobPaths


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time at which signals arrive, in seconds."""
    now = [100.0]
    monkeypatch.setattr(stop_request, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def nothing(*_: object, **__: object) -> None:
    pass


def relay_of(stop: StopRequest, folder: Path) -> StopRelay:
    return StopRelay(stop, JobPaths(str(folder)), nothing)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
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


def test_under_nohup_the_end_of_the_terminal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.asked
    finally:
        signal.signal(signal.SIGHUP, before)


def test_before_training_what_another_thread_asks_interrupts_a_wait_once() -> None:
    """As a heartbeat asks. Later requests do not disturb the end."""
    stop = StopRequest(patient=True)
    asks = threading.Timer(0.3, stop.ask, ("heartbeat", "paused"))

    def wait() -> None:
        try:
            asks.start()
            time.sleep(300)
            pytest.fail("nothing has interrupted it")
        finally:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGALRM)
            ended.append(True)

    ended: list[bool] = []
    with stop:
        with pytest.raises(Stopped), stop.raising():
            wait()
        signal.raise_signal(signal.SIGTERM)  # as while the outcome is written
    assert ended
    asks.join()
    assert (stop.source, stop.reason) == ("heartbeat", "paused")


@pytest.mark.parametrize("request_comes_from", ["signal", "heartbeat"])
def test_a_request_whose_exception_was_dropped_interrupts_again(request_comes_from: str) -> None:
    """As Cython modules drop it while they are imported. Nobody asks a second time."""
    dropped = 0

    def prepare(asks: Callable[[], object]) -> None:
        nonlocal dropped
        for _ in range(2):
            with contextlib.suppress(KeyboardInterrupt):
                asks()
                time.sleep(300)
            dropped += 1
            asks = nothing
        time.sleep(300)

    with StopRequest() as stop, stop.raising():
        asks: dict[str, Callable[[], object]] = {
            "signal": lambda: signal.raise_signal(signal.SIGTERM),
            "heartbeat": threading.Timer(0.1, stop.ask, ("heartbeat", "paused")).start,
        }
        with pytest.raises(Stopped):
            prepare(asks[request_comes_from])
    assert dropped == 2 and stop.kind is StopKind.AFTER_CHECKPOINT


def test_python_s_own_import_functions_are_not_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two instructions they hold the lock of all imports: a thread that imports would wait for ever."""
    finished: list[bool] = []

    class Finder:
        def find_spec(self, *_: object) -> None:
            stop._arrived(signal.SIGTERM, sys._getframe(1))  # as if the caller had been interrupted
            finished.append(True)

    def prepare() -> None:
        monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
        with contextlib.suppress(ImportError):
            importlib.import_module("no_module_of_this_name")
        time.sleep(300)

    with StopRequest() as stop, stop.raising(), pytest.raises(Stopped):
        prepare()
    assert finished and stop.kind is StopKind.AFTER_CHECKPOINT


def test_one_that_is_handled_for_longer_and_dropped_then_interrupts_again() -> None:
    """As where an import is tried, and another one if it fails."""

    def prepare() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException:
            time.sleep(1.3)
        time.sleep(300)

    with StopRequest() as stop, stop.raising(), pytest.raises(Stopped):
        prepare()


def test_nothing_interrupts_what_writes_the_end_and_a_timer_of_somebody_else_goes_on() -> None:
    signal.setitimer(signal.ITIMER_REAL, 600.0)
    try:
        with StopRequest() as stop:
            with pytest.raises(Stopped), stop.raising():
                signal.raise_signal(signal.SIGTERM)
            assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0), "SIGALRM would kill a process that ends now"
            signal.raise_signal(signal.SIGTERM)
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 500.0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)


def test_a_request_whose_exception_was_dropped_is_seen_when_training_begins() -> None:
    with StopRequest(patient=True) as stop:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped):
            stop.defer()


def test_during_training_the_first_asks_for_an_end_and_the_second_ends(tmp_path: Path, clock: list[float]) -> None:
    with StopRequest() as stop:
        relay = relay_of(stop, tmp_path)
        stop.defer()
        relay.check()
        assert not (tmp_path / "stop").exists()
        signal.raise_signal(signal.SIGTERM)
        relay.check()
        assert (tmp_path / "stop").read_text() == "signal" and stop.kind is StopKind.AFTER_CHECKPOINT
        clock[0] += 0.9
        signal.raise_signal(signal.SIGTERM)
        relay.check()  # `timeout` sends it twice
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Interrupted, match="twice"):
            relay.check()


def test_a_patient_one_asks_once_however_many_come(tmp_path: Path) -> None:
    with StopRequest(patient=True) as stop:
        stop.defer()
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
            relay_of(stop, tmp_path).check()
    assert (tmp_path / "stop").exists()


@pytest.mark.parametrize(
    ("number", "patient", "hint"),
    [(signal.SIGINT, False, True), (signal.SIGTERM, False, False), (signal.SIGINT, True, False)],
)
def test_only_one_who_has_pressed_ctrl_c_and_may_do_so_again_is_told(
    tmp_path: Path, number: signal.Signals, patient: bool, hint: bool
) -> None:
    """SIGTERM comes from a queue, Ray or `kill`; the driver of a queue's job counts further signals as the first."""
    told: list[str] = []
    with StopRequest(patient=patient) as stop:
        stop.defer()
        signal.raise_signal(number)
        StopRelay(stop, JobPaths(str(tmp_path)), lambda _, message: told.append(message)).check()  # type: ignore[arg-type]
    (message,) = told
    assert message.endswith("; Ctrl-C again ends at once" if hint else f": {number.name}")


def test_a_signal_after_the_file_is_the_first_one(tmp_path: Path, clock: list[float]) -> None:
    with StopRequest() as stop:
        stop.defer()
        stop.ask("file", "fleetune stop")
        signal.raise_signal(signal.SIGINT)
        relay_of(stop, tmp_path).check()
        clock[0] += 0.09
        signal.raise_signal(signal.SIGINT)
        relay_of(stop, tmp_path).check()  # `timeout --signal=INT` sends it twice
        clock[0] += 0.11
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
