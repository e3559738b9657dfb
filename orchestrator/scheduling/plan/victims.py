"""Victims: which running jobs may be interrupted for which waiting jobs."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from orchestrator.scheduling.job_table import Floats
from orchestrator.scheduling.policy import Policy
from orchestrator.scheduling.quota import NOT_ENTITLED
from orchestrator.scheduling.ranking import Ranking
from orchestrator.scheduling.snapshot import Snapshot

_NOBODYS_HARM = (np.inf, 0.0, 0.0)
_CHANCE_S = 180.0  # bounds the cost of interrupting a job that would have ended soon


class Victims:
    """The running jobs of a snapshot, while a plan is made.

    A job yields only to jobs that go before it in the queue, so a preempted job cannot preempt the one that displaced
    it.

    Attributes:
        pause_s: [rows]; how long each attempt is protected from interruption.
        worth: [rows]; the score that is compared with a waiting job's: the job's own, less the cost of its
            interruption.
        movable: [rows]; running jobs that allow interruption and have not been interrupted too often.
        harm_by_slot: [rows + 3]; cost of stopping a job, for each of its slots: what it loses, and a penalty
            that grows as its end comes near. The last three are for slots that are FOREIGN, ABSENT or FREE.
    """

    def __init__(self, snapshot: Snapshot, ranking: Ranking, policy: Policy) -> None:
        jobs = self._jobs = snapshot.jobs
        self._snapshot, self._ranking, self._policy = snapshot, ranking, policy
        self.pause_s: Floats = policy.protected_s * (1.0 + jobs.interruptions / policy.protected_growth)
        self.movable = snapshot.running & jobs.preemptible & (jobs.interruptions < policy.most_interruptions)
        self.worth: Floats = ranking.score - policy.cost_margin * (jobs.interruption_cost_s / ranking.weight)
        harm = jobs.interruption_cost_s + 3600.0 * 3600.0 / (np.maximum(ranking.score, 0.0) + _CHANCE_S)
        self.harm_by_slot: Floats = np.concatenate((harm, _NOBODYS_HARM))
        self._may_go = self.movable & (snapshot.now_s + 1e-6 >= jobs.started_s + self.pause_s)
        self._one_class = ranking.one_class
        self._best = float(np.where(self._may_go, self.worth, -np.inf).max(initial=-np.inf))

    def gone(self, row: int) -> None:
        """Exclude a job that is interrupted already, or was started by this plan."""
        self._may_go[row] = False

    def movable_for(self, row: int) -> NDArray[np.bool_]:
        """[rows]; jobs that may be moved for this one: of no higher class, and entitled only if this one is."""
        if self._one_class:
            return self._may_go
        found = self.shrinkable_for(row)
        if self._ranking.entitlement is not None and not self._ranking.is_entitled(row):
            found = found & (self._ranking.entitlement == NOT_ENTITLED)
        return found

    def shrinkable_for(self, row: int) -> NDArray[np.bool_]:
        """[rows]; jobs that may shrink for this one. An elastic job's guarantee covers only its fewest workers."""
        found: NDArray[np.bool_] = self._may_go & (self._ranking.priority_class <= self._ranking.priority_class[row])
        return found

    def may_grow(self, rows: Iterable[int]) -> list[int]:
        """Return those of the rows that may be interrupted now, sorted by ranking."""
        score, submitted_s = self._ranking.score, self._jobs.submitted_s
        may = [row for row in rows if self._may_go[row]]
        return sorted(may, key=lambda row: (float(score[row]), float(submitted_s[row]), row))

    def open_to(self, row: int) -> NDArray[np.bool_]:
        """[rows]; jobs that may be interrupted now for this one."""
        return self.yields_to(row) & self._may_go

    def is_reclaimed(self, victim: int, row: int) -> bool:
        """Whether a running job holds lent slots that are guaranteed to this job's tenant."""
        entitlement, tenant = self._ranking.entitlement, self._jobs.tenant
        if entitlement is None or entitlement[row] == NOT_ENTITLED or tenant[row] == tenant[victim]:
            return False
        of_kind = entitlement[row] < 0 or entitlement[row] == self._snapshot.kinds[victim]
        return bool(of_kind and entitlement[victim] == NOT_ENTITLED)

    def yields_s(self, row: int) -> Floats:
        """[rows]; from when on each running job may be interrupted for this one; inf: never."""
        return np.where(self.yields_to(row) & self.movable, self._jobs.started_s + self.pause_s, np.inf)

    def nobody_yields_to(self, row: int) -> bool:
        """Whether no job may be interrupted for this one, nor for any that comes after it in the ranking."""
        return self._one_class and self._best <= self._threshold(row)

    def _threshold(self, row: int) -> float:
        return self._policy.margin * float(self._ranking.score[row])

    def yields_to(self, row: int) -> NDArray[np.bool_]:
        """[rows]; by ranking alone: a lower class always yields, a higher one never, the same one if it is worth it.

        An entitled job yields to its own tenant only, others also to jobs that are entitled to their slots.
        """
        worth = self.worth > self._threshold(row)
        if self._one_class:
            return worth
        priority, own = self._ranking.priority_class, self._ranking.priority_class[row]
        yields: NDArray[np.bool_] = np.less(priority, own) | (np.equal(priority, own) & worth)
        entitlement = self._ranking.entitlement
        if entitlement is None:
            return yields
        entitled = np.not_equal(entitlement, NOT_ENTITLED)
        if not entitled[row]:
            return np.logical_and(yields, ~entitled)
        mine = self._jobs.tenant == self._jobs.tenant[row]
        lent = ~entitled if entitlement[row] < 0 else ~entitled & (self._snapshot.kinds == entitlement[row])
        found: NDArray[np.bool_] = np.logical_or(yields & (~entitled | mine), lent)
        return found
