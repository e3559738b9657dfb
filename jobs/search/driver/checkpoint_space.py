"""Limits the space that the checkpoints of all trials of a sweep take (`checkpoints_gb`)."""

from __future__ import annotations

from cluster.errors import StorageError
from cluster.text import byte_size
from jobs.run.events import Announcer
from jobs.search.ledger import Ledger
from jobs.search.rules.rungs import trials_to_clear
from jobs.search.trial import Trial
from jobs.storage import files as storage


def limit_checkpoints(ledger: Ledger, announce: Announcer) -> None:
    """Remove checkpoints of the worst trials if all checkpoints together exceed the sweep's `checkpoints_gb`.

    One thread at a time may call this.

    Raises:
        StorageError: a checkpoint cannot be removed.
    """
    most = ledger.sweep.checkpoints_gb
    if most is None:
        return
    sizes = {trial.number: _size_of(trial) for trial in list(ledger.trials.values())}
    wanted = {*ledger.going_on, *(one.number for one in ledger.finalists)}  # a resume may ask for more seeds
    ranked = [trial for trial in ledger.ranked() if trial.number not in wanted and not _will_continue(ledger, trial)]
    ranked.sort(key=lambda trial: trial.repeats is not None)  # repeats last, so that theirs are removed first
    for number in trials_to_clear(ranked, sizes, most * 1e9):
        trial = ledger.trials[number]
        ledger.stopped(trial, "its checkpoints were removed to keep those of better trials")
        storage.remove_dir(trial.paths.checkpoints)
        said = f"removed the checkpoints of trial {number} ({byte_size(sizes[number])})"
        announce("phase", said, phase="room")


def _will_continue(ledger: Ledger, trial: Trial) -> bool:
    """Whether a trial will continue: it was interrupted or lost, or the scheduler does not pause trials at rungs."""
    return trial.lost or (trial.state == "paused" and (ledger.sweep.scheduler != "halving" or not trial.scores))


def _size_of(trial: Trial) -> int:
    """Return the bytes of the trial's checkpoints; 0 if they cannot be counted now."""
    try:
        return storage.size_of_dir(trial.paths.checkpoints)
    except StorageError:
        return 0
