"""What a signal does to a driver."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

import pytest

from jobs.drivers.finetune.stop_signals import StopSignals
from jobs.errors import Interrupted
from jobs.run.paths import JobPaths


def nobody(*_: object, **__: object) -> None:
    pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_before_training_it_passes_what_catches_every_error(tmp_path: Path, number: signal.Signals) -> None:
    """As functions of users, chat templates and storage are called."""

    def prepare() -> None:
        with StopSignals(JobPaths(str(tmp_path)), nobody):
            with contextlib.suppress(Exception):
                signal.raise_signal(number)
            pytest.fail("it went on")

    kept = signal.getsignal(number)
    with pytest.raises(Interrupted, match="while no workers were training"):
        prepare()
    assert signal.getsignal(number) is kept


def test_during_training_the_first_asks_for_an_end_and_the_second_ends(tmp_path: Path) -> None:
    paths = JobPaths(str(tmp_path))
    with StopSignals(paths, nobody) as signals:
        signals.graceful = True
        signals.check()
        assert not Path(paths.stop_request).exists()
        signal.raise_signal(signal.SIGTERM)
        signals.check()
        assert Path(paths.stop_request).exists()
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted, match="twice"):
            signals.check()


def test_a_patient_one_asks_once_however_many_come(tmp_path: Path) -> None:
    paths = JobPaths(str(tmp_path))
    with StopSignals(paths, nobody, patient=True) as signals:
        signals.graceful = True
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
            signals.check()
    assert Path(paths.stop_request).exists()
