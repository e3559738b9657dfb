"""States of a job, reasons, and allowed transitions, as tables. Nothing here acts.

A state says where the job is, a reason says why. What its owner asked for is a separate field (`DesiredState`): a job
that is to be cancelled stays RUNNING until it has stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class State(StrEnum):
    QUEUED = "queued"  # waits for slots, for other jobs, for a time, or for its owner
    STARTING = "starting"  # holds a lease; its driver was started and has not registered yet
    RUNNING = "running"
    STOPPING = "stopping"  # holds its lease until it is seen to have stopped
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})
UNFINISHED = tuple(state for state in State if state not in ENDED)
HOLDS_A_LEASE = frozenset({State.STARTING, State.RUNNING, State.STOPPING})

MAY_GO_TO: Mapping[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.STARTING, State.CANCELLED, State.FAILED}),
    State.STARTING: frozenset({State.RUNNING, State.STOPPING, State.SUCCEEDED}),
    State.RUNNING: frozenset({State.STOPPING, State.SUCCEEDED}),
    State.STOPPING: frozenset({State.QUEUED, State.SUCCEEDED, State.FAILED, State.CANCELLED}),
    **dict.fromkeys(ENDED, frozenset[State]()),
}


class DesiredState(StrEnum):
    """What the owner of a job wants it to do."""

    RUN = "run"
    PAUSE = "pause"
    CANCEL = "cancel"


class Reason(StrEnum):
    """Why a job is in its state. The reason of a stop decides where the job goes (`orchestrator.queue.retry`)."""

    SUBMITTED = "submitted"
    RETRIED = "retried"  # by its owner, after its end
    GRANTED = "granted"  # a lease was granted
    ANSWERED = "answered"  # its driver has registered
    FINISHED = "finished"
    # reasons for stopping after which the job goes back to the queue:
    PREEMPTED = "preempted"
    RECLAIMED = "reclaimed"
    MOVED = "moved"
    RESIZED = "resized"  # it goes on with more or fewer workers; does not count as an interruption
    DRAINED = "drained"
    PAUSED = "paused"
    NODE_LOST = "node-lost"
    DRIVER_LOST = "driver-lost"  # its driver ended without an outcome
    DRIVER_KILLED = "driver-killed"  # by SIGKILL, as the kernel does when memory is short
    OUT_OF_MEMORY = "out-of-memory"  # reported by its driver
    SILENT = "silent"  # its driver ran, but did not register, or was not heard for too long
    NOT_STARTED = "not-started"  # the cluster did not start its driver
    # reasons for stopping after which the job ends:
    CANCELLED = "cancelled"
    TIMED_OUT = "timed-out"  # its max_runtime_s is over
    BAD_INPUT = "bad-input"  # it would fail again
    DIVERGED = "diverged"  # its training diverged; another attempt would compute the same
    RUN_FAILED = "run-failed"
    # reasons for ending while it is queued:
    PARENT_FAILED = "parent-failed"


DRIVER_ENDED = (Reason.DRIVER_LOST, Reason.DRIVER_KILLED)
WOULD_FAIL_AGAIN = (Reason.BAD_INPUT, Reason.DIVERGED)  # no retry is offered
