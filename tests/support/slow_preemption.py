"""What may be interrupted for a job that waits: slow, obvious, and written from the rules alone."""

from __future__ import annotations

from itertools import chain, combinations

from orchestrator.scheduling.policy import Policy
from orchestrator.scheduling.snapshot import Snapshot
from tests.support.scheduling import type_of
from tests.support.slow_scheduler import Standings, machines_of


def may_be_victim(snapshot: Snapshot, policy: Policy, standings: Standings, victim: int, row: int) -> bool:
    """Whether the rules allow that a running job is interrupted for one that waits."""
    jobs, size = snapshot.jobs, float(snapshot.jobs.size[victim])
    pause = policy.protected_s * (1 + jobs.interruptions[victim] / policy.protected_growth)
    if not jobs.preemptible[victim] or jobs.interruptions[victim] >= policy.most_interruptions:
        return False
    if snapshot.now_s < jobs.started_s[victim] + pause - 1e-6:
        return False
    if victim in standings.entitled:
        if row not in standings.entitled or jobs.tenant[victim] != jobs.tenant[row]:
            return False
    elif row in standings.entitled and standings.entitled[row] in (None, type_of(snapshot, victim)):
        return True
    if standings.level[victim] != standings.level[row]:
        return standings.level[victim] < standings.level[row]
    cost = policy.cost_margin * float(jobs.interruption_cost_s[victim]) / size**policy.size_exponent
    return bool(standings.index[victim] - cost > policy.margin * standings.index[row])


def rooms(snapshot: Snapshot, policy: Policy, standings: Standings, row: int) -> dict[int, list[frozenset[int]]]:
    """For each node all sets of jobs whose interruption lets a gang fit there; nodes without any are left out."""
    gang, size = snapshot.jobs.gang_of(row), int(snapshot.jobs.size[row])
    found: dict[int, list[frozenset[int]]] = {}
    for one in machines_of(snapshot):
        if not (one.usable and one.has_gpus and gang.accelerator_type in (None, one.type)):
            continue
        on_it = sorted({holder for holder in one.holders if holder >= 0})
        victims = [victim for victim in on_it if may_be_victim(snapshot, policy, standings, victim, row)]
        for chosen in chain.from_iterable(combinations(victims, number) for number in range(len(victims) + 1)):
            if one.free + sum(one.holders.count(victim) for victim in chosen) >= size:
                found.setdefault(one.number, []).append(frozenset(chosen))
    return found
