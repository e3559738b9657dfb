"""Input and output of a simulation. Values only; times are in seconds from the trace's zero."""

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
    priority: int = 0  # higher goes first


class Ended(StrEnum):
    """Why a stretch ended."""

    FINISHED = "finished"
    PREEMPTED = "preempted"
    MOVED = "moved"  # interrupted, and started elsewhere at the same instant
    NODE_FAILED = "node_failed"


@dataclass(frozen=True)
class Stretch:
    """One uninterrupted run of a job.

    `lost_s` is the work that the interruption at its end added: the cost of an interruption and, if a node failed, the
    work since the newest checkpoint. 0 if the job finished.
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
    jitter: int = 0  # random seed: each submission comes up to 10 s later; 0: unchanged
    measured_after_s: float = 600.0  # running time after which a run knows its remaining time
    noise: float = 0.2  # standard deviation of log(measured / true remaining time)
    failures_per_node_day: float = 0.0
    repair_s: float = 3600.0  # how long a failed node stays away
    checkpoint_every_s: float = 1800.0  # most work that a failing node can cost


@dataclass(frozen=True)
class Simulated:
    """A finished simulation. All figures follow from `jobs` and `stretches`."""

    jobs: tuple[TraceJob, ...]
    stretches: tuple[Stretch, ...]  # in the order of their ends
    setup: Setup
    wall_s: float  # duration of the simulation itself
    passes: int  # number of passes of the scheduler
