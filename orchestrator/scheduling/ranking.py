"""Where each job stands: its class, and its index within the class; the lower goes first."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from orchestrator.scheduling.job_table import Floats, Rows
from orchestrator.scheduling.policy import Order, Policy
from orchestrator.scheduling.quota import NOT_ENTITLED, Limits, entitlements
from orchestrator.scheduling.snapshot import Snapshot

_LEAST_S = 60.0  # nothing is expected to take less
_STEP = 1e-6  # keeps the jobs of the lane in order


@dataclass(frozen=True)
class Standing:
    """All arrays are [rows].

    Attributes:
        index: within the class; in seconds for Order.EXPECTED.
        level: the class. A job that has waited too long stands above all.
        entitlement: the kind of nodes that its tenant's guarantee is of (see `quota`); None where nobody has one.
        lane: among those that have waited longest.
        waited_s: for GPUs, in all.
        weight: of its size; the index of Order.EXPECTED is time over this.
    """

    index: Floats
    level: NDArray[np.int32]
    entitlement: NDArray[np.int32] | None
    lane: NDArray[np.bool_] | None
    waited_s: Floats
    weight: Floats

    @cached_property
    def one_class(self) -> bool:
        """Whether the index alone tells who goes first."""
        return self.entitlement is None and bool((self.level == self.level[:1]).all())

    def is_entitled(self, row: int) -> bool:
        return self.entitlement is not None and bool(self.entitlement[row] != NOT_ENTITLED)

    def order(self, rows: Rows, submitted_s: Floats) -> Rows:
        """Rows by who goes first."""
        keys: tuple[NDArray[np.generic], ...] = (submitted_s[rows], self.index[rows])
        if not self.one_class:
            keys = (*keys, -self.level[rows])
        if self.entitlement is not None:
            keys = (*keys, self.entitlement[rows] == NOT_ENTITLED)
        return rows[np.lexsort(keys)]


def standing(snapshot: Snapshot, policy: Policy) -> Standing:
    jobs = snapshot.jobs
    waited = jobs.waited_s + (snapshot.now_s - jobs.waiting_since_s) * snapshot.waiting
    weight = jobs.powered_sizes(policy.size_exponent)
    index = _INDICES[policy.order](snapshot, policy, weight)
    level, lane = jobs.priority, None
    if policy.lane_share > 0:
        rows = _longest_waiting(snapshot, policy, waited)
        if len(rows):
            index[rows] = np.minimum(index[rows], policy.lane_expected_s) * (1 + _STEP * np.arange(len(rows)))
            lane = np.zeros(jobs.rows, bool)
            lane[rows] = True
            level = _raised(jobs.priority, rows[waited[rows] > policy.most_wait_s])
    return Standing(index, level, entitlements(snapshot, index, level), lane, waited, weight)


def shares(snapshot: Snapshot, policy: Policy) -> Floats:
    """[tenants]; use over share against the mean of those who have jobs, to the power of `share_exponent`."""
    over = snapshot.used_s / snapshot.weights
    jobs = snapshot.jobs
    active = np.bincount(jobs.tenant, jobs.state, len(over)) > 0  # State.NOBODY is 0
    total = float(over @ active)
    if not total > 0:
        return np.ones(len(over))
    ratio = over * (int(active.sum()) / total)
    bounded: Floats = np.maximum(np.minimum(ratio, policy.share_bound), 1 / policy.share_bound)
    powered: Floats = bounded**policy.share_exponent
    return powered


def _by_submission(snapshot: Snapshot, policy: Policy, weight: Floats) -> Floats:
    return np.zeros(snapshot.jobs.rows)


def _by_attained(snapshot: Snapshot, policy: Policy, weight: Floats) -> Floats:
    jobs = snapshot.jobs
    attained = jobs.attained_s + np.where(snapshot.running, snapshot.now_s - jobs.started_s, 0.0)
    levels: Floats = (attained * jobs.size >= policy.attained_level_s).astype(float)
    return levels


def _by_share(snapshot: Snapshot, policy: Policy, weight: Floats) -> Floats:
    over: Floats = (snapshot.used_s / snapshot.weights)[snapshot.jobs.tenant]
    return over


def _by_expected(snapshot: Snapshot, policy: Policy, weight: Floats) -> Floats:
    """Shortest remaining time first, with what runs measure; see docs/decisions/0015 for weights and lane."""
    jobs = snapshot.jobs
    told = np.where(np.isnan(jobs.remaining_s), np.minimum(jobs.most_left_s, policy.untold_s), jobs.remaining_s)
    weighted: Floats = np.maximum(told, _LEAST_S) * shares(snapshot, policy)[jobs.tenant]
    return weighted / weight


_INDICES = {
    Order.SUBMITTED: _by_submission,
    Order.ATTAINED: _by_attained,
    Order.SHARE: _by_share,
    Order.EXPECTED: _by_expected,
}


def _longest_waiting(snapshot: Snapshot, policy: Policy, waited_s: Floats) -> Rows:
    """Those who share the lane, the longest waiting first. The first is there however large it is.

    Who waits for the limit of its tenant is not, since it would only keep others out.
    """
    jobs = snapshot.jobs
    running = snapshot.running
    rows = ((waited_s > policy.lane_after_s) & (running | snapshot.waiting)).nonzero()[0]
    if len(rows) and (limits := Limits(snapshot)):
        rows = rows[running[rows] | ~limits.stopped(jobs, rows)]
    if not len(rows):
        return rows
    counted = waited_s[rows] * np.where(running[rows], policy.lane_stay, 1.0)
    by_wait = rows[np.lexsort((jobs.submitted_s[rows], -counted))]
    sizes = jobs.size[by_wait]
    first: Rows = by_wait[sizes.cumsum() - sizes < policy.lane_share * snapshot.cluster.total]
    return first


def _raised(priority: NDArray[np.int32], rows: Rows) -> NDArray[np.int32]:
    if not len(rows):
        return priority
    raised = priority.copy()
    raised[rows] = priority.max() + 1
    return raised
