"""A queue's starts, planned once more from what its store has of them, by the scheduler's pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from cluster.capacity.inventory import Inventory
from orchestrator.controller.fair_share import used_of_spans
from orchestrator.controller.ledger import Cluster, snapshot
from orchestrator.queue.records import Job, Lease
from orchestrator.queue.states import Reason, State
from orchestrator.queue.tenants import Tenant
from orchestrator.scheduling.job_table import slots_of
from orchestrator.scheduling.plan.decisions import Start
from orchestrator.scheduling.plan.plan import plan
from orchestrator.scheduling.policy import DEFAULT, Policy


def used_of(leases: Iterable[Lease], now_s: float, half_life_s: float) -> dict[str, float]:
    """Decayed GPU-seconds by tenant; CPU-seconds for gangs without GPUs."""
    spans = ((lease.tenant, slots_of(lease.gang), lease.granted_s, lease.released_s) for lease in leases)
    return used_of_spans(spans, now_s, half_life_s)


def starts_and_plans(
    jobs: Sequence[Job],
    leases: Sequence[Lease],
    inventory: Inventory,
    tenants: Sequence[Tenant],
    policy: Policy = DEFAULT,
) -> list[tuple[list[str], list[str]]]:
    """For each moment at which jobs were given leases: which, in order, and which a plan of that moment starts.

    The moment is made of leases alone. How long each job runs is taken from them; what a run had measured by then is
    kept nowhere, so it is left out, and may count for nothing in the jobs of whoever calls this.

    Args:
        jobs: each of one attempt, and all there ever were.
    """
    by_job = {lease.job_id: lease for lease in leases}
    found = []
    for at_s, granted in groupby(leases, key=lambda lease: lease.granted_s):
        there = [then for job in jobs if (then := _as_it_was(job, by_job, at_s)) is not None]
        used_s = used_of(leases, at_s, policy.share_half_life_s)
        made = plan(snapshot(there, {}, Cluster(inventory, tuple(tenants), used_s), at_s), policy)
        starts = [there[one.row].job_id for one in made.decisions if isinstance(one, Start)]
        found.append(([lease.job_id for lease in granted], starts))
    return found


def _as_it_was(job: Job, leases: Mapping[str, Lease], at_s: float) -> Job | None:
    """None: it had ended, or was not there yet."""
    lease = leases[job.job_id]
    if job.submitted_s > at_s or (lease.released_s is not None and lease.released_s <= at_s):
        return None
    runs = lease.granted_s < at_s
    return replace(
        job,
        state=State.RUNNING if runs else State.QUEUED,
        reason=Reason.ANSWERED if runs else Reason.SUBMITTED,
        placement=lease.placement if runs else (),
        started_s=lease.granted_s if runs else None,
        waiting_since_s=job.submitted_s,
        waited_s=0.0,
        attained_s=0.0,
        remaining_s=None,
    )
