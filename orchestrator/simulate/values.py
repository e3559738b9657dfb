"""What goes into a simulation and what comes out. Values only; all times in seconds, from the trace's own zero."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True)
class TraceJob:
    """One job of a trace, as it was submitted and as long as it ran there."""

    submit_s: float
    duration_s: float
    num_gpus: int
    tenant: str
    priority: int = 0  # higher goes first


class Ended(StrEnum):
    """Why a stretch ended."""

    FINISHED = "finished"
    PREEMPTED = "preempted"
    MOVED = "moved"  # preempted, and started elsewhere at the same instant
    NODE_FAILED = "node_failed"


@dataclass(frozen=True)
class Stretch:
    """One uninterrupted run of a job.

    `lost_s` is what the interruption at its end added to the job's remaining work: what an interruption costs and,
    where a node failed, the work since the newest checkpoint. 0 where the job finished.
    """

    job: int  # 0-based row of the trace
    start_s: float
    end_s: float
    placement: tuple[tuple[int, int], ...]  # (node, GPUs there)
    ended: Ended
    lost_s: float = 0.0


@dataclass(frozen=True)
class Setup:
    """The cluster and the circumstances that a trace is run under."""

    nodes: int
    gpus_per_node: int = 8
    policy: str = "default"
    preemption_cost_s: float = 60.0  # added to the remaining work at each interruption
    jitter: int = 0  # seed: each submission comes up to 10 s later; 0 leaves the trace as it is
    measured_after_s: float = 600.0  # a run knows its remaining time only after so much running
    noise: float = 0.2  # standard deviation of the logarithm of measured over true remaining time
    failures_per_node_day: float = 0.0
    repair_s: float = 3600.0  # how long a failed node stays away
    checkpoint_every_s: float = 1800.0  # what a failing node can cost at most


@dataclass(frozen=True)
class Simulated:
    """A finished simulation. All figures follow from `jobs` and `stretches`."""

    jobs: tuple[TraceJob, ...]
    stretches: tuple[Stretch, ...]  # in order of their ends
    setup: Setup
    wall_s: float  # how long simulating took
    passes: int  # how often the scheduler was asked
