"""Retries: where a job goes after it has stopped, and how long it pauses before it may start again. Pure functions.

This depends on the reason of the stop. Each reason has a separate budget: fifty preemptions use up nothing of the
budget for failing nodes.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping

from cluster.backend import Phase, Submission
from cluster.errors import DIVERGED_EXIT, OUT_OF_MEMORY_EXIT, TRY_AGAIN_EXIT
from orchestrator.queue.records import Job
from orchestrator.queue.states import DRIVER_ENDED, DesiredState, Reason, State

# How often a job goes back to the queue for each reason; None: without limit.
BUDGETS: Mapping[Reason, int | None] = {
    Reason.PREEMPTED: None,
    Reason.RECLAIMED: None,
    Reason.MOVED: None,
    Reason.RESIZED: None,
    Reason.DRAINED: None,
    Reason.PAUSED: None,
    Reason.NODE_LOST: 20,
    Reason.DRIVER_LOST: 5,
    Reason.DRIVER_KILLED: 5,
    Reason.OUT_OF_MEMORY: 2,  # few, since a job that needs too much memory itself fails each time
    Reason.SILENT: 5,
    Reason.NOT_STARTED: 5,
}
_ENDS = {
    Reason.CANCELLED: State.CANCELLED,
    Reason.TIMED_OUT: State.FAILED,
    Reason.BAD_INPUT: State.FAILED,
    Reason.DIVERGED: State.FAILED,
    Reason.RUN_FAILED: State.FAILED,
}
_BACKS_OFF = (*DRIVER_ENDED, Reason.OUT_OF_MEMORY, Reason.SILENT, Reason.NOT_STARTED)
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 10.0, 600.0

BAD_INPUT_EXIT, INTERRUPTED_EXIT = 2, 130
_BY_EXIT_CODE: Mapping[int | None, tuple[Reason, str]] = {
    BAD_INPUT_EXIT: (Reason.BAD_INPUT, "the driver says that its input is wrong: see the log"),
    TRY_AGAIN_EXIT: (Reason.DRIVER_LOST, "the driver says that the machines failed it: see the log"),
    OUT_OF_MEMORY_EXIT: (Reason.OUT_OF_MEMORY, "the driver says that the job ran out of memory: see the log"),
    DIVERGED_EXIT: (Reason.DIVERGED, "the driver says that the training diverged: see the log"),
    INTERRUPTED_EXIT: (Reason.DRIVER_LOST, "the driver was told to end, as when a machine goes down"),
    # Nothing on the machine tells who sent the signal.
    -signal.SIGKILL: (Reason.DRIVER_KILLED, "the driver was killed, as happens where a machine runs out of memory"),
}


def state_after_stop(job: Job) -> tuple[State, str]:
    """Return the state that a STOPPING job goes to now that it has stopped, and one line of explanation.

    Raises:
        KeyError: the job's reason is not one for stopping.
    """
    if job.reason in _ENDS:
        return _ENDS[job.reason], job.message
    budget, spent = BUDGETS[job.reason], job.retries.get(job.reason, 0)
    if budget is None or spent < budget:
        return State.QUEUED, job.message
    return State.FAILED, f"{job.message or job.reason.value}; this was tried again {budget} times before"


def may_start_at_s(job: Job) -> float:
    """Return the earliest start of a QUEUED job. After a failure, it pauses for a time that grows with each retry."""
    earliest = job.not_before_s if job.not_before_s is not None else 0.0
    if job.reason in _BACKS_OFF:
        pause_s = _FIRST_PAUSE_S * 2.0 ** (job.retries.get(job.reason, 1) - 1)
        return max(earliest, job.waiting_since_s + min(pause_s, _LONGEST_PAUSE_S))
    return earliest


def waits_s(job: Job, now_s: float, parents_ended_s: float = 0.0) -> float:
    """Return how long a QUEUED job has waited for nodes since it was last queued; 0 for any other job.

    Time while it is paused, and time before its earliest start, do not count.
    """
    if job.state is not State.QUEUED or job.wanted is DesiredState.PAUSE:
        return 0.0
    return max(now_s - max(job.waiting_since_s, may_start_at_s(job), parents_ended_s), 0.0)


def why_ended(submission: Submission) -> tuple[Reason, str]:
    """Classify the end of a driver that was not stopped. Returns the reason and a message."""
    text = submission.message
    if submission.phase is Phase.SUCCEEDED:
        return Reason.FINISHED, text
    if submission.exit_code in _BY_EXIT_CODE:
        reason, usual = _BY_EXIT_CODE[submission.exit_code]
        return reason, text or usual
    if submission.phase is Phase.FAILED and submission.exit_code is not None and submission.exit_code > 0:
        return Reason.RUN_FAILED, text or f"the driver ended with exit code {submission.exit_code}: see the log"
    return Reason.DRIVER_LOST, text or "the driver is gone without an outcome"
