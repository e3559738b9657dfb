"""Input and output of a simulation. Times are in seconds from the zero of the trace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.scheduling.forecast.queue_simulation import Attempt  # it imports numpy


@dataclass(frozen=True)
class TraceJob:
    """A job of a trace, with its submission time and running time in the trace."""

    submit_s: float
    duration_s: float
    num_gpus: int
    tenant: str
    priority: int = 0  # jobs with a higher priority start first


@dataclass(frozen=True)
class Setup:
    """The cluster and the conditions of a simulation."""

    nodes: int
    gpus_per_node: int = 8
    policy: str = "default"
    preemption_cost_s: float = 60.0  # seconds that each interruption adds to the remaining work
    jitter: int = 0  # seed of delays of up to 10 s of submissions, of `noise` and of failures; 0: no delays
    measured_after_s: float = 600.0  # seconds of running after which the remaining time of a job is measured
    noise: float = 0.2  # standard deviation of log(measured / true remaining time)
    failures_per_node_day: float = 0.0
    repair_s: float = 3600.0  # seconds until a failed node is back
    checkpoint_every_s: float = 1800.0  # seconds between checkpoints; a failing node costs at most this much work


@dataclass(frozen=True)
class Simulated:
    """A finished simulation. All figures follow from `jobs` and `attempts`."""

    jobs: tuple[TraceJob, ...]
    attempts: tuple[Attempt, ...]  # ordered by their ends; a row is an index into `jobs`
    setup: Setup
    wall_s: float  # duration of the simulation itself
