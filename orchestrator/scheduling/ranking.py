"""The ranking of jobs: the priority class of each, and a score within the class. Lower scores go first."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from orchestrator.scheduling.job_table import Floats, Rows
from orchestrator.scheduling.policy import Policy, RankBy
from orchestrator.scheduling.quota import NOT_ENTITLED, Limits, entitlements
from orchestrator.scheduling.snapshot import Snapshot

_LEAST_S = 60.0  # lower bound of an expected time
_STEP = 1e-6  # relative difference of scores that keeps guarded jobs in order


@dataclass(frozen=True)
class Ranking:
    """The ranking of all jobs. All arrays are [rows].

    Attributes:
        score: within the priority class, the lower goes first; in seconds for RankBy.EXPECTED.
        priority_class: higher classes go first.
        entitlement: the kind of nodes of its tenant's guarantee (see `quota`); None: no tenant has a guarantee.
        guarded: whether the job is among those that have waited longest (a starvation guard); None: there are none.
        waited_s: total time that the job has waited for its gang.
        weight: weight of the gang's size; the score of RankBy.EXPECTED is time divided by it.
    """

    score: Floats
    priority_class: NDArray[np.int32]
    entitlement: NDArray[np.int32] | None
    guarded: NDArray[np.bool_] | None
    waited_s: Floats
    weight: Floats

    @cached_property
    def one_class(self) -> bool:
        """Whether the score alone decides the order."""
        return self.entitlement is None and bool((self.priority_class == self.priority_class[:1]).all())

    def is_entitled(self, row: int) -> bool:
        return self.entitlement is not None and bool(self.entitlement[row] != NOT_ENTITLED)

    def order(self, rows: Rows, submitted_s: Floats) -> Rows:
        """Sort rows by ranking."""
        keys: tuple[NDArray[np.generic], ...] = (submitted_s[rows], self.score[rows])
        if not self.one_class:
            keys = (*keys, -self.priority_class[rows])
        if self.entitlement is not None:
            keys = (*keys, self.entitlement[rows] == NOT_ENTITLED)
        return rows[np.lexsort(keys)]


def ranking(snapshot: Snapshot, policy: Policy) -> Ranking:
    jobs = snapshot.jobs
    waited = jobs.waited_s + (snapshot.now_s - jobs.waiting_since_s) * snapshot.waiting
    weight = jobs.powered_sizes(policy.size_exponent)
    score = _SCORES[policy.order](snapshot, policy, weight)
    priority_class, guarded = jobs.priority, None
    if policy.guarded_share > 0:
        rows = _longest_waiting(snapshot, policy, waited)
        if len(rows):
            score[rows] = np.minimum(score[rows], policy.guarded_expected_s) * (1 + _STEP * np.arange(len(rows)))
            guarded = np.zeros(jobs.rows, bool)
            guarded[rows] = True
            priority_class = _raised(jobs.priority, rows[waited[rows] > policy.most_wait_s])
    return Ranking(score, priority_class, entitlements(snapshot, score, priority_class), guarded, waited, weight)


def shares(snapshot: Snapshot, policy: Policy) -> Floats:
    """[tenants]; use over share, relative to the mean of tenants with jobs, to the power of `share_exponent`."""
    over = snapshot.used_s / snapshot.weights
    jobs = snapshot.jobs
    active = np.bincount(jobs.tenant, jobs.state, len(over)) > 0  # NOBODY is 0, so that free rows do not count
    total = float(over @ active)
    if not total > 0:
        return np.ones(len(over))
    ratio = over * (int(active.sum()) / total)
    return np.clip(ratio, 1 / policy.share_bound, policy.share_bound) ** policy.share_exponent


def _by_submission(snapshot: Snapshot, policy: Policy, weight: Floats) -> Floats:
    return np.zeros(snapshot.jobs.rows)


def _by_attained(snapshot: Snapshot, policy: Policy, weight: Floats) -> Floats:
    jobs = snapshot.jobs
    attained = jobs.attained_s + np.where(snapshot.running, snapshot.now_s - jobs.started_s, 0.0)
    return (attained * jobs.size >= policy.attained_level_s).astype(float)


def _by_share(snapshot: Snapshot, policy: Policy, weight: Floats) -> Floats:
    return (snapshot.used_s / snapshot.weights)[snapshot.jobs.tenant]


def _by_expected(snapshot: Snapshot, policy: Policy, weight: Floats) -> Floats:
    """Shortest remaining time first, as runs measure it; docs/decisions/0015 explains the weights and the guard."""
    jobs = snapshot.jobs
    told = np.minimum(jobs.most_left_s, np.where(np.isnan(jobs.remaining_s), policy.untold_s, jobs.remaining_s))
    return np.maximum(told, _LEAST_S) * shares(snapshot, policy)[jobs.tenant] / weight


_SCORES = {
    RankBy.SUBMITTED: _by_submission,
    RankBy.ATTAINED: _by_attained,
    RankBy.SHARE: _by_share,
    RankBy.EXPECTED: _by_expected,
}


def _longest_waiting(snapshot: Snapshot, policy: Policy, waited_s: Floats) -> Rows:
    """Return the guarded jobs, longest wait first.

    Jobs that need GPUs are counted against the cluster's GPUs, the others against its CPUs. The first of either is
    included however large it is.

    A job that waits for its tenant's limit is left out: it cannot start and would only keep others out.
    """
    jobs = snapshot.jobs
    running = snapshot.running
    rows = ((waited_s > policy.guarded_after_s) & (running | snapshot.waiting)).nonzero()[0]
    if len(rows) and (limits := Limits(snapshot)):
        rows = rows[running[rows] | ~limits.stopped(jobs, rows)]
    if not len(rows):
        return rows
    counted = waited_s[rows] * np.where(running[rows], policy.guarded_stay, 1.0)
    by_wait = rows[np.lexsort((jobs.submitted_s[rows], -counted))]
    needs_gpus = np.array([gang.gpus_per_worker > 0 for gang in jobs.gangs])[jobs.gang[by_wait]]
    fits = np.zeros(len(by_wait), bool)
    for group, total in ((needs_gpus, snapshot.cluster.total_gpus), (~needs_gpus, snapshot.cluster.total_cpus)):
        sizes = jobs.size[by_wait[group]]
        fits[group] = sizes.cumsum() - sizes < policy.guarded_share * total
    return by_wait[fits]


def _raised(priority: NDArray[np.int32], rows: Rows) -> NDArray[np.int32]:
    if not len(rows):
        return priority
    raised = priority.copy()
    raised[rows] = priority.max() + 1
    return raised
