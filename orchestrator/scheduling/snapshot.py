"""A snapshot: jobs, machines, tenants and the time. A plan reads nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cluster.capacity.occupancy import Occupancy
from orchestrator.queue.tenants import Tenant
from orchestrator.scheduling.job_table import RUNNING, WAITING, Floats, JobTable


@dataclass(frozen=True)
class Snapshot:
    """The queue and the cluster at one moment.

    Attributes:
        now_s: the time, on the clock of all times in `jobs`.
        used_s: [tenants]; decayed GPU-seconds that each has used (`Policy.share_half_life_s`).
        parents: rows of the jobs that must end first, for each HELD job that waits for others.
        sizes: numbers of workers that each elastic job can have, ascending. In `jobs`, a waiting job has the fewest, a
            running one those that it runs with.
        grows: whether running jobs may grow. False while jobs that do not wait yet are about to.
    """

    now_s: float
    jobs: JobTable
    cluster: Occupancy
    tenants: tuple[Tenant, ...]
    used_s: Floats
    parents: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    sizes: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    grows: bool = True

    @cached_property
    def weights(self) -> Floats:
        """[tenants]; weight of each."""
        return np.array([tenant.weight for tenant in self.tenants], float)

    @cached_property
    def waiting(self) -> NDArray[np.bool_]:
        """[rows]; jobs that could start if they fitted."""
        return np.equal(self.jobs.state, WAITING) & (self.jobs.not_before_s <= self.now_s)

    @cached_property
    def running(self) -> NDArray[np.bool_]:
        """[rows]; jobs that run."""
        return np.equal(self.jobs.state, RUNNING)

    @cached_property
    def left_s(self) -> Floats:
        """[rows]; upper bound of each job's remaining time: measured, else declared, else inf."""
        jobs = self.jobs
        return np.where(np.isnan(jobs.remaining_s), jobs.most_left_s, jobs.remaining_s)

    @cached_property
    def ends_s(self) -> Floats:
        """[rows]; when each running job is expected to end; inf: unknown."""
        return np.where(self.running, self.now_s + self.left_s, np.inf)

    @cached_property
    def kinds(self) -> NDArray[np.int32]:
        """[rows]; the kind of the nodes that each job is on; -1: on none."""
        kinds = np.full(self.jobs.rows, -1, np.int32)
        nodes, places = (self.cluster.slots >= 0).nonzero()
        kinds[self.cluster.slots[nodes, places]] = self.cluster.kinds[nodes]
        return kinds
