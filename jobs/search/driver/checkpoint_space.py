"""The space that the checkpoints of all trials of a sweep may take (`checkpoints_gb`)."""

from __future__ import annotations

import threading

from jobs.errors import StorageError
from jobs.run.events import Announcer
from jobs.search.ledger import Ledger
from jobs.search.rules.rungs import trials_to_clear
from jobs.search.trial import Trial
from jobs.storage import files as storage


class CheckpointSpace:
    """Removes checkpoints of the worst trials. Its method may be called by any thread."""

    def __init__(self, ledger: Ledger, announce: Announcer) -> None:
        self._ledger, self._announce = ledger, announce
        self._lock = threading.Lock()

    def keep_within(self) -> None:
        """Remove checkpoints of the worst trials if all checkpoints together exceed the sweep's `checkpoints_gb`.

        Raises:
            StorageError: a checkpoint cannot be removed.
        """
        most, ledger = self._ledger.sweep.checkpoints_gb, self._ledger
        if most is None:
            return
        with self._lock:
            sizes = {trial.number: _size_of(trial) for trial in list(ledger.trials.values())}
            wanted = {*ledger.going_on, *(one.number for one in ledger.finalists if ledger.sweep.seeds > 1)}
            ranked = [trial for trial in ledger.ranked() if trial.number not in wanted and not self._comes_back(trial)]
            ranked.sort(key=lambda trial: trial.repeats is not None)  # their checkpoints go first
            for number in trials_to_clear(ranked, sizes, most * 1e9):
                trial = ledger.trials[number]
                ledger.stopped(trial, "its checkpoint made room for those of better trials")
                storage.remove_dir(trial.paths.checkpoints)
                said = f"removed the checkpoints of trial {number} ({sizes[number] / 1e9:.2f} GB)"
                self._announce("phase", said, phase="room")

    def _comes_back(self, trial: Trial) -> bool:
        """Whether a paused trial continues by itself: it was interrupted, or the scheduler does not pause at rungs."""
        return trial.state == "paused" and (self._ledger.sweep.scheduler != "halving" or not trial.scores)


def _size_of(trial: Trial) -> int:
    """Bytes of the trial's checkpoints."""
    try:
        return storage.size_of_dir(trial.paths.checkpoints)
    except StorageError:
        return 0  # looked at again after the next answer
