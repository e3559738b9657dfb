"""Input and output of a simulation. Times are in seconds from the zero of the trace."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True)
class TraceJob:
    """A job of a trace, with its submission and its run time there."""

    submit_s: float
    duration_s: float
    num_gpus: int
    tenant: str
    priority: int = 0  # jobs with a higher priority start first


class Ended(StrEnum):
    """Why an attempt ended."""

    FINISHED = "finished"
    PREEMPTED = "preempted"
    MOVED = "moved"  # interrupted, and started elsewhere at the same instant
    NODE_FAILED = "node_failed"


@dataclass(frozen=True)
class SimulatedAttempt:
    """One attempt of a job: from a start to an interruption, or to the end.

    `lost_s` is the work that the interruption at its end added: the cost of an interruption and, if a node failed, also
    the work since the newest checkpoint. It is 0 if the job finished.
    """

    job: int  # row of the trace, counted from 0
    start_s: float
    end_s: float
    placement: tuple[tuple[int, int], ...]  # (node, GPUs there)
    ended: Ended
    lost_s: float = 0.0


@dataclass(frozen=True)
class Setup:
    """The cluster and the conditions of a simulation."""

    nodes: int
    gpus_per_node: int = 8
    policy: str = "default"
    preemption_cost_s: float = 60.0  # seconds that each interruption adds to the remaining work
    jitter: int = 0  # seed of random delays of up to 10 s for each submission; 0: no delays
    measured_after_s: float = 600.0  # seconds of running after which the remaining time of a job is measured
    noise: float = 0.2  # standard deviation of log(measured / true remaining time)
    failures_per_node_day: float = 0.0
    repair_s: float = 3600.0  # seconds until a failed node is back
    checkpoint_every_s: float = 1800.0  # seconds between checkpoints; a failing node costs at most this much work


@dataclass(frozen=True)
class Simulated:
    """A finished simulation. All figures follow from `jobs` and `attempts`."""

    jobs: tuple[TraceJob, ...]
    attempts: tuple[SimulatedAttempt, ...]  # in the order of their ends
    setup: Setup
    wall_s: float  # duration of the simulation itself
    passes: int  # number of passes of the scheduler
