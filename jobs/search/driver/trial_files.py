"""What users, lost gangs and earlier drivers have left in the directory of a trial."""

from __future__ import annotations

import contextlib

from cluster.errors import StorageError
from jobs.run.checkpoints import newest_step_if_known
from jobs.run.paths import JobPaths
from jobs.search.ledger import Unanswered
from jobs.search.trial import Trial
from jobs.storage import files as storage
from jobs.storage.journal import read_journal
from jobs.training.mailbox import Answer

_BY_THE_SWEEP = b"the sweep is stopped"  # content of a request to stop; any other one comes from a user


def ask_to_save_and_end(trial: JobPaths) -> None:
    """Ask a trial to stop because the sweep is stopped. A user's request stays. Raises StorageError."""
    if not storage.exists(trial.stop_request):
        storage.write_bytes(trial.stop_request, _BY_THE_SWEEP)


def user_asks_to_end(trial: JobPaths) -> bool:
    """Whether a user has asked to stop this trial for good. Raises StorageError."""
    return storage.exists(trial.stop_request) and storage.read_bytes(trial.stop_request) != _BY_THE_SWEEP


def remove_requests(trial: JobPaths) -> None:
    """Remove the outcome of a trial that goes on, and the requests of earlier drivers. Raises StorageError."""
    for gone in (trial.stop_request, trial.save_request, trial.outcome):
        storage.remove_file(gone)


def unanswered(trial: Trial, tokens_per_run: float) -> Unanswered | None:
    """Return what was trained without an answer, up to the newest checkpoint; None: nothing.

    The gang was lost, or the driver was killed. The next gang goes on from the checkpoint, and counts from there.

    Args:
        tokens_per_run: tokens of one whole run, for steps whose metrics are lost.
    """
    saved = newest_step_if_known(trial.paths)
    if saved <= trial.step:
        return None
    known, mean = _logged(trial.paths), (tokens_per_run / max(trial.total_steps, 1), 0.0)
    every = [known.get(step, mean) for step in range(trial.step + 1, saved + 1)]
    return Unanswered(saved, round(sum(tokens for tokens, _ in every)), sum(seconds for _, seconds in every))


def trained_before_failing(trial: Trial, answer: Answer) -> Unanswered | None:
    """Return what a failed trial was trained since its newest answer, which `answer` does not tell; None: nothing."""
    known = {step: spent for step, spent in _logged(trial.paths).items() if step > max(trial.step, answer.step)}
    if not known:
        return None
    seconds = 0.0 if answer.seconds else sum(seconds for _, seconds in known.values())
    return Unanswered(max(known), round(sum(tokens for tokens, _ in known.values())), seconds)


def _logged(run: JobPaths) -> dict[int, tuple[float, float]]:
    """Return tokens and seconds of the steps in a run's metrics, by step; empty if the storage fails."""
    found = dict[int, tuple[float, float]]()
    with contextlib.suppress(StorageError):
        for record in read_journal(run.metrics):
            if "tokens" in record:
                found[record["step"]] = (record["tokens"], record.get("step_time_s", 0.0))
    return found
