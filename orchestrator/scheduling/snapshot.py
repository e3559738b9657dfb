"""All that a plan may look at: the jobs, the machines, the tenants, and what time it is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cluster.capacity.occupancy import Occupancy
from orchestrator.queue.tenants import Tenant
from orchestrator.scheduling.job_table import RUNNING, WAITING, Floats, JobTable, Rows


@dataclass(frozen=True)
class Window:
    """Maintenance: from `start_s` to `end_s` these nodes run nothing. None: all nodes."""

    start_s: float
    end_s: float
    nodes: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Snapshot:
    """One moment.

    Attributes:
        now_s: on the clock of all times in `jobs`.
        used_s: [tenants]; GPU-seconds that each has used, decayed (`Policy.share_half_life_s`).
        parents: of HELD jobs, the rows of those that must end before.
        sizes: of elastic jobs, the numbers of workers that they can have, ascending. A waiting one is in `jobs` with
            the fewest, a running one with those that it has.
        grows: whether running jobs may get more; not while others are about to wait that do not yet.
    """

    now_s: float
    jobs: JobTable
    cluster: Occupancy
    tenants: tuple[Tenant, ...]
    used_s: Floats
    windows: tuple[Window, ...] = ()
    parents: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    sizes: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    grows: bool = True

    @cached_property
    def weights(self) -> Floats:
        """[tenants]"""
        return np.array([tenant.weight for tenant in self.tenants], float)

    @cached_property
    def waiting(self) -> NDArray[np.bool_]:
        """[rows]; jobs that could start if there was room."""
        return np.equal(self.jobs.state, WAITING) & (self.jobs.not_before_s <= self.now_s)

    @cached_property
    def running(self) -> NDArray[np.bool_]:
        """[rows]"""
        return np.equal(self.jobs.state, RUNNING)

    @cached_property
    def left_s(self) -> Floats:
        """[rows]; how long each job runs at most as far as anybody knows: measured, else declared, else inf."""
        jobs = self.jobs
        return np.where(np.isnan(jobs.remaining_s), jobs.most_left_s, jobs.remaining_s)

    def leaves_s(self, rows: Rows, protected_s: float) -> Floats:
        """[rows]; when each is gone from nodes that close: at its end, or in some minutes if it may be interrupted."""
        ends: Floats = self.now_s + self.left_s[rows]
        return np.where(self.jobs.preemptible[rows], np.minimum(ends, self.now_s + protected_s), ends)

    def closes_s(self) -> list[float] | None:
        """[nodes]; when the next maintenance begins, -inf where there is one; None if none is planned."""
        ahead = [window for window in self.windows if window.end_s > self.now_s]
        if not ahead:
            return None
        until = [math.inf] * len(self.cluster.names)
        for window in ahead:
            start = window.start_s if window.start_s > self.now_s else -math.inf
            for node in range(len(until)) if window.nodes is None else window.nodes:
                until[node] = min(until[node], start)
        return until
