"""Where a job can be, why it is there, and where it may go. A table; nothing here acts.

A state says where, a reason says why, and what somebody has asked for (`Wanted`) is a field of its own: a job that is
to be cancelled is still RUNNING until it has stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class State(StrEnum):
    QUEUED = "queued"  # waits: for GPUs, for other jobs, for a time, or for its owner
    STARTING = "starting"  # holds a lease; its driver was asked for and has not registered
    RUNNING = "running"
    STOPPING = "stopping"  # holds its lease until it is seen to have stopped
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})
HOLDS_A_LEASE = frozenset({State.STARTING, State.RUNNING, State.STOPPING})

MAY_GO_TO: Mapping[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.STARTING, State.CANCELLED, State.FAILED}),
    State.STARTING: frozenset({State.RUNNING, State.STOPPING, State.SUCCEEDED}),
    State.RUNNING: frozenset({State.STOPPING, State.SUCCEEDED}),
    State.STOPPING: frozenset({State.QUEUED, State.SUCCEEDED, State.FAILED, State.CANCELLED}),
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
}


class Wanted(StrEnum):
    """What its owner wants of a job."""

    RUN = "run"
    PAUSE = "pause"
    CANCEL = "cancel"


class Reason(StrEnum):
    """Why a job is in its state. What stops a job decides where it lands (`orchestrator.queue.retry`)."""

    SUBMITTED = "submitted"
    RETRIED = "retried"  # by its owner, after its end
    GRANTED = "granted"  # a lease
    ANSWERED = "answered"  # its driver has
    FINISHED = "finished"
    # of stopping; the job goes back to the queue:
    PREEMPTED = "preempted"
    RECLAIMED = "reclaimed"
    MOVED = "moved"
    MAINTENANCE = "maintenance"
    RESIZED = "resized"  # it goes on with fewer workers or with more; no interruption that counts
    DRAINED = "drained"
    PAUSED = "paused"
    NODE_LOST = "node-lost"
    DRIVER_LOST = "driver-lost"  # it ended without an outcome
    DRIVER_KILLED = "driver-killed"  # by SIGKILL, as the kernel does where memory is short
    OUT_OF_MEMORY = "out-of-memory"  # its driver says so
    SILENT = "silent"  # its driver ran, and did not register or was not heard for too long
    NOT_STARTED = "not-started"  # the cluster did not take it
    # of stopping; the job ends:
    CANCELLED = "cancelled"
    TIMED_OUT = "timed-out"  # max_runtime_s
    BAD_INPUT = "bad-input"  # it would fail again
    RUN_FAILED = "run-failed"
    # of ending in the queue:
    PARENT_FAILED = "parent-failed"


DRIVER_ENDED = (Reason.DRIVER_LOST, Reason.DRIVER_KILLED)
